"""Signing keys: Ed25519 (RFC 8032), kept in a file that only its owner reads."""

import hashlib
import os
import stat
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from protocol.errors import BadSignatureError, InputError
from protocol.storage import write_atomically

_MAX_FILE_BYTES = 4096


class SigningKey:
    """A party's private key. It signs, and says which public key checks the signature; nothing else comes out."""

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
    def load(cls, path: Path) -> "SigningKey":
        """Read a key that ``save`` wrote.

        Raises:
            InputError: no such file, readable by others than its owner, or not an Ed25519 key.
        """
        try:
            # Without O_NONBLOCK, a pipe with that name would hold the program up.
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise InputError(f"cannot read the signing key {path}: {error.strerror}") from None
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise InputError(f"the signing key {path} is not a file")
            if status.st_mode & 0o077 or status.st_uid != os.geteuid():
                raise InputError(f"the signing key {path} must belong to you alone: chown it to yourself and chmod 600")
            data = os.read(descriptor, _MAX_FILE_BYTES)
        finally:
            os.close(descriptor)
        try:
            private = serialization.load_pem_private_key(data, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            raise InputError(f"{path} holds no private key that can be read; make one with: learngene keygen") from None
        if not isinstance(private, Ed25519PrivateKey):
            raise InputError(f"{path} holds a key of another kind than Ed25519; make one with: learngene keygen")
        return cls(private)

    def save(self, path: Path) -> None:
        """Write the key as PKCS #8 PEM, mode 0600.

        Raises:
            InputError: there is a file already; a key is never overwritten.
            StorageFailedError: the key could not be stored durably.
        """
        if path.exists() or path.is_symlink():
            raise InputError(f"{path} exists already; a key is never overwritten, choose another name")
        # The place for a passphrase or a key file: BestAvailableEncryption.
        data = self._private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        write_atomically(path, data, mode=0o600)

    @property
    def public_hex(self) -> str:
        """The raw public key as 64 hexadecimal digits."""
        return self._public.hex()

    @property
    def keyid(self) -> str:
        """SHA-256 of the raw public key, 64 hexadecimal digits."""
        return key_identifier(self._public)

    def sign(self, message: bytes) -> bytes:
        """The signature of ``message``, 64 bytes (RFC 8032, PureEdDSA)."""
        return self._private.sign(message)

    def __repr__(self) -> str:
        return f"SigningKey({self.keyid[:16]}...)"


def key_identifier(public: bytes) -> str:
    """The key id of a raw public key: its SHA-256, 64 hexadecimal digits."""
    return hashlib.sha256(public).hexdigest()


def check_signature(public: bytes, signature: bytes, message: bytes) -> None:
    """Check a signature against a raw public key that passed ``check_public_key``.

    Raises:
        BadSignatureError: the signature does not belong to this key and these bytes.
    """
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except (InvalidSignature, ValueError):
        raise BadSignatureError("the signature does not belong to these bytes; they were altered on the way") from None


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
    x_squared = (y * y - 1) * pow(_D * y * y + 1, -1, _P) % _P
    x = pow(x_squared, (_P + 3) // 8, _P)
    if x * x % _P != x_squared:
        x = x * pow(2, (_P - 1) // 4, _P) % _P
    # Which of the two roots the sign bit names does not change a point's order; only x = 0 has no negative.
    if x * x % _P != x_squared or (x == 0 and sign):
        raise InputError("the public key is no point of the curve; ask its owner for the key that keygen printed")
    for _ in range(3):
        product = _D * x * x * y * y
        x, y = 2 * x * y * pow(1 + product, -1, _P) % _P, (y * y + x * x) * pow(1 - product, -1, _P) % _P
    if (x, y) == (0, 1):
        raise InputError("the public key is of small order and would accept forged signatures; do not use it")
