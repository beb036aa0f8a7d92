"""The individual's ledger: only the transitions that the states allow, and what it inherited."""

import dataclasses
from pathlib import Path

import pytest

from protocol.digest import digest_of
from protocol.errors import EquivocationError, RollbackError, StorageFailedError
from protocol.exchange.individual_ledger import MOST_EVIDENCE, IndividualLedger, Inherited, State
from protocol.exchange.verification import (
    VerifiedEnvelopes,
    open_sealed,
    verify_content,
    verify_envelopes,
)
from protocol.messages.payloads import Request
from tests.protocol.exchange.ledgers import alter
from tests.protocol.parties import (
    COLLECTIVE,
    ENCRYPTION,
    INDIVIDUAL_POLICY,
    NOW,
    RUN,
    TRUST,
    Exchange,
    architecture,
    opened,
    resigned,
)


def envelopes_of(exchange: Exchange) -> VerifiedEnvelopes:
    return verify_envelopes(
        exchange.answer.release,
        exchange.answer.grant,
        expectation=exchange.expectation,
        seen=(),
        trust=TRUST,
        policy=INDIVIDUAL_POLICY,
        now=NOW,
    )


def another_release(exchange: Exchange) -> Exchange:
    """The release that follows, granted to the same request, with the same content."""
    first = exchange.answer.release
    return exchange.with_release(resigned(first, COLLECTIVE, seq=2, prev=digest_of(first)))


def committed(tmp_path: Path, exchange: Exchange) -> tuple[IndividualLedger, Inherited]:
    ledger = IndividualLedger(tmp_path)
    ledger.requested(RUN, "condensed", exchange.request)
    envelopes = envelopes_of(exchange)
    ledger.received(envelopes)
    learngene = verify_content(envelopes, exchange.answer.blob, ENCRYPTION)
    ledger.verified(learngene)
    ledger.commit(learngene)
    inherited = ledger.latest(RUN, "condensed")
    assert inherited is not None
    return ledger, inherited


def test_the_states_of_an_exchange(tmp_path: Path, exchange: Exchange) -> None:
    ledger = IndividualLedger(tmp_path)
    assert ledger.state(RUN, "condensed") is State.IDLE
    ledger.requested(RUN, "condensed", exchange.request)
    assert ledger.state(RUN, "condensed") is State.REQUESTED
    assert ledger.open_requests(RUN) == {digest_of(exchange.request): "condensed"}

    envelopes = envelopes_of(exchange)
    ledger.received(envelopes)
    assert ledger.state(RUN, "condensed") is State.RECEIVED
    ledger.refused(envelopes)
    assert ledger.state(RUN, "condensed") is State.REQUESTED
    ledger.received(envelopes)

    learngene = verify_content(envelopes, exchange.answer.blob, ENCRYPTION)
    ledger.verified(learngene)
    assert ledger.state(RUN, "condensed") is State.VERIFIED
    assert ledger.latest(RUN, "condensed") is None
    ledger.commit(learngene)
    assert ledger.state(RUN, "condensed") is State.COMMITTED
    assert ledger.open_requests(RUN) == {}

    inherited = ledger.latest(RUN, "condensed")
    assert inherited is not None
    for receipt in (b"first", b"second"):
        ledger.acknowledged(RUN, inherited, receipt)
        assert ledger.state(RUN, "condensed") is State.ACKED
        kept = ledger.latest(RUN, "condensed")
        assert kept is not None
        assert kept.receipt == receipt
    assert ledger.state(RUN, "paper") is State.IDLE
    assert ledger.state("f" * 32, "condensed") is State.IDLE


def test_no_step_can_be_skipped(tmp_path: Path, exchange: Exchange) -> None:
    ledger = IndividualLedger(tmp_path)
    envelopes = envelopes_of(exchange)
    learngene = verify_content(envelopes, exchange.answer.blob, ENCRYPTION)
    with pytest.raises(StorageFailedError):
        ledger.received(envelopes)
    ledger.requested(RUN, "condensed", exchange.request)
    with pytest.raises(StorageFailedError):
        ledger.verified(learngene)
    ledger.received(envelopes)
    with pytest.raises(StorageFailedError):
        ledger.commit(learngene)
    assert ledger.state(RUN, "condensed") is State.RECEIVED
    assert ledger.latest(RUN, "condensed") is None


def test_every_step_is_about_the_release_that_was_received_last(tmp_path: Path, exchange: Exchange) -> None:
    """Two answers at once, as when a command works beside the node: neither takes the other's steps."""
    ledger, other = IndividualLedger(tmp_path), another_release(exchange)
    first, second = (verify_content(envelopes_of(one), exchange.answer.blob, ENCRYPTION) for one in (exchange, other))
    ledger.requested(RUN, "condensed", exchange.request)
    ledger.received(envelopes_of(exchange))
    ledger.received(envelopes_of(other))
    for step in (
        lambda: ledger.verified(first),
        lambda: ledger.refused(envelopes_of(exchange)),
    ):
        with pytest.raises(StorageFailedError, match="cannot become"):
            step()
        assert ledger.state(RUN, "condensed") is State.RECEIVED
    ledger.verified(second)
    with pytest.raises(StorageFailedError, match="cannot become COMMITTED with release 1"):
        ledger.commit(first)
    assert ledger.latest(RUN, "condensed") is None
    ledger.commit(second)
    latest = ledger.latest(RUN, "condensed")
    assert latest is not None
    assert latest.release == second.release_digest


