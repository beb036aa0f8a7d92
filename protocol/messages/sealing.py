"""Sealing: a learngene's blob is encrypted once, and its content key is sealed to each audience by HPKE.

The blob: AES-256-GCM (NIST SP 800-38D) under a fresh content key. The content key: HPKE (RFC 9180, base mode, single
shot), with an ``info`` that binds the run, the request, the audience and the ciphertext: a sealed key opens nowhere
else.
"""

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from protocol.encoding import canonical_json
from protocol.errors import DigestMismatchError, MalformedError, WrongAudienceError
from protocol.keys.encryption_key import EncryptionKey, seal_to
from protocol.messages.payloads import Request

CONTENT_KEY_BYTES = 32
#: Bytes that a ciphertext has more than its plaintext: GCM's tag.
OVERHEAD_BYTES = 16

# A content key encrypts exactly one plaintext, so its fixed nonce never repeats.
_NONCE = bytes(12)
_BLOB_LABEL = b"learngene blob v1"
_KEY_LABEL = "learngene content key v1"


def encrypt(content_key: bytes, plaintext: bytes) -> bytes:
    """The ciphertext of a blob, tag at its end. ``content_key``: 32 random bytes, never used for another plaintext."""
    return AESGCM(content_key).encrypt(_NONCE, plaintext, _BLOB_LABEL)


def decrypt(content_key: bytes, ciphertext: bytes) -> bytes:
    """The plaintext of a blob. GCM does not commit to its key: to be sure that every audience reads the same plaintext,
    compare its digest with the release's.

    Raises:
        DigestMismatchError: the key is not this ciphertext's.
    """
    try:
        return AESGCM(content_key).decrypt(_NONCE, ciphertext, _BLOB_LABEL)
    except (InvalidTag, ValueError):
        raise DigestMismatchError(
            "the grant's key does not open the blob; ask the collective for a new grant"
        ) from None


def binding(*, run_id: str, request: str, audience: str, ciphertext: str) -> bytes:
    """HPKE's ``info`` of a sealed content key: the run, the REQUEST's digest, the audience's key id, and the SHA-256 of
    the ciphertext."""
    return canonical_json.encode(
        {"audience": audience, "ciphertext": ciphertext, "label": _KEY_LABEL, "request": request, "run_id": run_id}
    )


def seal_content_key(content_key: bytes, request: Request, info: bytes) -> str:
    """The content key sealed to a request's public key, in hexadecimal.

    Raises:
        MalformedError: nothing can be sealed to that public key.
    """
    try:
        return seal_to(request.hpke_kem, bytes.fromhex(request.hpke_public), content_key, info).hex()
    except ValueError:
        raise MalformedError("the request's encryption key is not one that can be used; make a new one") from None


def open_content_key(sealed_key: str, key: EncryptionKey, info: bytes) -> bytes:
    """The content key of a grant.

    Raises:
        WrongAudienceError: it was sealed to another key, or for another run, request, audience or blob.
    """
    try:
        content_key = key.open(bytes.fromhex(sealed_key), info)
    except ValueError:
        raise WrongAudienceError(
            "the grant is not sealed to this encryption key; send a new request, or give the key that asked for it"
        ) from None
    if len(content_key) != CONTENT_KEY_BYTES:
        raise MalformedError(f"the sealed content key has {len(content_key)} bytes, it must have {CONTENT_KEY_BYTES}")
    return content_key
