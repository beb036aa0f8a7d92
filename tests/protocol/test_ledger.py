"""The ledgers: durable before the next send, one chain, and only the transitions that the states allow."""

import sqlite3
import stat
from pathlib import Path

import pytest

from protocol import envelope
from protocol.bundle import make_release
from protocol.errors import EquivocationError, RefusedError, RollbackError, StorageFailedError, WrongAudienceError
from protocol.ledger import CollectiveLedger, IndividualLedger, Inherited, State
from protocol.messages import NO_RELEASE
from protocol.verification import VerifiedEnvelopes, verify_content, verify_envelopes
from tests.protocol.parties import (
    COLLECTIVE,
    COLLECTIVE_POLICY,
    INDIVIDUAL,
    INDIVIDUAL_POLICY,
    NOW,
    RUN,
    TRUST,
    Exchange,
    learngene,
)


def release(seq: int, prev: str, seed: int = 0) -> tuple[bytes, bytes]:
    return make_release(
        learngene(seed), run_id=RUN, seq=seq, prev=prev, key=COLLECTIVE, key_epoch=1, policy=COLLECTIVE_POLICY, now=NOW
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


def test_the_database_syncs_at_every_commit_and_is_private(tmp_path: Path) -> None:
    ledger = CollectiveLedger(tmp_path / "state")
    connection = ledger._database
    assert connection.execute("PRAGMA synchronous").fetchone() == (2,)
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    files = list((tmp_path / "state").glob("ledger.db*"))
    assert len(files) == 3
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
    assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o700
    ledger.close()


def test_a_release_is_there_for_a_second_connection_at_once(tmp_path: Path) -> None:
    """The first is never closed, as after kill -9."""
    first = CollectiveLedger(tmp_path)
    stored = first.add_release(*release(1, NO_RELEASE))
    second = CollectiveLedger(tmp_path)
    assert second.latest(RUN) == stored
    assert second.latest(RUN, "condensed") == stored
    assert second.latest(RUN, "paper") is None
    assert second.latest("f" * 32) is None
    assert second.blob(stored) == release(1, NO_RELEASE)[1]


def test_the_chain_of_releases_has_no_gap_and_no_fork(tmp_path: Path) -> None:
    ledger = CollectiveLedger(tmp_path)
    first = ledger.add_release(*release(1, NO_RELEASE))
    for seq, prev in ((1, NO_RELEASE), (3, first.digest), (2, "1" * 64)):
        with pytest.raises(EquivocationError):
            ledger.add_release(*release(seq, prev, seed=1))
    second = ledger.add_release(*release(2, first.digest, seed=1))
    assert ledger.releases(RUN) == [first, second]


def test_a_blob_that_was_changed_on_disk_is_not_sent(tmp_path: Path) -> None:
    ledger = CollectiveLedger(tmp_path)
    stored = ledger.add_release(*release(1, NO_RELEASE))
    (path,) = (tmp_path / "releases").iterdir()
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    with pytest.raises(StorageFailedError, match="changed on disk"):
        ledger.blob(stored)
    path.unlink()
    with pytest.raises(StorageFailedError, match="cannot read"):
        ledger.blob(stored)
    ledger.keep_blob(stored, release(1, NO_RELEASE)[1])
    assert ledger.blob(stored) == release(1, NO_RELEASE)[1]


def test_a_receipt_needs_a_grant(tmp_path: Path) -> None:
    ledger = CollectiveLedger(tmp_path)
    stored = ledger.add_release(*release(1, NO_RELEASE))
    with pytest.raises(WrongAudienceError):
        ledger.add_receipt(INDIVIDUAL.keyid, stored.digest, b"receipt")
    assert ledger.receipts(stored.digest) == {}


def test_another_format_is_refused(tmp_path: Path) -> None:
    CollectiveLedger(tmp_path).close()
    with sqlite3.connect(tmp_path / "ledger.db") as database:
        database.execute("PRAGMA user_version = 9")
    with pytest.raises(StorageFailedError, match="format 9"):
        CollectiveLedger(tmp_path)


def test_what_is_no_database_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "ledger.db").write_bytes(b"no database at all, but long enough to look at" * 50)
    with pytest.raises(StorageFailedError, match="cannot open the ledger"):
        IndividualLedger(tmp_path)


