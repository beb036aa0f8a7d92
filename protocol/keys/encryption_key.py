"""The individual's static encryption key: only it opens messages sealed to its public half (HPKE, RFC 9180)."""

from pathlib import Path
from typing import TypeAlias, get_args

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import (
    AEAD,
    KDF,
    KEM,
    MLKEM768X25519PrivateKey,
    MLKEM768X25519PublicKey,
    Suite,
)

from protocol.errors import InputError
from protocol.keys import key_file
from protocol.keys.kem import PUBLIC_BYTES, Kem
from protocol.keys.key_file import PrivateKey, Unlock

_Private: TypeAlias = X25519PrivateKey | MLKEM768X25519PrivateKey
_Public: TypeAlias = X25519PublicKey | MLKEM768X25519PublicKey

_SUITES = {
    "x25519": Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM),
    "mlkem768-x25519": Suite(KEM.MLKEM768_X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM),
}
_SEED_BYTES = 64
_X25519_BYTES = PUBLIC_BYTES["x25519"]
_P = 2**255 - 19


class EncryptionKey:
    """A party's private key of HPKE. It opens messages that were sealed to ``public``."""

    def __init__(self, kem: Kem, raw: bytes) -> None:
        self._kem, self._raw = kem, raw
        self._private, self._public = _expand(kem, raw)

    @classmethod
    def generate(cls, kem: Kem = "x25519") -> "EncryptionKey":
        """A new key from the operating system's randomness."""
        raw = X25519PrivateKey.generate().private_bytes_raw()
        return cls(kem, raw if kem == "x25519" else MLKEM768PrivateKey.generate().private_bytes_raw() + raw)

    @classmethod
    def from_raw(cls, kem: Kem, raw: bytes) -> "EncryptionKey":
        """The key of these secret bytes; for test vectors, a real key is generated.

        Args:
            raw: ``x25519``: 32 bytes. ``mlkem768-x25519``: ML-KEM's seed of 64 bytes, then 32 of X25519.

        Raises:
            ValueError: another number of bytes.
        """
        return cls(kem, raw)

    @classmethod
    def load(cls, path: Path, unlock: Unlock) -> "EncryptionKey":
        """Read a key that ``save`` wrote.

        Raises:
            InputError: no such file, readable by others, not opened by ``unlock``, or another kind of key.
        """
        stored = key_file.read(path, get_args(Kem), unlock)
        assert stored.kind != "ed25519"
        try:
            key = cls(stored.kind, stored.raw)
        except ValueError as error:
            raise InputError(f"{path} holds no key of the kind {stored.kind}: {error}") from None
        if key.public != stored.public:
            raise InputError(f"{path} names a public key that is not its own; make one with: learngene keygen")
        return key

    def save(self, path: Path, unlock: Unlock) -> None:
        """Write the key, encrypted, mode 0600.

        Raises:
            InputError: there is a file already; a key is never overwritten.
            StorageFailedError: the key could not be stored durably.
        """
        key_file.write(path, PrivateKey(self._kem, self._public, self._raw), unlock)

    @property
    def kem(self) -> Kem:
        """Its key encapsulation."""
        return self._kem

    @property
    def public(self) -> bytes:
        """The public key: 32 bytes of X25519, or 1184 of ML-KEM-768 and then 32 of X25519."""
        return self._public

    def open(self, sealed: bytes, info: bytes) -> bytes:
        """The message that :func:`seal_to` sealed with the same ``info``.

        Raises:
            ValueError: it was sealed to another key, with other ``info``, or altered.
        """
        try:
            return _SUITES[self._kem].decrypt(sealed, self._private, info)
        except (InvalidTag, ValueError):
            raise ValueError("it was sealed to another key, for another exchange, or altered") from None

    def __repr__(self) -> str:
        return f"EncryptionKey({self._kem}, {self._public.hex()[:16]}...)"


def seal_to(kem: Kem, public: bytes, message: bytes, info: bytes) -> bytes:
    """Encrypt a message to a public key: HPKE's single-shot base mode, HKDF-SHA256, AES-256-GCM.

    Returns:
        The encapsulated key (32 bytes, of the hybrid 1120), the ciphertext and its tag of 16 bytes.

    Raises:
        ValueError: the public key must not be used; see :func:`check_encryption_public`.
    """
    return _SUITES[kem].encrypt(message, _public_key(kem, public), info)


def check_encryption_public(kem: Kem, public: bytes) -> None:
    """Refuse a public key that must not be used for sealing.

    Raises:
        ValueError: of another size, not in its one encoding, or of small order: what is agreed with such a key is no
            secret (RFC 7748, section 6.1).
    """
    _public_key(kem, public)


def _public_key(kem: Kem, public: bytes) -> _Public:
    size = PUBLIC_BYTES[kem]
    if len(public) != size:
        raise ValueError(f"a public key of {kem} has {size} bytes, not {len(public)}")
    u = public[-_X25519_BYTES:]
    if int.from_bytes(u, "little") >= _P:
        raise ValueError("the X25519 public key is not canonically encoded")
    point = X25519PublicKey.from_public_bytes(u)
    try:
        # The hybrid's own definition leaves this check out; every scalar takes a point of small order to zero.
        X25519PrivateKey.from_private_bytes(bytes(_X25519_BYTES)).exchange(point)
    except ValueError:
        raise ValueError("the X25519 public key is of small order") from None
    if kem == "x25519":
        return point
    try:
        lattice = MLKEM768PublicKey.from_public_bytes(public[:-_X25519_BYTES])
    except ValueError:
        raise ValueError("the ML-KEM-768 public key is not one (FIPS 203, section 7.2)") from None
    return MLKEM768X25519PublicKey(lattice, point)


def _expand(kem: Kem, raw: bytes) -> tuple[_Private, bytes]:
    """The private key as the library takes it, and the public key's bytes."""
    size = _X25519_BYTES + (0 if kem == "x25519" else _SEED_BYTES)
    if len(raw) != size:
        raise ValueError(f"a private key of {kem} has {size} bytes, not {len(raw)}")
    curve = X25519PrivateKey.from_private_bytes(raw[-_X25519_BYTES:])
    point = curve.public_key().public_bytes_raw()
    if kem == "x25519":
        return curve, point
    lattice = MLKEM768PrivateKey.from_seed_bytes(raw[:_SEED_BYTES])
    return MLKEM768X25519PrivateKey(lattice, curve), lattice.public_key().public_bytes_raw() + point
