"""Two parties and a small learngene for the tests of the protocol: all made from seeds, times from one constant."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from protocol.digest import digest_of
from protocol.exchange.audit import Crossings
from protocol.exchange.collective_endpoint import Answer, CollectiveEndpoint
from protocol.exchange.collective_ledger import CollectiveLedger
from protocol.exchange.expectation import Expectation
from protocol.exchange.individual_endpoint import IndividualEndpoint
from protocol.exchange.individual_ledger import IndividualLedger
from protocol.exchange.verification import VerifiedLearngene, verify_bundle
from protocol.keys.encryption_key import EncryptionKey
from protocol.keys.party_keys import NodeKeys
from protocol.keys.signing_key import SigningKey
from protocol.learngene.architecture import Architecture, Block, Form, InputContract
from protocol.learngene.learngene import FisherDescription, Learngene
from protocol.messages import envelope, payloads, sealing
from protocol.messages.builders import make_grant, sign
from protocol.messages.payloads import Content, PayloadT, Release, Request
from protocol.trust.policy import Policy
from protocol.trust.trust_store import TrustStore

NOW = 1_800_000_000
RUN = "0123456789abcdef" * 2
OTHER_RUN = "f" * 32
COLLECTIVE = SigningKey.from_seed(b"c" * 32)
INDIVIDUAL = SigningKey.from_seed(b"i" * 32)
OTHER_INDIVIDUAL = SigningKey.from_seed(b"j" * 32)
STRANGER = SigningKey.from_seed(b"s" * 32)
ROOT = SigningKey.from_seed(b"r" * 32)
# Whose blobs are whose: the collective seals, these open.
ENCRYPTION = EncryptionKey.from_raw("x25519", b"e" * 32)
OTHER_ENCRYPTION = EncryptionKey.from_raw("x25519", b"f" * 32)
HYBRID_ENCRYPTION = EncryptionKey.from_raw("mlkem768-x25519", b"h" * 96)
CONTENT_KEY = b"k" * 32
# What the collective signs with after a rotation.
NEW_COLLECTIVE = SigningKey.from_seed(b"C" * 32)
NO_TRUST = TrustStore(root=ROOT.public_hex, expires_at=NOW + 365 * 24 * 3600)
TRUST = (
    NO_TRUST.with_key(COLLECTIVE.public_hex, "collective", "collective")
    .with_key(INDIVIDUAL.public_hex, "individual", "individual-1")
    .with_key(OTHER_INDIVIDUAL.public_hex, "individual", "individual-2")
)
ROTATED_TRUST = TRUST.with_rotated_key("collective", "collective", NEW_COLLECTIVE.public_hex)
COLLECTIVE_POLICY = Policy.for_role("collective")
INDIVIDUAL_POLICY = Policy.for_role("individual")


def architecture(form: Form = "condensed") -> Architecture:
    """Two small blocks: 3 -> 4 -> 6 channels, or only the second one."""
    stem = Block(role="stem", in_channels=3, out_channels=4, pool=True)
    top = Block(role="top", in_channels=4, out_channels=6, pool=True)
    blocks = (stem, top) if form == "condensed" else (top,)
    return Architecture(form=form, input=InputContract(height=8, width=8, channels=3), blocks=blocks)


def learngene(seed: int = 0, form: Form = "condensed", samples: int | None = 1024) -> Learngene:
    """A learngene of random positive values; ``samples`` of its Fisher diagonal, or None for no Fisher."""
    rng = np.random.default_rng(seed)
    fisher = None
    if samples is not None:
        fisher = FisherDescription(source="collective", estimator="sampled", samples=samples, clip_micro=0)
    shapes = architecture(form).tensors(fisher=fisher is not None)
    tensors = {name: rng.uniform(0.1, 1, shape).astype(np.float32) for name, (_, shape) in shapes.items()}
    return Learngene(architecture(form), tensors, fisher)


def content_key(number: int) -> bytes:
    """A content key for each number; no two releases of one collective may share one."""
    return number.to_bytes(32, "big")


def flipped(data: bytes, bit: int) -> bytes:
    """The same bytes but for one bit."""
    position = bit // 8
    return data[:position] + bytes([data[position] ^ 1 << bit % 8]) + data[position + 1 :]


def opened(model: type[PayloadT], data: bytes) -> PayloadT:
    """The payload of an envelope, whoever signed it."""
    return payloads.decode(model, envelope.parse(data).payload)


def resigned(data: bytes, key: SigningKey, **changes: object) -> bytes:
    """The same message with other fields, signed by ``key``: what a party that holds the key could send."""
    old = envelope.parse(data)
    model = payloads.MODELS[old.payload_type]
    return sign(payloads.decode(model, old.payload).model_copy(update=changes), key)


def content_of(data: bytes) -> Content:
    """What a release says about these bytes."""
    return Content(size=len(data), sha256=digest_of(data))


def signed_raw(payload_type: str, body: bytes, key: SigningKey, keyid: str | None = None) -> bytes:
    """Any bytes at all under a valid signature."""
    signature = key.sign(envelope.pre_authentication_encoding(payload_type, body))
    return envelope.encode(envelope.Envelope(payload_type, body, keyid or key.keyid, signature))


#: A trust store, or what an endpoint asks for the one that holds now.
Trust = TrustStore | Callable[[], TrustStore]


def _asked(trust: Trust) -> Callable[[], TrustStore]:
    return (lambda: trust) if isinstance(trust, TrustStore) else trust


@dataclass
class Site:
    """One party's state folder; ``collective`` and ``individual`` open it anew, as a restarted node does."""

    folder: Path
    run_id: str = RUN
    now: int = NOW
    opened: list[CollectiveLedger | IndividualLedger] = field(default_factory=list)

    def collective(
        self, key: SigningKey = COLLECTIVE, policy: Policy = COLLECTIVE_POLICY, trust: Trust = TRUST
    ) -> CollectiveEndpoint:
        ledger = CollectiveLedger(self.folder)
        self.opened.append(ledger)
        return CollectiveEndpoint(
            keys=NodeKeys(key, encryption=None),
            trust=_asked(trust),
            ledger=ledger,
            policy=policy,
            run_id=self.run_id,
            crossings=Crossings(self.folder / "crossings.jsonl", "collective", lambda: self.now),
        )

    def set_clock(self, now: int) -> None:
        """What an operator does where the clock was ahead: the site forgets it, and counts from ``now``."""
        self.opened[0].set_time(now)

    def individual(
        self,
        key: SigningKey = INDIVIDUAL,
        policy: Policy = INDIVIDUAL_POLICY,
        trust: Trust = TRUST,
        encryption: EncryptionKey = ENCRYPTION,
    ) -> IndividualEndpoint:
        ledger = IndividualLedger(self.folder)
        self.opened.append(ledger)
        return IndividualEndpoint(
            keys=NodeKeys(key, encryption),
            trust=_asked(trust),
            ledger=ledger,
            policy=policy,
            run_id=self.run_id,
            crossings=Crossings(self.folder / "crossings.jsonl", "individual-1", lambda: self.now),
        )


