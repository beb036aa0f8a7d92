"""The collective's ledger: durable before the next send, one chain without gap or fork."""

import sqlite3
import stat
from pathlib import Path

import pytest

from protocol.digest import digest_of
from protocol.errors import EquivocationError, InputError, StorageFailedError, WrongAudienceError
from protocol.exchange import content_keys
from protocol.exchange.collective_ledger import CollectiveLedger
from protocol.exchange.individual_ledger import IndividualLedger
from protocol.exchange.verification import (
    VerifiedRequest,
    verify_request,
)
from protocol.messages.payloads import NO_RELEASE
from protocol.trust.signed_trust import TrustSeen
from tests.protocol.exchange.ledgers import alter, release
from tests.protocol.parties import (
    COLLECTIVE,
    INDIVIDUAL,
    NOW,
    RUN,
    TRUST,
    Exchange,
    content_key,
    resigned,
)


def verified_request(ledger: CollectiveLedger, request: bytes) -> VerifiedRequest:
    return verify_request(
        request,
        trust=TRUST,
        run_id=RUN,
        audience=COLLECTIVE.keyid,
        known=lambda keyid, nonce: ledger.request_with_nonce(RUN, keyid, nonce),
        now=NOW,
    )


def test_the_database_syncs_at_every_commit_and_is_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, connect = [], sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *given, **more: made.append(connect(*given, **more)) or made[-1])
    ledger = CollectiveLedger(tmp_path / "state")
    (connection,) = made
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
        alter(tmp_path, "UPDATE releases SET key_name = ?", key.name)


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
    alter(tmp_path, "UPDATE releases SET envelope = x'00' WHERE withdrawn = 0")
    assert [stored.digest for stored in again.withdrawn(RUN)] == [first.digest]


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
