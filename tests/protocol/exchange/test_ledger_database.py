"""A ledger that a taken-over node left: only what this program makes is opened, and what is in it is not believed."""

import contextlib
import os
import sqlite3
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from protocol.errors import StorageFailedError
from protocol.exchange.collective_ledger import CollectiveLedger
from protocol.exchange.individual_ledger import IndividualLedger
from protocol.exchange.ledger_database import ADVICE, LAST_SECOND
from protocol.trust.signed_trust import TrustSeen
from tests.protocol.hostile_files import ANY, NO_FILE, plant, within
from tests.protocol.made_node import tree
from tests.protocol.parties import NOW, RUN, Exchange, Site, content_key, learngene

DIGEST = "a" * 64
Ledger = type[CollectiveLedger] | type[IndividualLedger]


def refusal(work: Callable[[], object]) -> str:
    """Why it is refused, in one line that says what to do; at once, and with little memory."""
    with within(20), pytest.raises(StorageFailedError) as refused:
        work()
    text = str(refused.value)
    assert "\n" not in text
    assert "; " in text
    return text


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    path = tmp_path / "victim"
    path.write_bytes(b"another party's")
    return path


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """Of a collective that has published, and is ended."""
    site = Site(tmp_path / "state")
    site.collective().publish(learngene(), NOW, content_key(0))
    site.opened[0].close()
    return site.folder


@contextlib.contextmanager
def changed(state: Path) -> "contextlib.AbstractContextManager[sqlite3.Connection]":  # type: ignore[misc]
    """The database, for whoever may write into it as it likes."""
    database = sqlite3.connect(state / "ledger.db", isolation_level=None)
    try:
        yield database
    finally:
        database.close()


def rewrite(database: sqlite3.Connection, table: str, before: str, after: str) -> None:
    """Change what the schema says of a table, and nothing else."""
    database.execute("PRAGMA writable_schema = ON")
    database.execute("UPDATE sqlite_master SET sql = replace(sql, ?, ?) WHERE name = ?", (before, after, table))
    database.execute("PRAGMA writable_schema = OFF")


def write_loosely(state: Path, table: str, change: str) -> None:
    """Write into a STRICT table what it does not take; its schema is the same to the letter before and after."""
    with changed(state) as database:
        (sql,) = database.execute("SELECT sql FROM sqlite_master WHERE name = ?", (table,)).fetchone()
        rewrite(database, table, "STRICT", "")
    with changed(state) as database:
        database.execute(f"UPDATE {table} SET {change}")
        rewrite(
            database,
            table,
            database.execute("SELECT sql FROM sqlite_master WHERE name = ?", (table,)).fetchone()[0],
            sql,
        )


@pytest.mark.parametrize("kind", ANY)
@pytest.mark.parametrize("name", ["ledger.db", "ledger.db-journal", "ledger.db-wal", "ledger.db-shm"])
def test_what_is_planted_in_place_of_a_file_is_refused(state: Path, victim: Path, kind: str, name: str) -> None:
    plant(kind, state / name, victim)
    with contextlib.ExitStack() as opened:
        if name in ("ledger.db-wal", "ledger.db-shm") and kind in ("garbage", "deep JSON"):
            # SQLite itself reads no more of these than fits the database.
            opened.callback(CollectiveLedger(state).close)
        else:
            refusal(lambda: CollectiveLedger(state))
    assert victim.read_bytes() == b"another party's"


@pytest.mark.parametrize("kind", NO_FILE)
@pytest.mark.parametrize(("ledger", "name"), [(CollectiveLedger, "releases"), (IndividualLedger, "learngenes")])
def test_the_folder_of_blobs_is_no_link(tmp_path: Path, victim: Path, ledger: Ledger, name: str, kind: str) -> None:
    (tmp_path / "state").mkdir()
    if kind == "a folder":
        (tmp_path / "state" / name).symlink_to(tmp_path)
    else:
        plant(kind, tmp_path / "state" / name, victim)
    refusal(lambda: ledger(tmp_path / "state"))
    assert victim.read_bytes() == b"another party's"


def test_a_journal_that_names_a_file_to_be_deleted_is_not_played_back(tmp_path: Path, victim: Path) -> None:
    """SQLite deletes the super-journal that a hot journal names (https://www.sqlite.org/fileformat2.html)."""
    for folder in ("control", "state"):
        _hot_journal(tmp_path / folder, names=victim)
    assert "journal" in refusal(lambda: CollectiveLedger(tmp_path / "state"))
    assert victim.exists()
    with contextlib.closing(sqlite3.connect(tmp_path / "control" / "ledger.db")) as database:
        database.execute("SELECT count(*) FROM t").fetchone()
    assert not victim.exists()


