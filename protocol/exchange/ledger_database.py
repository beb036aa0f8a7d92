"""A party's database: opened only if it is exactly what this program makes, and every value checked as it is read.

``<folder>/ledger.db`` lies in a state folder, which a node that was taken over may have filled with anything. So its
files pass the gate of :mod:`protocol.files.state_files` before SQLite sees them, its schema must be ours to the letter
(no trigger, view, virtual table or changed statement runs), and SQLite reads it under its own limits
(https://www.sqlite.org/security.html). In WAL mode with ``synchronous=FULL``: durable before anything is sent.
"""

import contextlib
import os
import re
import sqlite3
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NoReturn

from protocol.confinement import one_folder
from protocol.errors import InputError, StorageFailedError
from protocol.files import state_files
from protocol.files.atomic import make_folder, write_atomically
from protocol.messages import envelope
from protocol.trust.role import A_PARTY, PARTNER, Role
from protocol.trust.signed_trust import TrustSeen

LEDGER = "ledger.db"
_FORMAT = 5
#: "lgen": the application id in SQLite's file format.
_APPLICATION = 0x6C67656E
_WHAT = "the ledger"
#: Most bytes of a database, and of its write-ahead log: enough for some million grants.
_MOST_BYTES = 1 << 30
#: Most bytes of one value or row, which SQLite checks, and of one answer, which we check.
_LONGEST_ROW, _MOST_ANSWERED = 256 * 1024, 64 << 20
_LONGEST_ENVELOPE = envelope.MAX_BYTES
_MOST_INTEGER = 2**53 - 1
#: The last second of Python's calendar: 9999-12-31 23:59:59 UTC.
LAST_SECOND = 253_402_300_799
#: Advice on the consequences of moving a ledger away; see docs/protocol.md.
ADVICE = (
    "put the right one back, or move it away with its -wal and -shm: then all that this node promised or inherited is "
    "forgotten (docs/protocol.md, Ledger)"
)

# The last trust store of the offline root, so that an older or a different one is refused; and the latest time of a
# decision, so that a clock that is set back does not make expired messages valid again.
_COMMON_TABLES = """
CREATE TABLE trust (
    only INTEGER PRIMARY KEY CHECK (only = 1), version INTEGER NOT NULL, digest TEXT NOT NULL, root TEXT NOT NULL,
    pinned TEXT NOT NULL
) STRICT;
CREATE TABLE clock (only INTEGER PRIMARY KEY CHECK (only = 1), latest INTEGER NOT NULL) STRICT;
"""

_digest = re.compile(r"[0-9a-f]{64}").fullmatch

Row = tuple[object, ...]


@dataclass(frozen=True)
class Kind:
    """Which party's ledger it is.

    Attributes:
        role: the party's.
        tables: SQL that makes its tables.
        files: the folder of its files, beside the database.
        others_tables: SQL that makes the other party's tables, so that its ledger can be told from a broken one.
    """

    role: Role
    tables: str
    files: str
    others_tables: str


