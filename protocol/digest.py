"""The SHA-256 that names envelopes, blobs and files."""

import hashlib


def digest_of(data: bytes) -> str:
    """The name of an envelope or a blob: SHA-256 of its bytes, 64 hexadecimal digits (FIPS 180-4)."""
    return hashlib.sha256(data).hexdigest()
