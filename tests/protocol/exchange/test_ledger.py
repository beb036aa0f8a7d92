"""The ledgers: durable before the next send, one chain, and only the transitions that the states allow."""

import dataclasses
import sqlite3
import stat
from pathlib import Path

import pytest

from protocol.digest import digest_of
from protocol.errors import EquivocationError, InputError, RollbackError, StorageFailedError, WrongAudienceError
from protocol.exchange import content_keys
from protocol.exchange.collective_ledger import CollectiveLedger
from protocol.exchange.content_keys import ClosedKey
from protocol.exchange.individual_ledger import MOST_EVIDENCE, IndividualLedger, Inherited, State
from protocol.exchange.verification import (
    VerifiedEnvelopes,
    VerifiedRequest,
    open_sealed,
    verify_content,
    verify_envelopes,
    verify_request,
)
from protocol.messages.builders import make_release
from protocol.messages.payloads import NO_RELEASE, Request
from protocol.trust.signed_trust import TrustSeen
from tests.protocol.parties import (
    COLLECTIVE,
    COLLECTIVE_POLICY,
    ENCRYPTION,
    INDIVIDUAL,
    INDIVIDUAL_POLICY,
    NOW,
    RUN,
    TRUST,
    Exchange,
    architecture,
    content_key,
    learngene,
    opened,
    resigned,
)


def release(seq: int, prev: str, seed: int = 0) -> tuple[bytes, ClosedKey, bytes]:
    """Envelope, closed content key and sealed blob, as ``add_release`` takes them."""
    key = content_key(seed)
    data, sealed = make_release(
        learngene(seed),
        run_id=RUN,
        seq=seq,
        prev=prev,
        key=COLLECTIVE,
        key_epoch=1,
        policy_sha256=COLLECTIVE_POLICY.sha256,
        now=NOW,
        content_key=key,
    )
    return data, content_keys.close(COLLECTIVE, key, digest_of(data)), sealed


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
    assert {file.name for file in files} == {"ledger.db", "ledger.db-wal", "ledger.db-shm", "ledger.db.lock"}
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
    assert second.blob(stored) == release(1, NO_RELEASE)[2]


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
    ledger.keep_blob(stored, release(1, NO_RELEASE)[2])
    assert ledger.blob(stored) == release(1, NO_RELEASE)[2]


def test_a_content_key_seals_one_release_only(tmp_path: Path) -> None:
    """GCM with one key and one nonce for two plaintexts gives both of them away."""
    ledger = CollectiveLedger(tmp_path)
    first = ledger.add_release(*release(1, NO_RELEASE))
    data, key, sealed = release(2, first.digest, seed=1)
    with pytest.raises(ValueError, match="one release only"):
        ledger.add_release(data, content_keys.close(COLLECTIVE, content_key(0), digest_of(data)), sealed)
    assert ledger.releases(RUN) == [first]
    assert len(list((tmp_path / "releases").iterdir())) == 1
    ledger.add_release(data, key, sealed)
    with pytest.raises(sqlite3.IntegrityError, match="key_name"):
        ledger._database.execute("UPDATE releases SET key_name = ?", (key.name,))


def test_the_content_key_is_not_in_what_is_printed(tmp_path: Path) -> None:
    stored = CollectiveLedger(tmp_path).add_release(*release(1, NO_RELEASE, seed=7))
    assert content_keys.reopen(COLLECTIVE, stored.closed_key, stored.digest) == content_key(7)
    assert repr(stored.closed_key) not in repr(stored)
    assert "closed_key" not in repr(stored)


def test_a_withdrawal_lasts(tmp_path: Path) -> None:
    ledger = CollectiveLedger(tmp_path)
    first = ledger.add_release(*release(1, NO_RELEASE))
    second = ledger.add_release(*release(2, first.digest, seed=1))
    assert ledger.withdrawn(RUN) == []
    for _ in range(2):
        assert [stored.digest for stored in ledger.withdraw(RUN, first.digest)] == [first.digest]
    with pytest.raises(InputError, match="no release"):
        ledger.withdraw("f" * 32, second.digest)
    again = CollectiveLedger(tmp_path)
    assert [stored.digest for stored in again.withdrawn(RUN)] == [first.digest]
    assert again.withdrawn("f" * 32) == []
    assert [stored.withdrawn for stored in again.releases(RUN)] == [True, False]
    assert again.release(second.digest) == second
    # Only those are read, however long the chain is.
    again._database.execute("UPDATE releases SET envelope = x'00' WHERE withdrawn = 0")
    assert [stored.digest for stored in again.withdrawn(RUN)] == [first.digest]


def verified_request(ledger: CollectiveLedger, request: bytes) -> VerifiedRequest:
    return verify_request(
        request,
        trust=TRUST,
        run_id=RUN,
        audience=COLLECTIVE.keyid,
        known=lambda keyid, nonce: ledger.request_with_nonce(RUN, keyid, nonce),
        now=NOW,
    )