class LedgerDatabase:
    """The database of one party. Its methods may be called from any thread, one transaction at a time.

    Args:
        reading: make nothing, and let SQLite refuse every change.
    """

    def __init__(self, folder: Path, kind: Kind, *, reading: bool = False) -> None:
        self._lock = threading.RLock()
        self._folder = folder
        path = folder / LEDGER
        try:
            if not reading:
                make_folder(folder)
            if not _is_there(folder):
                if reading:
                    raise StorageFailedError(f"there is no ledger {path}")
                _make(folder, kind.tables)
            # A node that was taken over may put a journal there at any moment, and SQLite then deletes the files that
            # it names. An open database in WAL mode reads no journal.
            one_folder.within(folder, lambda: self._open(path, kind, reading))
            try:
                self._files = state_files.subfolder(folder, kind.files, "the folder", make=not reading)
            except InputError:
                self._database.close()
                raise
        except InputError as error:
            raise StorageFailedError(str(error)) from None
        except (OSError, sqlite3.Error, OverflowError) as error:
            raise StorageFailedError(f"cannot open the ledger {path}: {error}; {ADVICE}") from error

    def _open(self, path: Path, kind: Kind, reading: bool) -> None:
        self._database = sqlite3.connect(path.absolute(), isolation_level=None, check_same_thread=False, timeout=10)
        try:
            _restrict(self._database)
            self._check(path, kind)
            if reading:
                self._database.execute("PRAGMA query_only = ON")
        except BaseException:
            self._database.close()
            raise

    def _check(self, path: Path, kind: Kind) -> None:
        """Check the schema before any other query. Nothing in a foreign schema has run by then.

        Raises:
            StorageFailedError: it is not a database of this version. sqlite3.Error: it is no database, or a broken one.
        """
        database = self._database
        version, application = (
            database.execute(f"PRAGMA {name}").fetchone()[0] for name in ("user_version", "application_id")
        )
        if version != _FORMAT:
            raise StorageFailedError(
                f"{path} has the format {version}, this version reads {_FORMAT}; use the version that made it,"
                " or begin with a new state folder"
            )
        found = database.execute("SELECT type, name, tbl_name, sql FROM sqlite_master LIMIT 100").fetchall()
        mode = database.execute("PRAGMA journal_mode").fetchone()[0]
        schema, ours = sorted(found, key=repr), application == _APPLICATION and mode == "wal"
        if ours and schema == _schema(kind.others_tables):
            other = A_PARTY[PARTNER[kind.role]]
            raise StorageFailedError(
                f"{path} is the ledger of {other}, and this node needs that of {A_PARTY[kind.role]}: keep it, it holds "
                f"what {other} promised or inherited; give this node its own state folder (node.state)"
            )
        if not ours or schema != _schema(kind.tables):
            raise StorageFailedError(f"{path} was changed: it holds what this program does not make; {ADVICE}")
        # With WAL, FULL syncs at every commit; in the other modes FULL leaves a folder entry unsynced.
        database.execute("PRAGMA synchronous = FULL")
        database.execute("PRAGMA foreign_keys = ON")
        if database.execute("PRAGMA quick_check(1)").fetchall() != [("ok",)]:
            raise StorageFailedError(f"{path} is damaged; {ADVICE}")

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        """Run all statements or none; durable at the end."""
        with self._lock:
            try:
                self._database.execute("BEGIN IMMEDIATE")
                try:
                    yield
                except BaseException:
                    self._database.execute("ROLLBACK")
                    raise
                self._database.execute("COMMIT")
            except sqlite3.Error as error:
                raise StorageFailedError(f"the ledger could not be written: {error}; check the disk") from error

    def _execute(self, query: str, *values: object) -> int:
        """Change rows, within a transaction, and return how many."""
        return self._database.execute(query, values).rowcount

    def _rows(self, query: str, *values: object) -> list[Row]:
        """The answer to a query, of bounded size. Its values are not checked; the functions below check them."""
        with self._lock:
            rows: list[Row] = []
            size = 0
            try:
                for row in self._database.execute(query, values):
                    size += sum(len(value) if isinstance(value, bytes | str) else 8 for value in row)
                    if size > _MOST_ANSWERED:
                        raise StorageFailedError(f"the ledger holds more than any run has; {ADVICE}")
                    rows.append(row)
            except sqlite3.Error as error:
                raise StorageFailedError(f"the ledger could not be read: {error}; {ADVICE}") from error
            return rows

    def _row(self, query: str, *values: object) -> Row | None:
        """The first row of the answer."""
        rows = self._rows(f"{query} LIMIT 1", *values)
        return rows[0] if rows else None

    def trust_seen(self) -> TrustSeen | None:
        """The latest trust store that this party believed; None before the first."""
        row = self._row("SELECT version, digest, root, pinned FROM trust")
        return None if row is None else TrustSeen(as_integer(row[0]), *map(as_digest, row[1:]))

    def remember_trust(self, seen: TrustSeen) -> None:
        """Remember the trust store that is believed from now on.

        Raises:
            RollbackError, EquivocationError: another process has accepted a newer one on this ledger meanwhile.
            StorageFailedError: it could not be stored, so it must not be believed.
        """
        with self._transaction():
            before = self.trust_seen()
            # Under one pin or one root, versions only increase.
            if before is not None and (before.pinned == seen.pinned or before.root == seen.root):
                seen.check_after(before)
            self._execute(
                "INSERT OR REPLACE INTO trust VALUES (1, ?, ?, ?, ?)", seen.version, seen.digest, seen.root, seen.pinned
            )

    def latest_time(self) -> int | None:
        """The latest time (unix s) of a decision; None before the first."""
        row = self._row("SELECT latest FROM clock")
        return None if row is None else as_integer(row[0], most=LAST_SECOND)

    def time_after(self, now: int) -> int:
        """The time that checks use: ``now``, or the latest time of an earlier decision if the clock is behind it.
        Durable when it returns, so that an expired message stays expired; at most one write a second.

        Raises:
            StorageFailedError: it could not be stored, so no check may use it.
        """
        latest = self.latest_time()
        if latest is not None and latest >= now:
            return latest
        with self._transaction():
            self._execute(
                "INSERT INTO clock VALUES (1, ?) ON CONFLICT DO UPDATE SET latest = max(latest, excluded.latest)",
                max(0, min(now, LAST_SECOND)),
            )
        return now

    def set_time(self, now: int) -> None:
        """Replace the remembered time by ``now``: needed after the clock was wrongly set forward.

        Raises:
            StorageFailedError: it could not be stored.
        """
        with self._transaction():
            self._execute("INSERT OR REPLACE INTO clock VALUES (1, ?)", now)

    def close(self) -> None:
        """Close the database; everything promised is on disk already."""
        self._database.close()


