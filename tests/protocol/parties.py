"""Two parties and a small learngene for the tests of the protocol: all made from seeds, times from one constant."""

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from protocol.architecture import Architecture, Block, Form, InputContract
from protocol.audit import Crossings
from protocol.bundle import Answer, CollectiveDesk, IndividualDesk
from protocol.keys import SigningKey
from protocol.learngene import FisherDescription, Learngene
from protocol.ledger import CollectiveLedger, IndividualLedger
from protocol.policy import Policy
from protocol.trust import TrustStore
from protocol.verification import Expectation, VerifiedLearngene, verify_bundle

NOW = 1_800_000_000
RUN = "0123456789abcdef" * 2
OTHER_RUN = "f" * 32
COLLECTIVE = SigningKey.from_seed(b"c" * 32)
INDIVIDUAL = SigningKey.from_seed(b"i" * 32)
OTHER_INDIVIDUAL = SigningKey.from_seed(b"j" * 32)
STRANGER = SigningKey.from_seed(b"s" * 32)
TRUST = (
    TrustStore()
    .with_key(COLLECTIVE.public_hex, "collective", "collective")
    .with_key(INDIVIDUAL.public_hex, "individual", "individual-1")
    .with_key(OTHER_INDIVIDUAL.public_hex, "individual", "individual-2")
)
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


@dataclass
class Site:
    """One party's state folder; ``collective`` and ``individual`` open it anew, as a restarted node does."""

    folder: Path
    run_id: str = RUN
    now: int = NOW
    opened: list[CollectiveLedger | IndividualLedger] = field(default_factory=list)

    def collective(self, key: SigningKey = COLLECTIVE, policy: Policy = COLLECTIVE_POLICY) -> CollectiveDesk:
        ledger = CollectiveLedger(self.folder)
        self.opened.append(ledger)
        return CollectiveDesk(
            key=key,
            trust=TRUST,
            ledger=ledger,
            policy=policy,
            run_id=self.run_id,
            crossings=Crossings(self.folder / "crossings.jsonl", "collective", lambda: self.now),
        )

    def individual(self, key: SigningKey = INDIVIDUAL, policy: Policy = INDIVIDUAL_POLICY) -> IndividualDesk:
        ledger = IndividualLedger(self.folder)
        self.opened.append(ledger)
        return IndividualDesk(
            key=key,
            trust=TRUST,
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

    def verify(self, **changes: object) -> VerifiedLearngene:
        """``verify_bundle`` as the individual would call it; ``changes`` replace arguments."""
        arguments: dict[str, object] = {
            "expectation": self.expectation,
            "seen": (),
            "trust": TRUST,
            "policy": INDIVIDUAL_POLICY,
            "now": NOW,
        }
        return verify_bundle(*self.answer, **(arguments | changes))  # type: ignore[arg-type]