def test_of_two_histories_at_one_moment_the_second_is_refused_and_changes_nothing(
    tmp_path: Path, exchange: Exchange
) -> None:
    """Both were verified before either was received, so that nothing that was seen spoke against them."""
    ledger = IndividualLedger(tmp_path)
    other = exchange.with_release(resigned(exchange.answer.release, COLLECTIVE, policy_sha256="1" * 64))
    ledger.requested(RUN, "condensed", exchange.request)
    ledger.received(envelopes_of(exchange))
    with pytest.raises(EquivocationError, match="two releases 1"):
        ledger.received(envelopes_of(other))
    assert [one.digest for one in ledger.seen(RUN)] == [digest_of(exchange.answer.release)]
    ledger.verified(verify_content(envelopes_of(exchange), exchange.answer.blob, ENCRYPTION))


def test_evidence_is_bounded_and_private(tmp_path: Path, exchange: Exchange) -> None:
    ledger = IndividualLedger(tmp_path)
    first = exchange.answer.release
    ledger.requested(RUN, "condensed", exchange.request)
    ledger.received(envelopes_of(exchange))
    assert ledger.keep_evidence(first) == [tmp_path / "evidence" / f"{digest_of(first)}.json"]
    for number in range(MOST_EVIDENCE + 2):
        other = resigned(first, COLLECTIVE, policy_sha256=f"{number:064x}")
        kept = ledger.keep_evidence(other)
        assert [path.read_bytes() for path in kept] == [first, other][: len(kept)]
        assert len(kept) == (2 if number < MOST_EVIDENCE - 1 else 1)
    folder = tmp_path / "evidence"
    assert len(list(folder.iterdir())) == MOST_EVIDENCE
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}


def test_what_may_not_be_committed_touches_no_files(tmp_path: Path, exchange: Exchange) -> None:
    ledger = IndividualLedger(tmp_path)
    learngene = verify_content(envelopes_of(exchange), exchange.answer.blob, ENCRYPTION)
    files = tmp_path / "learngenes"
    with pytest.raises(StorageFailedError, match="cannot become COMMITTED"):
        ledger.commit(learngene)
    assert list(files.iterdir()) == []
    # Nor where the state allows it and another release is in the way.
    ledger.requested(RUN, "condensed", exchange.request)
    ledger.received(envelopes_of(exchange))
    ledger.verified(learngene)
    alter(tmp_path, "INSERT INTO inherited VALUES (?, 1, 9, 'condensed', ?, ?, NULL)", RUN, "1" * 64, "2" * 64)
    with pytest.raises(RollbackError):
        ledger.commit(learngene)
    assert list(files.iterdir()) == []
    alter(tmp_path, "DELETE FROM inherited")
    ledger.commit(learngene)
    assert [path.name for path in files.iterdir()] == [learngene.release_digest]


def test_a_receipt_for_what_was_never_inherited_is_an_error(tmp_path: Path, exchange: Exchange) -> None:
    ledger, inherited = committed(tmp_path, exchange)
    for run_id, never in (("f" * 32, inherited), (RUN, dataclasses.replace(inherited, release="1" * 64))):
        with pytest.raises(StorageFailedError, match="holds no learngene of the release"):
            ledger.acknowledged(run_id, never, b"receipt")
    assert ledger.state(RUN, "condensed") is State.COMMITTED
    assert ledger.inherited(RUN, inherited.release) == inherited


def test_a_committed_learngene_is_read_back_by_its_digests(tmp_path: Path, exchange: Exchange) -> None:
    _, inherited = committed(tmp_path, exchange)
    learngene = IndividualLedger(tmp_path).load(inherited)
    assert (learngene.release_bytes, learngene.grant_bytes, learngene.ciphertext) == exchange.answer
    assert open_sealed(learngene, ENCRYPTION).learngene.architecture == architecture()
    for name in ("release.json", "grant.json", "blob.sealed"):
        path = tmp_path / "learngenes" / inherited.release / name
        data = path.read_bytes()
        path.write_bytes(data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])
        with pytest.raises(StorageFailedError, match="changed on disk"):
            IndividualLedger(tmp_path).load(inherited)
        path.write_bytes(data)
    IndividualLedger(tmp_path).load(inherited)


