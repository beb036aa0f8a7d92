"""Times a round with very many individuals at one relay beside a round with few: time and memory for each of them."""

import hashlib
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from protocol.exchange.audit import Crossings
from protocol.exchange.collective_endpoint import Answer, CollectiveEndpoint
from protocol.exchange.collective_ledger import CollectiveLedger
from protocol.exchange.individual_endpoint import IndividualEndpoint
from protocol.exchange.individual_ledger import IndividualLedger
from protocol.keys.encryption_key import EncryptionKey
from protocol.keys.party_keys import NodeKeys
from protocol.keys.signing_key import SigningKey
from protocol.learngene.architecture import form_named
from protocol.node.events import Observer
from protocol.transport.frame import Frame
from protocol.transport.relay import run_round
from protocol.trust.policy import Policy
from protocol.trust.trust_store import TrustStore
from sims.bench.made_bundle import COLLECTIVE, CONTENT_KEY, NOW, RUN, architecture_of, random_learngene, trust_with
from sims.bench.memory import growth_elsewhere, print_growth
from sims.bench.rows import Clock, Comparison, Row, compare, seconds_of

FEW, MANY = 10, 1000
#: Bytes of the learngene: of a network as wide as that of ``quick``.
_SIZE = 1_000_000
_FORM = "paper"


class _Sites:
    """All sites of a round in one process, each with a ledger of its own on disk. Work is done at once: what is
    measured is what the protocol costs."""

    def __init__(self, individuals: int, folder: Path) -> None:
        keys = [SigningKey.from_seed(hashlib.sha256(b"site %d" % number).digest()) for number in range(individuals)]
        self._trust: TrustStore = trust_with(keys)
        self._folder = folder
        self._collective = self._endpoint_of_the_collective()
        self._individuals: list[tuple[SigningKey, EncryptionKey, Path]] = []
        for number, key in enumerate(keys):
            own = folder / f"individual-{number}"
            own.mkdir(mode=0o700)
            self._individuals.append((key, EncryptionKey.generate("x25519"), own))

    def exchange(self, node: int, command: Frame) -> Frame:
        """What the relay asks of node ``node``, and its answer; node 0 is the collective."""
        if command.name in ("status", "evolve", "adapt"):
            role, party = ("collective", "collective") if node == 0 else ("individual", f"individual-{node:06d}")
            job = "evolve" if node == 0 else "adapt"
            return Frame("status", fields={"role": role, "party": party, "job": job, "state": "done"})
        return self._of_the_collective(command) if node == 0 else self._of_an_individual(node - 1, command)

    def _of_the_collective(self, command: Frame) -> Frame:
        if command.name == "receipt":
            self._collective.accept_receipt(command.parts["receipt"], NOW)
            return Frame("accepted")
        answer = self._collective.answer_request(command.parts["request"], NOW)
        assert isinstance(answer, Answer)
        return Frame("bundle", parts={"release": answer.release, "grant": answer.grant, "blob": answer.blob})

    def _of_an_individual(self, number: int, command: Frame) -> Frame:
        key, encryption, own = self._individuals[number]
        ledger = IndividualLedger(own)
        try:
            endpoint = IndividualEndpoint(
                keys=NodeKeys(key, encryption),
                trust=lambda: self._trust,
                ledger=ledger,
                policy=Policy.for_role("individual"),
                run_id=RUN,
                crossings=Crossings(own / "crossings.jsonl", f"individual-{number}", lambda: NOW),
            )
            if command.name == "request":
                form = form_named(command.fields["form"])
                assert form is not None
                nonce = hashlib.sha256(own.name.encode()).digest()[:16]
                return Frame("request", parts={"request": endpoint.request(form, NOW, nonce)})
            parts = command.parts
            inherited = endpoint.inherit(parts["release"], parts["grant"], parts["blob"], NOW)
            return Frame("receipt", parts={"receipt": inherited.receipt})
        finally:
            ledger.close()

    def _endpoint_of_the_collective(self) -> CollectiveEndpoint:
        own = self._folder / "collective"
        own.mkdir(mode=0o700)
        endpoint = CollectiveEndpoint(
            keys=NodeKeys(COLLECTIVE, encryption=None),
            trust=lambda: self._trust,
            ledger=CollectiveLedger(own),
            policy=Policy.for_role("collective"),
            run_id=RUN,
            crossings=Crossings(own / "crossings.jsonl", "collective", lambda: NOW),
        )
        endpoint.publish(random_learngene(architecture_of(_SIZE), np.random.default_rng(0)), NOW, CONTENT_KEY)
        return endpoint


def round_of(individuals: int, folder: str) -> Callable[[], None]:
    """A round, ready to be run once."""
    sites = _Sites(individuals, Path(folder))
    nodes: Sequence[int] = range(individuals + 1)
    return lambda: run_round(sites.exchange, nodes, [_FORM], lambda _: None, time.sleep, lambda: None)


def measure(repeats: int, clock: Clock, observe: Observer, many: int = MANY) -> list[Row]:
    """The rows of ``learngene bench scale``.

    Args:
        repeats: of everything, each side in turn.
        observe: progress.
        many: individuals of the large round.
    """
    beside = f"each of {many:,} individuals at one relay, beside each of {FEW}"
    sides: tuple[tuple[str, str, Callable[[int], float]], ...] = (
        ("time", "ms", partial(_milliseconds, clock=clock)),
        ("memory", "kB", _kilobytes),
    )
    comparisons = [
        Comparison(f"{what} for {beside}", partial(each, many), partial(each, FEW), unit, "at most 1.1")
        for what, unit, each in sides
    ]
    return compare(comparisons, repeats, observe)


def _milliseconds(individuals: int, clock: Clock) -> float:
    with tempfile.TemporaryDirectory(prefix="learngene-bench-") as folder:
        return 1000 * seconds_of(round_of(individuals, folder), clock) / individuals


def _kilobytes(individuals: int) -> float:
    """In a process that has done nothing else."""
    return growth_elsewhere(__name__, str(individuals)) / 1000 / individuals


def _main(individuals: int) -> None:
    with tempfile.TemporaryDirectory(prefix="learngene-bench-") as folder:
        print_growth(round_of(individuals, folder))


if __name__ == "__main__":
    _main(int(sys.argv[1]))
