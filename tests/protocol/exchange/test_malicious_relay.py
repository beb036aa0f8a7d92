"""A malicious relay over 2,000 schedules of real endpoints: never a wrong state, never a bundle applied twice.

A schedule that fails names its seed; ``run_schedule(folder, seed)`` plays it again, but for the randomness in HPKE.
"""

import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path

import pytest

from protocol.errors import RevokedKeyError
from protocol.exchange import collective_endpoint, verification
from protocol.exchange.collective_endpoint import CollectiveEndpoint
from protocol.exchange.collective_ledger import CollectiveLedger
from protocol.exchange.individual_endpoint import IndividualEndpoint
from protocol.exchange.individual_ledger import IndividualLedger
from protocol.exchange.ledger_database import LedgerDatabase
from protocol.messages import envelope, payloads
from protocol.trust.role import Role
from protocol.trust.trust_store import TrustedKey, TrustStore
from tests.protocol.plain_ledger import memory_folder
from tests.protocol.relay_simulator import ViolationError, run_schedule

SCHEDULES, ALL_SCHEDULES = 800, 4000
#: Within so many schedules a weakened party must be caught; the whole ones pass all of them.
ENOUGH = 300

#: What changes or misdirects bytes, and is refused wherever they are not known already.
MALICE = (
    "withhold",
    "replay",
    "reorder",
    "duplicate",
    "swap",
    "truncate",
    "extend",
    "flip",
    "cross_runs",
    "cross_parties",
    "cross_kinds",
    "forge",
)
#: What only happens to honest parties or by them.
CIRCUMSTANCES = ("publish", "withdraw", "rotate", "clock", "restart", "request")
CODES = {
    "too_large",
    "malformed",
    "unknown_key",
    "revoked_key",
    "bad_signature",
    "wrong_run",
    "wrong_audience",
    "expired",
    "rollback",
    "digest_mismatch",
    "policy_denied",
}

Tally = Counter[tuple[str, str]]