@dataclass(frozen=True)
class Exchange:
    """One honest exchange, and what the individual knows when its answer arrives."""

    request: bytes
    answer: Answer
    expectation: Expectation

    def with_answer(
        self, *, release: bytes | None = None, grant: bytes | None = None, blob: bytes | None = None
    ) -> "Exchange":
        """The same exchange after the relay changed a part of the answer."""
        old = self.answer
        return replace(
            self,
            answer=Answer(
                old.release if release is None else release,
                old.grant if grant is None else grant,
                old.blob if blob is None else blob,
            ),
        )

    def granted(self, release: bytes, /, *, content_key: bytes = CONTENT_KEY, **changes: object) -> bytes:
        """The collective's grant of any release for this exchange's request; ``changes``: other fields of it."""
        grant = make_grant(
            opened(Request, self.request),
            digest_of(self.request),
            opened(Release, release),
            digest_of(release),
            key=COLLECTIVE,
            now=NOW,
            content_key=content_key,
        )
        return resigned(grant, COLLECTIVE, **changes)

    def with_release(self, release: bytes, /, data: bytes | None = None, **in_grant: object) -> "Exchange":
        """Another release, with a fitting grant: what the collective itself could answer."""
        return self.with_answer(release=release, grant=self.granted(release, **in_grant), blob=data)  # type: ignore[arg-type]

    def with_plaintext(self, plaintext: bytes, content_key: bytes = CONTENT_KEY, **in_release: object) -> "Exchange":
        """Any content at all, properly sealed, released and granted by the collective; ``in_release``: other fields of
        its release."""
        ciphertext = sealing.encrypt(content_key, plaintext)
        contents = {"plaintext": content_of(plaintext), "ciphertext": content_of(ciphertext)}
        release = resigned(self.answer.release, COLLECTIVE, **(contents | in_release))
        grant = self.granted(release, content_key=content_key)
        return self.with_answer(release=release, grant=grant, blob=ciphertext)

    def verify(self, **changes: object) -> VerifiedLearngene:
        """``verify_bundle`` as the individual would call it; ``changes`` replace arguments."""
        arguments: dict[str, object] = {
            "expectation": self.expectation,
            "seen": (),
            "trust": TRUST,
            "policy": INDIVIDUAL_POLICY,
            "key": ENCRYPTION,
            "now": NOW,
        }
        return verify_bundle(*self.answer, **(arguments | changes))  # type: ignore[arg-type]
