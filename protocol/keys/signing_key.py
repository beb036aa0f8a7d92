"""Signing keys (Ed25519, RFC 8032), and the fingerprints by which people compare their public halves."""

import hashlib
from pathlib import Path
from typing import Annotated

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from pydantic import AfterValidator, StringConstraints

from protocol.encoding import proquint
from protocol.errors import BadSignatureError, InputError
from protocol.keys import key_file
from protocol.keys.key_file import PrivateKey, Unlock

#: Bytes of a public key's digest in its fingerprint.
_FINGERPRINT_BYTES = 16


class SigningKey:
    """A party's private key. It signs, gives its public key, and derives secrets; nothing else leaves the object."""

    def __init__(self, private: Ed25519PrivateKey) -> None:
        self._private = private
        self._public = private.public_key().public_bytes_raw()

    @classmethod
    def generate(cls) -> "SigningKey":
        """A new key from the operating system's randomness."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def from_seed(cls, seed: bytes) -> "SigningKey":
        """The key of 32 secret bytes (RFC 8032, section 5.1.5). For test vectors; a real key is generated."""
        return cls(Ed25519PrivateKey.from_private_bytes(seed))

    @classmethod
    def load(cls, path: Path, unlock: Unlock) -> "SigningKey":
        """Read a key that ``save`` wrote.

        Raises:
            InputError: no such file, readable by others than its owner, not opened by ``unlock``, or another kind of
                key.
        """
        stored = key_file.read(path, ("ed25519",), unlock)
        try:
            key = cls.from_seed(stored.raw)
        except ValueError:
            raise InputError(f"{path} holds no Ed25519 key; make one with: learngene keygen") from None
        if key._public != stored.public:
            raise InputError(f"{path} names a public key that is not its own; make one with: learngene keygen")
        return key

    def save(self, path: Path, unlock: Unlock) -> None:
        """Write the key, encrypted, mode 0600.

        Raises:
            InputError: there is a file already; a key is never overwritten.
            StorageFailedError: the key could not be stored durably.
        """
        key_file.write(path, PrivateKey("ed25519", self._public, self._private.private_bytes_raw()), unlock)

    @property
    def public_hex(self) -> str:
        """The raw public key as 64 hexadecimal digits."""
        return self._public.hex()

    @property
    def keyid(self) -> str:
        """SHA-256 of the raw public key, 64 hexadecimal digits."""
        return key_identifier(self._public)

    @property
    def fingerprint(self) -> str:
        """The public key's fingerprint in eight words."""
        return fingerprint(self._public)

    def sign(self, message: bytes) -> bytes:
        """The signature of ``message``, 64 bytes (RFC 8032, PureEdDSA)."""
        return self._private.sign(message)

    def derive(self, purpose: bytes) -> bytes:
        """32 secret bytes that only this key gives, others for each ``purpose`` (HKDF-SHA256, RFC 5869). They reveal
        nothing about the key, because SHA-512 makes the signing scalar out of the seed.
        """
        seed = self._private.private_bytes_raw()
        return HKDF(algorithm=SHA256(), length=32, salt=None, info=purpose).derive(seed)

    def __repr__(self) -> str:
        return f"SigningKey({self.keyid[:16]}...)"


def key_identifier(public: bytes) -> str:
    """The key id of a raw public key: its SHA-256, 64 hexadecimal digits."""
    return hashlib.sha256(public).hexdigest()


def fingerprint(public: bytes) -> str:
    """The fingerprint that its owner reads aloud and the other side compares: the first 128 bits of the SHA-256 of a
    raw public key as eight proquints, such as ``lusab-babad-...``."""
    return fingerprint_of(key_identifier(public))


def fingerprint_of(keyid: str) -> str:
    """The fingerprint of the key with this id: both come from one digest."""
    return proquint.encode(bytes.fromhex(keyid)[:_FINGERPRINT_BYTES])


def read_fingerprint(text: str) -> str:
    """A fingerprint as :func:`fingerprint` writes it, from what a user typed: spaces, commas and capitals are fine.

    Raises:
        InputError: not eight words of a fingerprint; the line says which word is wrong.
    """
    try:
        data = proquint.decode(text)
    except ValueError as error:
        raise InputError(f"the fingerprint cannot be read: {error}") from None
    if len(data) != _FINGERPRINT_BYTES:
        raise InputError(f"a fingerprint has {_FINGERPRINT_BYTES // 2} words, not {len(data) // 2}")
    return proquint.encode(data)


def read_public(text: str, option: str) -> str:
    """A public key as :attr:`SigningKey.public_hex` writes it, from what a user typed.

    Args:
        option: the option's name, for messages: ``--root``.

    Raises:
        InputError: not 64 hexadecimal digits, or a key that must not be pinned.
    """
    digits = text.strip().lower()
    if len(digits) != 64 or set(digits) - set("0123456789abcdef"):
        raise InputError(f"{option} has 64 hexadecimal digits; copy the public key that keygen or init printed")
    try:
        check_public_key(bytes.fromhex(digits))
    except InputError as error:
        raise InputError(f"{option}: {error}") from None
    return digits


def check_signature(public: bytes, signature: bytes, message: bytes) -> None:
    """Check a signature against a raw public key that passed ``check_public_key``.

    Raises:
        BadSignatureError: the signature does not belong to this key and these bytes.
    """
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except (InvalidSignature, ValueError):
        raise BadSignatureError("the signature does not fit these bytes: they were altered on the way") from None


# The curve of RFC 8032, section 5.1: -x^2 + y^2 = 1 + d x^2 y^2 over the integers modulo p; its cofactor is 8.
_P = 2**255 - 19
_D = -121665 * pow(121666, -1, _P) % _P


def check_public_key(public: bytes) -> None:
    """Refuse a public key under which a signature would not name one message: called before a key is pinned.

    Refused are encodings that are not canonical, points off the curve and points of small order (under those, one
    signature fits many messages). The data is public, so time does not matter here.

    Raises:
        InputError: the key must not be pinned.
    """
    if len(public) != 32:
        raise InputError(f"a public key has 32 bytes (64 hexadecimal digits), not {len(public)}")
    encoded = int.from_bytes(public, "little")
    y, sign = encoded & (2**255 - 1), encoded >> 255
    if y >= _P:
        raise InputError("the public key is not canonically encoded; ask its owner for the key that keygen printed")
    # x^2 = above / below, which is a square if the product is (Euler's criterion); below is never 0.
    above, below = y * y - 1, _D * y * y + 1
    residue = pow(above * below, (_P - 1) // 2, _P)
    if residue not in (0, 1) or (residue == 0 and sign):
        raise InputError("the public key is no point of the curve; ask its owner for the key that keygen printed")
    # The order does not depend on the sign of x. Doubling on y = n / m alone, without divisions; only the neutral
    # element has y = 1.
    n, m = y, 1
    for _ in range(3):
        n, m = n * n % _P, m * m % _P
        above, below = n - m, _D * n + m
        n, m = (n * below + m * above) % _P, (m * below - _D * n * above) % _P
    if n == m:
        raise InputError("the public key is of small order and would accept forged signatures; do not use it")


def _sound(public: str) -> str:
    try:
        check_public_key(bytes.fromhex(public))
    except InputError as error:
        raise ValueError(str(error)) from None
    return public


#: A raw Ed25519 public key that may be pinned, as 64 hexadecimal digits.
PublicKey = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$"), AfterValidator(_sound)]