@pytest.fixture(scope="module")
def memory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder in memory, where there is one: the ledgers sync after every step."""
    usual = tmp_path_factory.getbasetemp()
    with (
        pytest.MonkeyPatch.context() as patch,
        tempfile.TemporaryDirectory(prefix="learngene-schedules-", dir=memory_folder() or usual) as folder,
    ):
        # Strict reading is a pure function of bytes, tested elsewhere; the same bytes come again and again.
        patch.setattr(payloads, "decode", lru_cache(payloads.decode))
        patch.setattr(envelope, "parse", lru_cache(envelope.parse))
        yield Path(folder)


@pytest.fixture(scope="module")
def tally(memory: Path) -> Tally:
    """What came of all the schedules; that none of them was violated is already proven when this returns."""
    total: Tally = Counter()
    for seed in range(SCHEDULES):
        total.update(run_schedule(memory, seed))
    return total


def test_after_every_schedule_an_honest_delivery_succeeds(tally: Tally) -> None:
    assert tally["the last delivery", "accepted"] + tally["the last delivery", "known"] == SCHEDULES
    assert tally["the last delivery", "accepted"] > SCHEDULES // 2


@pytest.mark.exhaustive
def test_no_further_schedule_is_violated_either(memory: Path) -> None:
    for seed in range(SCHEDULES, ALL_SCHEDULES):
        assert run_schedule(memory, seed)


def test_honest_deliveries_were_accepted_all_along(tally: Tally) -> None:
    assert tally["carry", "accepted"] > 2 * SCHEDULES
    assert all(tally[name, "accepted"] > SCHEDULES // 20 for name in CIRCUMSTANCES)


@pytest.mark.parametrize("action", MALICE)
def test_every_kind_of_malice_was_tried_and_refused(tally: Tally, action: str) -> None:
    assert tally[action, "refused"] >= SCHEDULES // 10, tally


@pytest.mark.parametrize("action", ["duplicate", "replay", "reorder", "swap"])
def test_what_is_committed_already_is_answered_again_and_not_applied_again(tally: Tally, action: str) -> None:
    assert tally[action, "known"] >= SCHEDULES // 40


@pytest.mark.parametrize(
    "action", ["truncate", "extend", "flip", "cross_runs", "cross_parties", "cross_kinds", "forge"]
)
def test_nothing_that_was_changed_or_misdirected_ever_brought_anything_new(tally: Tally, action: str) -> None:
    assert tally[action, "accepted"] == 0


def test_messages_were_lost_and_parties_fell_in_the_middle(tally: Tally) -> None:
    assert tally["drop", "dropped"] >= SCHEDULES // 10
    assert tally["cut", "cut"] >= SCHEDULES // 4


def test_refusals_of_all_kinds_occurred(tally: Tally) -> None:
    assert {word for (what, word), number in tally.items() if what == "refused" and number >= 5} >= CODES


def nothing(*_: object, **__: object) -> None:
    """In the place of a step of the verification."""


def key_for_in_spite_of_revocation(self: TrustStore, keyid: str, role: Role) -> TrustedKey:
    """A trust store that still believes what it has revoked."""
    try:
        return KEY_FOR(self, keyid, role)
    except RevokedKeyError:
        return next(key for key in self.revoked if key.keyid == keyid)


KEY_FOR = TrustStore.key_for


def what_the_clock_says(
    ledger: LedgerDatabase, now: int, remember: Callable[..., int] = LedgerDatabase.time_after
) -> int:
    """Remembered, and not used."""
    remember(ledger, now)
    return now


WEAKENED: dict[str, tuple[object, str, Callable[..., object]]] = {
    "signatures are not checked": (envelope, "check_signature", nothing),
    "revoked keys are believed": (TrustStore, "key_for", key_for_in_spite_of_revocation),
    "the envelopes need not agree": (verification, "_check_agreement", nothing),
    "nothing need have been requested": (verification, "_check_requested", nothing),
    "nothing is ever past its time": (verification, "_check_time", nothing),
    "time goes back where the clock does": (LedgerDatabase, "time_after", what_the_clock_says),
    "the chain is not looked at": (verification, "check_chain", nothing),
    "anybody's message to anybody": (verification, "_check_addressed", nothing),
    "the individual stores everything again": (IndividualLedger, "_is_whole", lambda *_: False),
    "the individual does not go back after a refusal": (IndividualLedger, "refused", nothing),
    "the individual forgets what is withdrawn": (IndividualLedger, "_withdraw", staticmethod(nothing)),
    "the collective does not write down its grants": (CollectiveLedger, "add_grant", nothing),
    "the collective forgets what it withdrew": (CollectiveLedger, "withdraw", nothing),
    "what does not hold any more is sent again": (collective_endpoint, "holds", lambda *_: True),
    "stale answers are repeated": (CollectiveEndpoint, "_still_answers", lambda *_: True),
    "a former key of the collective is written to": (IndividualEndpoint, "_is_between", lambda *_: True),
}
#: A second step of the same kind, which would stop it too.
BESIDES: dict[str, tuple[object, str, Callable[..., object]]] = {
    "a former key of the collective is written to": (IndividualEndpoint, "_is_partner", lambda *_: True),
}


def first_violation(folder: Path) -> str:
    """What the first schedules catch, in words; empty: nothing."""
    for seed in range(ENOUGH):
        try:
            run_schedule(folder, seed)
        except ViolationError as violation:
            # By an expectation, that is, and not because the weakened code fell over.
            return str(violation) if isinstance(violation.__cause__, ViolationError) else ""
    return ""


@pytest.mark.parametrize("weakness", WEAKENED)
def test_a_weakened_party_is_caught(memory: Path, monkeypatch: pytest.MonkeyPatch, weakness: str) -> None:
    """The harness can fail: with one step missing, one of the first schedules is violated."""
    run_schedule(memory, 0)
    for weakened in (WEAKENED, BESIDES):
        if weakness in weakened:
            monkeypatch.setattr(*weakened[weakness])
    assert first_violation(memory), f"{weakness}, and {ENOUGH} schedules saw nothing of it"


def test_a_failing_schedule_names_its_seed(memory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(envelope, "check_signature", nothing)
    first, again = first_violation(memory), first_violation(memory)
    assert first.startswith("seed ")
    assert first.split(":")[0] == again.split(":")[0]