def test_a_learngene_that_cannot_be_stored_is_not_committed(
    tmp_path: Path, exchange: Exchange, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = IndividualLedger(tmp_path)
    ledger.requested(RUN, "condensed", exchange.request)
    envelopes = envelopes_of(exchange)
    ledger.received(envelopes)
    learngene = verify_content(envelopes, exchange.answer.blob, ENCRYPTION)
    ledger.verified(learngene)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(StorageFailedError, match="No space left"):
            ledger.commit(learngene)
    assert ledger.latest(RUN, "condensed") is None
    assert list((tmp_path / "learngenes").iterdir()) == []
    # The same bundle again mends it.
    ledger.received(envelopes)
    ledger.verified(learngene)
    ledger.commit(learngene)
    assert ledger.latest(RUN, "condensed") is not None


def test_files_without_a_row_are_replaced(tmp_path: Path, exchange: Exchange) -> None:
    """As after a crash between the folder's rename and the row."""
    folder = tmp_path / "learngenes" / digest_of(exchange.answer.release)
    folder.mkdir(parents=True)
    (folder / "blob.sealed").write_bytes(b"from another time")
    ledger, inherited = committed(tmp_path, exchange)
    assert ledger.load(inherited).ciphertext == exchange.answer.blob


def test_what_an_individual_learns_of_withdrawals_lasts(tmp_path: Path, exchange: Exchange) -> None:
    """From the release itself, before its blob has come, or one by one; each run has its own."""
    withdraws = ("1" * 64, "2" * 64)
    answer = exchange.answer
    data = resigned(answer.release, COLLECTIVE, seq=2, prev="2" * 64, withdraws=withdraws)
    grant = resigned(answer.grant, COLLECTIVE, release=digest_of(data))
    ledger = IndividualLedger(tmp_path)
    ledger.requested(RUN, "condensed", exchange.request)
    assert ledger.withdrawn(RUN) == frozenset()
    ledger.received(envelopes_of(exchange.with_answer(release=data, grant=grant)))
    for _ in range(2):
        ledger.withdraw(RUN, "3" * 64)
    ledger.withdraw("f" * 32, "4" * 64)
    again = IndividualLedger(tmp_path)
    assert again.withdrawn(RUN) == {*withdraws, "3" * 64}
    assert again.withdrawn("f" * 32) == {"4" * 64}
    (seen,) = again.seen(RUN)
    assert (seen.key_epoch, seen.seq, seen.prev) == (1, 2, "2" * 64)


def test_the_newest_learngene_is_that_of_the_newest_key(tmp_path: Path, exchange: Exchange) -> None:
    """Whoever stole the key of the first epoch may have signed any number with it."""
    ledger, inherited = committed(tmp_path, exchange)
    insert = "INSERT INTO inherited VALUES (?, ?, ?, 'condensed', ?, ?, NULL)"
    alter(tmp_path, insert, RUN, 1, 2**31, "1" * 64, "2" * 64)
    latest = ledger.latest(RUN, "condensed")
    assert latest is not None
    assert latest.seq == 2**31
    alter(tmp_path, insert, RUN, 2, 2, "3" * 64, "4" * 64)
    latest = ledger.latest(RUN, "condensed")
    assert latest is not None
    assert (latest.key_epoch, latest.seq, latest.release) == (2, 2, "3" * 64)
    assert ledger.inherited(RUN, inherited.release) == inherited


def test_an_open_request_says_between_whom_it_is(tmp_path: Path, exchange: Exchange) -> None:
    ledger = IndividualLedger(tmp_path)
    assert ledger.open_request(RUN, "condensed") is None
    ledger.requested(RUN, "condensed", exchange.request)
    stored = ledger.open_request(RUN, "condensed")
    assert stored is not None
    assert stored.payload == opened(Request, exchange.request)
    assert stored.payload.audience == COLLECTIVE.keyid


def test_an_older_release_is_never_committed_over_a_newer_one(tmp_path: Path, exchange: Exchange) -> None:
    """The last line of defence, below the verification's own check."""
    ledger = IndividualLedger(tmp_path)
    ledger.requested(RUN, "condensed", exchange.request)
    envelopes = envelopes_of(exchange)
    ledger.received(envelopes)
    learngene = verify_content(envelopes, exchange.answer.blob, ENCRYPTION)
    ledger.verified(learngene)
    insert = "INSERT INTO inherited VALUES (?, ?, ?, 'condensed', ?, ?, NULL)"
    for epoch, seq in ((1, 9), (2, 1)):
        alter(tmp_path, insert, RUN, epoch, seq, "1" * 64, "2" * 64)
        with pytest.raises(RollbackError):
            ledger.commit(learngene)
        assert ledger.state(RUN, "condensed") is State.VERIFIED
        alter(tmp_path, "DELETE FROM inherited")
    # The number of another form says nothing about this one.
    alter(tmp_path, insert.replace("condensed", "paper"), RUN, 1, 9, "1" * 64, "2" * 64)
    ledger.commit(learngene)