def _hot_journal(folder: Path, *, names: Path) -> None:
    folder.mkdir()
    (folder / "made").mkdir()
    with contextlib.closing(sqlite3.connect(folder / "made" / "ledger.db", isolation_level=None)) as database:
        database.execute("PRAGMA cache_size = 2")
        database.execute("CREATE TABLE t (x BLOB)")
        database.executemany("INSERT INTO t VALUES (?)", [(os.urandom(3000),) for _ in range(50)])
        database.execute("BEGIN IMMEDIATE")
        database.execute("UPDATE t SET x = zeroblob(3000)")
        for name in ("ledger.db", "ledger.db-journal"):
            (folder / name).write_bytes((folder / "made" / name).read_bytes())
        database.execute("ROLLBACK")
    name = os.fsencode(names)
    with (folder / "ledger.db-journal").open("ab") as file:
        file.write(struct.pack(">I", 0x40000000 // 4096 + 1) + name + struct.pack(">II", len(name), sum(name)))
        file.write(b"\xd9\xd5\x05\xf9\x20\xa1\x63\xd7")


@pytest.mark.parametrize(
    "change",
    [
        "CREATE TRIGGER t AFTER INSERT ON clock BEGIN DELETE FROM trust; END",
        "CREATE VIEW v AS SELECT 1",
        "CREATE TABLE other (x)",
        "CREATE INDEX i ON releases (form)",
        "CREATE VIRTUAL TABLE v USING fts5(x)",
        "DROP INDEX grants_by_nonce",
        "DROP TABLE clock",
        "ALTER TABLE releases ADD COLUMN x INTEGER",
        "PRAGMA application_id = 1",
        "PRAGMA journal_mode = DELETE",
        "ANALYZE",
    ],
)
def test_a_schema_that_is_not_ours_to_the_letter_is_refused(state: Path, change: str) -> None:
    with changed(state) as database:
        database.execute(change)
    assert "was changed" in refusal(lambda: CollectiveLedger(state))


def test_a_table_that_is_a_view_or_checks_what_it_likes_is_refused(state: Path) -> None:
    with changed(state) as database:
        rewrite(database, "clock", "STRICT", "")
    assert "was changed" in refusal(lambda: CollectiveLedger(state))
    with changed(state) as database:
        rewrite(database, "clock", "latest INTEGER NOT NULL)", "latest INTEGER NOT NULL) STRICT")
        rewrite(database, "clock", "only = 1", "only = 1 OR randomblob(1)")
    assert "was changed" in refusal(lambda: CollectiveLedger(state))


@pytest.mark.parametrize(
    ("made", "opened"), [(IndividualLedger, CollectiveLedger), (CollectiveLedger, IndividualLedger)]
)
def test_the_other_partys_ledger_is_said_to_be_one_and_nothing_of_it_changes(
    tmp_path: Path, made: Ledger, opened: Ledger
) -> None:
    state = tmp_path / "state"
    made(state).close()
    before = tree(state)
    said = refusal(lambda: opened(state))
    assert "is the ledger of a" in said
    # It is whole, and holds what its party promised or inherited: nobody is told to put it away.
    assert ADVICE not in said
    assert "was changed" not in said
    assert tree(state) == before
    with changed(state) as database:
        database.execute("CREATE TABLE more (one INTEGER) STRICT")
    # Of neither party.
    assert ADVICE in refusal(lambda: opened(state))


def test_pages_that_were_changed_are_found_or_harm_nobody(state: Path) -> None:
    whole = (state / "ledger.db").read_bytes()
    for page in range(1, len(whole) // 4096):
        for start, piece in ((0, b"\x0d" + bytes(7)), (3, b"\xff\xff"), (8, bytes(64)), (4000, os.urandom(96))):
            position = 4096 * page + start
            (state / "ledger.db").write_bytes(whole[:position] + piece + whole[position + len(piece) :])
            with within(20), contextlib.suppress(StorageFailedError):
                ledger = CollectiveLedger(state)
                try:
                    ledger.releases(RUN)
                    ledger.latest_time()
                finally:
                    ledger.close()


def test_a_database_that_says_it_is_endless_is_refused(state: Path) -> None:
    with (state / "ledger.db").open("r+b") as file:
        file.truncate(1 << 40)
    assert "more than" in refusal(lambda: CollectiveLedger(state))


@pytest.mark.parametrize(
    "change",
    [
        "seq = 'one'",
        "seq = 2",
        "seq = -1",
        "form = x'00ff'",
        "form = 'paper'",
        "digest = 'not a digest'",
        "digest = zeroblob(64)",
        f"digest = '{DIGEST}'",
        "digest = CAST(x'ffff' AS TEXT)",
        "envelope = 'text'",
        "envelope = 12",
        "envelope = x''",
        "envelope = zeroblob(70000)",
        "envelope = zeroblob(300000)",
        "envelope = zeroblob(100000000)",
        "envelope = CAST('{}' AS BLOB)",
        "closed_key = zeroblob(47)",
        "closed_key = 1.5",
        "withdrawn = 2",
        "withdrawn = 'yes'",
        "withdrawn = 9223372036854775807",
    ],
)
def test_a_release_that_was_never_written_is_one_clear_line(state: Path, change: str) -> None:
    """Whatever stands where; and the schema says that it cannot stand there."""
    # The control: a change that changes nothing.
    write_loosely(state, "releases", "seq = seq")
    _everything(state)
    write_loosely(state, "releases", change)
    refusal(lambda: _everything(state))


def _everything(state: Path) -> None:
    ledger = CollectiveLedger(state)
    try:
        for release in ledger.releases(RUN):
            ledger.granted(release.digest)
            ledger.receipts(release.digest)
        ledger.latest(RUN)
        ledger.withdrawn(RUN)
    finally:
        ledger.close()


@pytest.mark.parametrize(
    ("table", "change", "read"),
    [
        ("exchanges", "state = 'DONE'", lambda ledger: ledger.state(RUN, "condensed")),
        ("exchanges", "state = x'00'", lambda ledger: ledger.open_request(RUN, "condensed")),
        ("exchanges", "envelope = x'00'", lambda ledger: ledger.open_request(RUN, "condensed").payload),
        ("exchanges", "request = 'short'", lambda ledger: ledger.open_requests(RUN)),
        ("exchanges", "form = 'none'", lambda ledger: ledger.open_requests(RUN)),
        ("clock", f"latest = {LAST_SECOND + 1}", lambda ledger: ledger.time_after(NOW)),
        ("clock", "latest = -1", lambda ledger: ledger.latest_time()),
        ("clock", "latest = 'now'", lambda ledger: ledger.latest_time()),
        ("trust", "version = 'x'", lambda ledger: ledger.trust_seen()),
        ("trust", "root = '../../x'", lambda ledger: ledger.trust_seen()),
        ("trust", "digest = zeroblob(200000)", lambda ledger: ledger.trust_seen()),
    ],
)
def test_a_row_of_an_individual_that_was_never_written_is_one_clear_line(
    tmp_path: Path, exchange: Exchange, table: str, change: str, read: Callable[[IndividualLedger], object]
) -> None:
    ledger = IndividualLedger(tmp_path)
    ledger.requested(RUN, "condensed", exchange.request)
    ledger.time_after(NOW)
    ledger.remember_trust(TrustSeen(1, DIGEST, DIGEST, DIGEST))
    ledger.close()

    def attempt() -> None:
        opened = IndividualLedger(tmp_path)
        try:
            read(opened)
        finally:
            opened.close()

    # The control: a change that changes nothing.
    write_loosely(tmp_path, table, f"{change.partition(' ')[0]} = {change.partition(' ')[0]}")
    attempt()
    write_loosely(tmp_path, table, change)
    refusal(attempt)


def test_time_goes_on_and_never_back(tmp_path: Path) -> None:
    for ledger_type in (CollectiveLedger, IndividualLedger):
        folder = tmp_path / ledger_type.__name__
        first, beside = ledger_type(folder), ledger_type(folder)
        assert first.latest_time() is None
        assert first.time_after(NOW) == NOW
        assert beside.time_after(NOW - 1) == NOW
        assert beside.time_after(NOW + 1) == NOW + 1
        assert first.time_after(NOW) == NOW + 1
        first.close()
        assert ledger_type(folder).time_after(0) == NOW + 1
        beside.set_time(NOW - 5)
        assert ledger_type(folder).latest_time() == NOW - 5
        beside.close()