def test_the_states_of_an_exchange(tmp_path: Path, exchange: Exchange) -> None:
    ledger = IndividualLedger(tmp_path)
    assert ledger.state(RUN, "condensed") is State.IDLE
    ledger.requested(RUN, "condensed", exchange.request, NOW + 9)
    assert ledger.state(RUN, "condensed") is State.REQUESTED
    assert ledger.open_requests(RUN) == {envelope.digest(exchange.request): "condensed"}

    envelopes = envelopes_of(exchange)
    ledger.received(envelopes)
    assert ledger.state(RUN, "condensed") is State.RECEIVED
    ledger.refused(envelopes)
    assert ledger.state(RUN, "condensed") is State.REQUESTED
    ledger.received(envelopes)

    learngene = verify_content(envelopes, exchange.answer.blob)
    ledger.verified(learngene)
    assert ledger.state(RUN, "condensed") is State.VERIFIED
    assert ledger.latest(RUN, "condensed") is None
    ledger.commit(learngene)
    assert ledger.state(RUN, "condensed") is State.COMMITTED
    assert ledger.open_requests(RUN) == {}

    inherited = ledger.latest(RUN, "condensed")
    assert inherited is not None
    assert ledger.acknowledged(RUN, inherited, b"first") == b"first"
    assert ledger.state(RUN, "condensed") is State.ACKED
    assert ledger.acknowledged(RUN, inherited, b"second") == b"first"
    assert ledger.state(RUN, "paper") is State.IDLE
    assert ledger.state("f" * 32, "condensed") is State.IDLE


def test_no_step_can_be_skipped(tmp_path: Path, exchange: Exchange) -> None:
    ledger = IndividualLedger(tmp_path)
    envelopes = envelopes_of(exchange)
    learngene = verify_content(envelopes, exchange.answer.blob)
    with pytest.raises(StorageFailedError):
        ledger.received(envelopes)
    ledger.requested(RUN, "condensed", exchange.request, NOW + 9)
    with pytest.raises(StorageFailedError):
        ledger.verified(learngene)
    ledger.received(envelopes)
    with pytest.raises(StorageFailedError):
        ledger.commit(learngene)
    assert ledger.state(RUN, "condensed") is State.RECEIVED
    assert ledger.latest(RUN, "condensed") is None


def committed(tmp_path: Path, exchange: Exchange) -> tuple[IndividualLedger, Inherited]:
    ledger = IndividualLedger(tmp_path)
    ledger.requested(RUN, "condensed", exchange.request, NOW + 9)
    envelopes = envelopes_of(exchange)
    ledger.received(envelopes)
    learngene = verify_content(envelopes, exchange.answer.blob)
    ledger.verified(learngene)
    ledger.commit(learngene)
    inherited = ledger.latest(RUN, "condensed")
    assert inherited is not None
    return ledger, inherited


def test_a_committed_learngene_is_read_back_by_its_digests(tmp_path: Path, exchange: Exchange) -> None:
    _, inherited = committed(tmp_path, exchange)
    learngene = IndividualLedger(tmp_path).load(inherited)
    assert (learngene.release_bytes, learngene.grant_bytes, learngene.blob) == exchange.answer
    for name in ("release.json", "grant.json", "blob.safetensors"):
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
    ledger.requested(RUN, "condensed", exchange.request, NOW + 9)
    envelopes = envelopes_of(exchange)
    ledger.received(envelopes)
    learngene = verify_content(envelopes, exchange.answer.blob)
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
    folder = tmp_path / "learngenes" / envelope.digest(exchange.answer.release)
    folder.mkdir(parents=True)
    (folder / "blob.safetensors").write_bytes(b"from another time")
    ledger, inherited = committed(tmp_path, exchange)
    assert ledger.load(inherited).blob == exchange.answer.blob


def test_an_older_release_is_never_committed_over_a_newer_one(tmp_path: Path, exchange: Exchange) -> None:
    """The last line of defence, below the verification's own check."""
    ledger = IndividualLedger(tmp_path)
    ledger.requested(RUN, "condensed", exchange.request, NOW + 9)
    envelopes = envelopes_of(exchange)
    ledger.received(envelopes)
    learngene = verify_content(envelopes, exchange.answer.blob)
    ledger.verified(learngene)
    ledger._database.execute("INSERT INTO inherited VALUES (?, 9, 'condensed', ?, ?, NULL)", (RUN, "1" * 64, "2" * 64))
    with pytest.raises(RollbackError):
        ledger.commit(learngene)
    assert ledger.state(RUN, "condensed") is State.VERIFIED
    assert issubclass(RollbackError, RefusedError)
