"""The envelope: DSSE v1 with one Ed25519 signature (https://github.com/secure-systems-lab/dsse, protocol.md).

Narrower than the specification: canonical JSON, standard base64 only (the specification has verifiers accept the
URL-safe alphabet too), exactly one signature, and a key id, which must be present. So one signed payload has one
envelope, and its digest names it.
"""

import base64
import binascii
from dataclasses import dataclass

from protocol.encoding import canonical_json
from protocol.errors import MalformedError
from protocol.keys import signing_key

#: Bytes of the largest envelope.
MAX_BYTES = canonical_json.MAX_BYTES
_SIGNATURE_BYTES = 64


@dataclass(frozen=True)
class Envelope:
    """A parsed envelope. Nothing in it is trusted yet: see ``protocol.exchange.verification``."""

    payload_type: str
    payload: bytes
    keyid: str
    signature: bytes


def pre_authentication_encoding(payload_type: str, payload: bytes) -> bytes:
    """PAE of the specification: ``"DSSEv1" SP LEN(type) SP type SP LEN(body) SP body``; the bytes that are signed."""
    kind = payload_type.encode("utf-8")
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def sign(payload_type: str, payload: bytes, key: signing_key.SigningKey) -> bytes:
    """Sign the bytes of a payload, and return the bytes of its envelope.

    Raises:
        ValueError: the envelope would be larger than ``MAX_BYTES``.
    """
    signature = key.sign(pre_authentication_encoding(payload_type, payload))
    data = encode(Envelope(payload_type, payload, key.keyid, signature))
    if len(data) > MAX_BYTES:
        raise ValueError(f"an envelope of {len(data)} bytes, at most {MAX_BYTES}")
    return data


def encode(envelope: Envelope) -> bytes:
    """The canonical bytes of an envelope."""
    return canonical_json.encode(
        {
            "payload": base64.b64encode(envelope.payload).decode("ascii"),
            "payloadType": envelope.payload_type,
            "signatures": [
                {"keyid": envelope.keyid, "sig": base64.b64encode(envelope.signature).decode("ascii")},
            ],
        }
    )


def parse(data: bytes, *, max_bytes: int = MAX_BYTES) -> Envelope:
    """Size, strict JSON and shape of an envelope; no signature is checked and the payload is not read.

    Raises:
        TooLargeError: more than ``max_bytes``.
        MalformedError: not a canonical envelope with one signature.
    """
    value = canonical_json.decode(data, max_depth=3, max_bytes=max_bytes)
    match value:
        case {
            "payload": str(payload),
            "payloadType": str(payload_type),
            "signatures": [{"keyid": str(keyid), "sig": str(signature), **more_in_signature}],
            **more,
        } if not more and not more_in_signature:
            envelope = Envelope(payload_type, _base64(payload), keyid, _base64(signature))
        case _:
            raise MalformedError("not an envelope: payload, payloadType and one signature with keyid and sig")
    if len(envelope.signature) != _SIGNATURE_BYTES:
        raise MalformedError(f"the signature has {len(envelope.signature)} bytes, Ed25519 has {_SIGNATURE_BYTES}")
    return envelope


def check_signature(envelope: Envelope, public: bytes) -> None:
    """Check the signature over the PAE of the received bytes, under a pinned raw public key.

    Raises:
        BadSignatureError: it does not fit.
    """
    signing_key.check_signature(
        public, envelope.signature, pre_authentication_encoding(envelope.payload_type, envelope.payload)
    )


def _base64(text: str) -> bytes:
    try:
        data = base64.b64decode(text, validate=True)
    except binascii.Error:
        raise MalformedError("the envelope holds what is not base64") from None
    # Unused bits of the last character are free in base64; here they are not.
    if base64.b64encode(data).decode("ascii") != text:
        raise MalformedError("the envelope's base64 is not canonical")
    return data
