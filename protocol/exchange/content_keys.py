"""Content keys at rest: a collective's ledger holds them encrypted, and only its signing key opens them.

The key that closes one is derived from the signing key's seed and the release's digest (HKDF-SHA256, RFC 5869, with a
label of its own, so that no other derivation gives this key). This is the simplest sound way: there is no second secret
to make, keep and lose. Releases of an old signing key are no longer granted, so their content keys may be lost with it.
Each derived key encrypts only one content key, so AES-256-GCM's nonce may be zero. The release's
digest is authenticated too: a closed key that was moved to another release does not open.
"""

import hashlib
from typing import NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from protocol.errors import StorageFailedError
from protocol.keys.signing_key import SigningKey
from protocol.messages.sealing import CONTENT_KEY_BYTES, OVERHEAD_BYTES

_LABEL = b"learngene content key at rest v1 "
_NAME_LABEL = b"learngene content key name v1 "
_NONCE = bytes(12)

#: Bytes of a closed content key.
CLOSED_BYTES = CONTENT_KEY_BYTES + OVERHEAD_BYTES


class ClosedKey(NamedTuple):
    """A content key as a ledger keeps it.

    Attributes:
        closed: its ciphertext.
        name: a digest of the content key, by which a second use is found. A content key is 256 random bits, which no
            digest reveals.
    """

    closed: bytes
    name: str


def close(key: SigningKey, content_key: bytes, release: str) -> ClosedKey:
    """A content key, closed with the collective's signing key; ``release``: digest of the one release it seals."""
    closed = _cipher(key, release).encrypt(_NONCE, content_key, bytes.fromhex(release))
    return ClosedKey(closed, hashlib.sha256(_NAME_LABEL + content_key).hexdigest())


def reopen(key: SigningKey, closed: bytes, release: str) -> bytes:
    """The content key that ``close`` closed.

    Raises:
        StorageFailedError: it was closed with another signing key or for another release, or was changed.
    """
    try:
        return _cipher(key, release).decrypt(_NONCE, closed, bytes.fromhex(release))
    except (InvalidTag, ValueError):
        raise StorageFailedError(
            f"the ledger's content key of the release {release[:16]} does not open with this node's signing key: the "
            "ledger was changed, or is another node's; put the right one back"
        ) from None


def _cipher(key: SigningKey, release: str) -> AESGCM:
    return AESGCM(key.derive(_LABEL + bytes.fromhex(release)))