def test_an_answer_is_replaced_only_by_who_knows_it_and_is_kept(tmp_path: Path, exchange: Exchange) -> None:
    ledger = CollectiveLedger(tmp_path)
    request = verified_request(ledger, exchange.request)
    first = ledger.add_release(*release(1, NO_RELEASE))
    second = ledger.add_release(*release(2, first.digest, seed=1))
    with pytest.raises(StorageFailedError, match="another process"):
        ledger.add_grant(request, first, b"first", instead_of=b"one that there never was")
    ledger.add_grant(request, first, b"first")
    for instead_of in (None, b"other"):
        with pytest.raises(StorageFailedError, match="another process"):
            ledger.add_grant(request, second, b"second", instead_of=instead_of)
    assert ledger.grant(request.digest) == (b"first", first)
    ledger.add_grant(request, second, b"second", instead_of=b"first")
    assert ledger.grant(request.digest) == (b"second", second)
    # The same release once more is the latest again; what was granted stays granted.
    ledger.add_grant(request, first, b"third", instead_of=b"second")
    assert CollectiveLedger(tmp_path).grant(request.digest) == (b"third", first)
    assert ledger.granted(first.digest) == ledger.granted(second.digest) == (INDIVIDUAL.keyid,)
    assert ledger.request_with_nonce(RUN, INDIVIDUAL.keyid, request.payload.nonce) == request.digest


def test_a_nonce_answers_one_request_whoever_verified_the_other_one_meanwhile(
    tmp_path: Path, exchange: Exchange
) -> None:
    """Both requests were verified before either was answered, as by two processes."""
    ledger = CollectiveLedger(tmp_path)
    first = ledger.add_release(*release(1, NO_RELEASE))
    asked, again = (
        verified_request(ledger, data)
        for data in (exchange.request, resigned(exchange.request, INDIVIDUAL, form="paper"))
    )
    ledger.add_grant(asked, first, b"first")
    with pytest.raises(EquivocationError, match="nonce of an earlier request"):
        ledger.add_grant(again, first, b"second")
    assert ledger.grant(again.digest) is None
    assert ledger.grant(asked.digest) == (b"first", first)


def test_the_trust_store_that_was_believed_is_remembered(tmp_path: Path) -> None:
    for ledger_type in (CollectiveLedger, IndividualLedger):
        folder = tmp_path / ledger_type.__name__
        assert ledger_type(folder).trust_seen() is None
        for version in (3, 4):
            seen = TrustSeen(version=version, digest="1" * 64, root="2" * 64, pinned="3" * 64)
            ledger_type(folder).remember_trust(seen)
            assert ledger_type(folder).trust_seen() == seen


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
    with pytest.raises(StorageFailedError, match=r"format 9.*use the version that made it, or begin with a new"):
        CollectiveLedger(tmp_path)


def test_what_is_no_database_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "ledger.db").write_bytes(b"no database at all, but long enough to look at" * 50)
    with pytest.raises(StorageFailedError, match="cannot open the ledger"):
        IndividualLedger(tmp_path)


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


def another_release(exchange: Exchange) -> Exchange:
    """The release that follows, granted to the same request, with the same content."""
    first = exchange.answer.release
    return exchange.with_release(resigned(first, COLLECTIVE, seq=2, prev=digest_of(first)))


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
    ledger._database.execute(
        "INSERT INTO inherited VALUES (?, 1, 9, 'condensed', ?, ?, NULL)", (RUN, "1" * 64, "2" * 64)
    )
    with pytest.raises(RollbackError):
        ledger.commit(learngene)
    assert list(files.iterdir()) == []
    ledger._database.execute("DELETE FROM inherited")
    ledger.commit(learngene)
    assert [path.name for path in files.iterdir()] == [learngene.release_digest]


def test_a_receipt_for_what_was_never_inherited_is_an_error(tmp_path: Path, exchange: Exchange) -> None:
    ledger, inherited = committed(tmp_path, exchange)
    for run_id, never in (("f" * 32, inherited), (RUN, dataclasses.replace(inherited, release="1" * 64))):
        with pytest.raises(StorageFailedError, match="holds no learngene of the release"):
            ledger.acknowledged(run_id, never, b"receipt")
    assert ledger.state(RUN, "condensed") is State.COMMITTED
    assert ledger.inherited(RUN, inherited.release) == inherited


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
    ledger._database.execute(insert, (RUN, 1, 2**31, "1" * 64, "2" * 64))
    latest = ledger.latest(RUN, "condensed")
    assert latest is not None
    assert latest.seq == 2**31
    ledger._database.execute(insert, (RUN, 2, 2, "3" * 64, "4" * 64))
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
        ledger._database.execute(insert, (RUN, epoch, seq, "1" * 64, "2" * 64))
        with pytest.raises(RollbackError):
            ledger.commit(learngene)
        assert ledger.state(RUN, "condensed") is State.VERIFIED
        ledger._database.execute("DELETE FROM inherited")
    # The number of another form says nothing about this one.
    ledger._database.execute(insert.replace("condensed", "paper"), (RUN, 1, 9, "1" * 64, "2" * 64))
    ledger.commit(learngene)
