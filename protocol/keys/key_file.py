"""Private keys at rest: one encrypted file format, opened by a passphrase or by a key file.

A file holds canonical JSON: ``format``, ``kind``, ``public``, ``kdf`` (``name``, ``salt`` and its parameters),
``nonce`` and ``ciphertext`` (bytes as hexadecimal digits). The private key is encrypted with AES-256-GCM; everything
else in the file is authenticated with it, so one changed byte anywhere makes the file unreadable.

Not PKCS #8: what ``cryptography`` writes derives its key with PBKDF2 at 2048 rounds, which tries passphrases far too
fast and cannot be set.
"""

import os
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from protocol.encoding import canonical_json
from protocol.errors import InputError, MalformedError, TooLargeError, fault_line
from protocol.files.private_file import read_private
from protocol.files.user_files import write_new

Kind = Literal["ed25519", "x25519", "mlkem768-x25519"]

#: Smallest and largest size of a key file, in bytes: at least that of the derived key, and no large file by mistake.
KEY_FILE_BYTES = (32, 4096)

_MAX_FILE_BYTES = 16 * 1024
_SALT_BYTES = 32
_NONCE_BYTES = 12
_INFO = b"learngene private key 1"
# RFC 9106, section 4: the second recommended option, for which a small machine has enough memory.
_ITERATIONS, _LANES, _MEMORY_KIB = 3, 4, 64 * 1024
# Upper limit: four times our own cost, one second on a core of 2024, so below five on a slow one.
_MOST_MEMORY_KIB = 256 * 1024
_MOST_WORK_KIB = 3 * _MOST_MEMORY_KIB
_CONFIG = ConfigDict(frozen=True, extra="forbid", strict=True)

_Salt = Annotated[str, StringConstraints(pattern=rf"^[0-9a-f]{{{2 * _SALT_BYTES}}}$")]


@dataclass(frozen=True)
class Unlock:
    """The secret that opens a private key: made by :meth:`passphrase` or :meth:`key_file`.

    Attributes:
        kdf: how a key is derived from the secret.
        secret: its bytes.
    """

    kdf: Literal["argon2id", "hkdf-sha256"]
    secret: bytes = field(repr=False)

    @classmethod
    def passphrase(cls, text: str) -> "Unlock":
        """A passphrase, in Unicode's form NFC (RFC 8265), so that it is the same from every keyboard.

        Raises:
            InputError: it is empty.
        """
        if not text:
            raise InputError("the passphrase is empty")
        return cls("argon2id", unicodedata.normalize("NFC", text).encode("utf-8"))

    @classmethod
    def key_file(cls, path: Path) -> "Unlock":
        """The content of a key file.

        Raises:
            InputError: no such file, one that others can read, or one of another size.
        """
        least, most = KEY_FILE_BYTES
        data = read_private(path, "the key file", max_bytes=most)
        if len(data) < least:
            raise InputError(f"the key file {path} has {len(data)} bytes, it must have at least {least} random ones")
        return cls("hkdf-sha256", data)


@dataclass(frozen=True)
class PrivateKey:
    """A private key as bytes.

    Attributes:
        kind: the purpose of the key.
        public: its raw public key.
        raw: the secret bytes: 32 of Ed25519 or X25519; of the hybrid 64 of ML-KEM's seed, then 32 of X25519.
    """

    kind: Kind
    public: bytes
    raw: bytes = field(repr=False)


