"""What the tests of the trust store share."""

from protocol.encoding import canonical_json
from protocol.keys.signing_key import SigningKey
from protocol.messages import envelope
from protocol.messages.envelope import Envelope, pre_authentication_encoding
from protocol.trust.root_handover import Handover
from protocol.trust.signed_trust import PAYLOAD_TYPE, TrustSeen, verify_trust
from protocol.trust.trust_store import TrustStore
from tests.protocol.parties import ROOT, TRUST

SECOND_ROOT = SigningKey.from_seed(b"2" * 32)


THIRD_ROOT = SigningKey.from_seed(b"3" * 32)


FORGER = SigningKey.from_seed(b"!" * 32)


ROTATED = TRUST.with_root(Handover.make(ROOT, SECOND_ROOT))


def verify(data: bytes, root: SigningKey = ROOT, seen: TrustSeen | None = None) -> TrustStore:
    return verify_trust(data, root=root.public_hex, seen=seen)[0]


def seen_of(data: bytes, root: SigningKey = ROOT) -> TrustSeen:
    return verify_trust(data, root=root.public_hex, seen=None)[1]


def signed(payload: object, key: SigningKey, payload_type: str = PAYLOAD_TYPE) -> bytes:
    """Any payload in a genuine envelope of ``key``: what an attacker with a key of its own can make."""
    body = payload if isinstance(payload, bytes) else canonical_json.encode(payload)  # type: ignore[arg-type]
    signature = key.sign(pre_authentication_encoding(payload_type, body))
    return envelope.encode(Envelope(payload_type, body, key.keyid, signature))