def _is_there(folder: Path) -> bool:
    """Whether there is a database, after checking all its files. SQLite would follow links to it, wait for pipes, and
    play back a journal, which may name any file to be deleted; a database that is made here never has one.

    Raises:
        InputError: a file there is of a kind that SQLite must not open.
    """
    if state_files.look(folder, f"{LEDGER}-journal", _WHAT, max_bytes=_MOST_BYTES) is not None:
        raise InputError(f"{folder / LEDGER}-journal was put there: this ledger never has one; move it away")
    there = state_files.look(folder, LEDGER, _WHAT, max_bytes=_MOST_BYTES) is not None
    for side in ("wal", "shm"):
        beside = state_files.look(folder, f"{LEDGER}-{side}", _WHAT, max_bytes=_MOST_BYTES) is not None
        if beside and not there:
            raise InputError(f"{folder / LEDGER}-{side} is there without its ledger; put that back, or move it away")
    return there


def _make(folder: Path, tables: str) -> None:
    """Create an empty database there, in one step and without a journal, unless another process just did."""
    descriptor = state_files.open_to_write(folder, f"{LEDGER}.lock", "the lock of the ledger", os.O_RDWR)
    try:
        state_files.lock_within(descriptor, 10.0)
        if not _is_there(folder):
            # SQLite gives its side files the mode of the database.
            write_atomically(folder / LEDGER, _empty(tables)[0], mode=0o600)
    finally:
        os.close(descriptor)


@cache
def _empty(tables: str) -> tuple[bytes, list[Row]]:
    """An empty database with these tables, and its schema."""
    with contextlib.closing(sqlite3.connect(":memory:", isolation_level=None)) as database:
        database.executescript(f"{tables} {_COMMON_TABLES}")
        database.execute(f"PRAGMA user_version = {_FORMAT}")
        database.execute(f"PRAGMA application_id = {_APPLICATION}")
        schema = database.execute("SELECT type, name, tbl_name, sql FROM sqlite_master").fetchall()
        data = bytearray(database.serialize())
    # Written and read with a write-ahead log (https://www.sqlite.org/fileformat2.html, bytes 18 and 19).
    data[18:20] = b"\2\2"
    return bytes(data), sorted(schema, key=repr)


def _schema(tables: str) -> list[Row]:
    return _empty(tables)[1]


def _restrict(database: sqlite3.Connection) -> None:
    """Switch on SQLite's protections against a hostile database file. Extensions are off by default."""
    for limit, value in (
        (sqlite3.SQLITE_LIMIT_LENGTH, _LONGEST_ROW),
        (sqlite3.SQLITE_LIMIT_SQL_LENGTH, 16 * 1024),
        (sqlite3.SQLITE_LIMIT_ATTACHED, 0),
        (sqlite3.SQLITE_LIMIT_TRIGGER_DEPTH, 1),
    ):
        database.setlimit(limit, value)
    # From Python 3.12 on.
    configure = getattr(database, "setconfig", None)
    if configure is not None:
        for name, on in (("DEFENSIVE", True), ("ENABLE_TRIGGER", False), ("ENABLE_VIEW", False)):
            configure(getattr(sqlite3, f"SQLITE_DBCONFIG_{name}"), on)
    for pragma in ("trusted_schema = OFF", "cell_size_check = ON", "mmap_size = 0"):
        database.execute(f"PRAGMA {pragma}")


# Check what is read: STRICT tables bind only writers that use SQLite.
def ledger_file(state: Path, name: str, what: str, *, max_bytes: int) -> bytes | None:
    """A file beside the database; None if there is none.

    Raises:
        StorageFailedError: the file is not a regular file, or too large.
    """
    try:
        return state_files.read(state, name, what, max_bytes=max_bytes)
    except InputError as error:
        raise StorageFailedError(str(error)) from None


def as_bytes(value: object) -> bytes:
    """Bytes of a value, no longer than a message.

    Raises:
        StorageFailedError: it is no such value; so do the functions below.
    """
    if not isinstance(value, bytes) or len(value) > _LONGEST_ENVELOPE:
        _refuse("bytes")
    return value


def as_integer(value: object, *, most: int = _MOST_INTEGER) -> int:
    """An integer from 0."""
    if not isinstance(value, int) or not 0 <= value <= most:
        _refuse("an integer")
    return value


def as_digest(value: object) -> str:
    """A SHA-256, or a key of as many digits: 64 hexadecimal digits."""
    if not isinstance(value, str) or not _digest(value):
        _refuse("a digest")
    return value


def _refuse(what: str) -> NoReturn:
    raise StorageFailedError(f"the ledger was changed: it holds what is not {what} where one belongs; {ADVICE}")


def refuse_row(what: str) -> NoReturn:
    """Report that this program did not write a row.

    Raises:
        StorageFailedError: always.
    """
    raise StorageFailedError(f"the ledger was changed: {what}; {ADVICE}")