class _Argon2id(BaseModel):
    """RFC 9106. The upper limits keep a file of unknown origin from taking the machine's memory and its time."""

    model_config = _CONFIG

    name: Literal["argon2id"] = "argon2id"
    salt: _Salt
    iterations: int = Field(default=_ITERATIONS, ge=_ITERATIONS, le=_MOST_WORK_KIB // _MEMORY_KIB)
    lanes: int = Field(default=_LANES, ge=1, le=16)
    memory_kib: int = Field(default=_MEMORY_KIB, ge=_MEMORY_KIB, le=_MOST_MEMORY_KIB)

    @model_validator(mode="after")
    def _bounded(self) -> "_Argon2id":
        if self.iterations * self.memory_kib > _MOST_WORK_KIB:
            raise ValueError(
                f"iterations times memory_kib is {self.iterations * self.memory_kib}, the limit is {_MOST_WORK_KIB}"
            )
        return self

    def derive(self, secret: bytes) -> bytes:
        return Argon2id(
            salt=bytes.fromhex(self.salt),
            length=32,
            iterations=self.iterations,
            lanes=self.lanes,
            memory_cost=self.memory_kib,
        ).derive(secret)


class _Hkdf(BaseModel):
    """RFC 5869. A key file is random, so slow derivation is not needed."""

    model_config = _CONFIG

    name: Literal["hkdf-sha256"] = "hkdf-sha256"
    salt: _Salt

    def derive(self, secret: bytes) -> bytes:
        return HKDF(algorithm=SHA256(), length=32, salt=bytes.fromhex(self.salt), info=_INFO).derive(secret)


class _Header(BaseModel):
    """The file's content but for the ciphertext, with which it is authenticated."""

    model_config = _CONFIG

    format: Literal[1] = 1
    kind: Kind
    public: str = Field(pattern=r"^([0-9a-f]{2}){32,1216}$")
    kdf: _Argon2id | _Hkdf = Field(discriminator="name")
    nonce: str = Field(pattern=rf"^[0-9a-f]{{{2 * _NONCE_BYTES}}}$")

    @property
    def authenticated(self) -> bytes:
        return canonical_json.encode(self.model_dump(mode="json", include=set(_Header.model_fields)))

    def cipher(self, unlock: Unlock) -> AESGCM:
        return AESGCM(self.kdf.derive(unlock.secret))


class _Content(_Header):
    """The file's content."""

    ciphertext: str = Field(pattern=r"^([0-9a-f]{2}){48,112}$")


def lock(key: PrivateKey, unlock: Unlock, *, random: Callable[[int], bytes] = os.urandom) -> bytes:
    """The content of a file that holds ``key`` and opens with ``unlock``; ``random``: returns the given number of
    secret bytes.
    """
    salt, nonce = random(_SALT_BYTES).hex(), random(_NONCE_BYTES)
    kdf = _Argon2id(salt=salt) if unlock.kdf == "argon2id" else _Hkdf(salt=salt)
    header = _Header(kind=key.kind, public=key.public.hex(), kdf=kdf, nonce=nonce.hex())
    # The salt is fresh, so no derived key encrypts twice.
    ciphertext = header.cipher(unlock).encrypt(nonce, key.raw, header.authenticated)
    return canonical_json.encode(header.model_dump(mode="json") | {"ciphertext": ciphertext.hex()})


def open_locked(data: bytes, unlock: Unlock, *, name: str) -> PrivateKey:
    """The key in a file's content; the caller checks that it is of the kind it wants and fits its public key.

    Args:
        name: the file's, for messages.

    Raises:
        InputError: not such a file, altered, or locked with something else.
    """
    if b"-----BEGIN " in data:
        raise InputError(
            f"{name} is a PEM file, not a key file of this project, and such a key may lie open; make one with: "
            "learngene keygen"
        )
    try:
        canonical_json.decode(data, max_depth=2, max_bytes=_MAX_FILE_BYTES)
        content = _Content.model_validate_json(data)
    except (MalformedError, TooLargeError) as error:
        raise InputError(f"{name} holds no private key that can be read: {error}") from None
    except ValidationError as error:
        raise InputError(f"{name} holds no private key that can be read: {fault_line(error)}") from None
    if content.kdf.name != unlock.kdf:
        wanted, given = ("a passphrase", "a key file")[:: 1 if content.kdf.name == "argon2id" else -1]
        raise InputError(f"{name} opens with {wanted}, not with {given}")
    nonce, ciphertext = bytes.fromhex(content.nonce), bytes.fromhex(content.ciphertext)
    try:
        raw = content.cipher(unlock).decrypt(nonce, ciphertext, content.authenticated)
    except InvalidTag:
        what = "the passphrase is wrong" if unlock.kdf == "argon2id" else "it was locked with another key file"
        raise InputError(f"{name} does not open: {what}, or the file was altered") from None
    except MemoryError:
        raise InputError(f"{name} does not open: the memory that its passphrase takes is not there") from None
    return PrivateKey(content.kind, bytes.fromhex(content.public), raw)


def write(path: Path, key: PrivateKey, unlock: Unlock) -> None:
    """Write a private key, mode 0600.

    Raises:
        InputError: there is a file already (a key is never overwritten), or no folder.
        StorageFailedError: the key could not be stored durably.
    """
    write_new(path, lock(key, unlock))


def read(path: Path, kinds: Sequence[Kind], unlock: Unlock) -> PrivateKey:
    """Read what :func:`write` wrote.

    Raises:
        InputError: no such file, one that others can read, one that ``unlock`` does not open, or a key of another kind.
    """
    key = open_locked(read_private(path, "the private key", max_bytes=_MAX_FILE_BYTES), unlock, name=str(path))
    if key.kind not in kinds:
        raise InputError(f"{path} holds a key of the kind {key.kind}, here is needed: {' or '.join(kinds)}")
    return key


def make_key_file(path: Path) -> None:
    """Write a fresh key file: 32 random bytes, mode 0600.

    Raises:
        InputError: there is a file already, or no folder. StorageFailedError: it could not be stored durably.
    """
    write_new(path, os.urandom(KEY_FILE_BYTES[0]))
