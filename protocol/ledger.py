"""The ledgers: what a party has promised and accepted, in SQLite, durable before anything is sent.

``<folder>/ledger.db`` with ``synchronous=FULL``; blobs lie beside it as files, written before the row that names them.
"""

import contextlib
import os
import sqlite3
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import get_args

from protocol import envelope, messages
from protocol.architecture import Form
from protocol.errors import (
    DigestMismatchError,
    EquivocationError,
    InputError,
    MalformedError,
    RollbackError,
    StorageFailedError,
    WrongAudienceError,
)
from protocol.messages import MOST_WITHDRAWN, NO_RELEASE, Release, Request
from protocol.storage import write_atomically, write_folder_atomically
from protocol.trust import TrustSeen
from protocol.verification import (
    SealedLearngene,
    SeenRelease,
    VerifiedEnvelopes,
    VerifiedLearngene,
    VerifiedRequest,
    contradicts,
    verify_committed,
)

_FORMAT = 4

#: Envelopes that an individual keeps as evidence of two histories, at most.
MOST_EVIDENCE = 64

# What the offline root has said last, so that an older or another word of it is not believed.
_TRUST_TABLE = """
CREATE TABLE trust (
    only INTEGER PRIMARY KEY CHECK (only = 1), version INTEGER NOT NULL, digest TEXT NOT NULL, root TEXT NOT NULL,
    pinned TEXT NOT NULL
) STRICT;
"""

_COLLECTIVE_TABLES = """
CREATE TABLE releases (
    run_id TEXT NOT NULL, seq INTEGER NOT NULL, form TEXT NOT NULL, digest TEXT NOT NULL UNIQUE, prev TEXT NOT NULL,
    envelope BLOB NOT NULL, content_key BLOB NOT NULL UNIQUE, withdrawn INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (run_id, seq)
) STRICT;
CREATE TABLE grants (
    request TEXT NOT NULL, run_id TEXT NOT NULL, keyid TEXT NOT NULL, nonce TEXT NOT NULL,
    release TEXT NOT NULL REFERENCES releases (digest), envelope BLOB NOT NULL, PRIMARY KEY (request, release)
) STRICT;
CREATE INDEX grants_by_nonce ON grants (run_id, keyid, nonce);
CREATE TABLE receipts (
    keyid TEXT NOT NULL, release TEXT NOT NULL REFERENCES releases (digest), envelope BLOB NOT NULL,
    PRIMARY KEY (keyid, release)
) STRICT;
"""

_INDIVIDUAL_TABLES = """
CREATE TABLE exchanges (
    run_id TEXT NOT NULL, form TEXT NOT NULL, state TEXT NOT NULL, request TEXT NOT NULL, envelope BLOB NOT NULL,
    release TEXT, PRIMARY KEY (run_id, form)
) STRICT;
CREATE TABLE seen (
    run_id TEXT NOT NULL, key_epoch INTEGER NOT NULL, seq INTEGER NOT NULL, form TEXT NOT NULL, digest TEXT NOT NULL,
    prev TEXT NOT NULL, envelope BLOB NOT NULL, PRIMARY KEY (run_id, key_epoch, seq)
) STRICT;
CREATE TABLE inherited (
    run_id TEXT NOT NULL, key_epoch INTEGER NOT NULL, seq INTEGER NOT NULL, form TEXT NOT NULL, release TEXT NOT NULL,
    grant_digest TEXT NOT NULL, receipt BLOB, PRIMARY KEY (run_id, key_epoch, seq), UNIQUE (run_id, release)
) STRICT;
CREATE TABLE withdrawn (run_id TEXT NOT NULL, release TEXT NOT NULL, PRIMARY KEY (run_id, release)) STRICT;
"""


class State(StrEnum):
    """Where an individual stands with one form of learngene of one run."""

    IDLE = "IDLE"
    REQUESTED = "REQUESTED"
    RECEIVED = "RECEIVED"
    VERIFIED = "VERIFIED"
    COMMITTED = "COMMITTED"
    ACKED = "ACKED"


#: From which states an answer takes an exchange to which. A crash in between is mended by the same bundle coming again;
#: ``requested`` begins anew from any state and ``acknowledged`` ends it.
_BEFORE: dict[State, tuple[State, ...]] = {
    State.REQUESTED: (State.RECEIVED,),
    State.RECEIVED: (State.REQUESTED, State.RECEIVED, State.VERIFIED),
    State.VERIFIED: (State.RECEIVED,),
    State.COMMITTED: (State.VERIFIED,),
}
_OPEN = (State.REQUESTED, State.RECEIVED, State.VERIFIED)


class _Ledger:
    """The database of one party. Its methods may be called from any thread, one transaction at a time."""

    def __init__(self, folder: Path, tables: str, files: str) -> None:
        self._lock = threading.RLock()
        self._folder = folder
        path = folder / "ledger.db"
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._files = folder / files
            self._files.mkdir(exist_ok=True, mode=0o700)
            # SQLite gives its side files the mode of the database, so that it is made private first.
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
            self._database = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=10)
            # With WAL, FULL syncs at every commit; in the other modes FULL leaves a folder entry unsynced.
            self._database.execute("PRAGMA journal_mode = WAL")
            self._database.execute("PRAGMA synchronous = FULL")
            self._database.execute("PRAGMA foreign_keys = ON")
            with self._transaction() as database:
                version = database.execute("PRAGMA user_version").fetchone()[0]
                if version == 0:
                    # Not executescript: it would commit the transaction before it starts.
                    for statement in filter(str.strip, (tables + _TRUST_TABLE).split(";")):
                        database.execute(statement)
                    database.execute(f"PRAGMA user_version = {_FORMAT}")
                elif version != _FORMAT:
                    raise StorageFailedError(
                        f"{path} has the format {version}, this version reads {_FORMAT}; use the version that made it,"
                        " or begin with a new state folder"
                    )
        except (OSError, sqlite3.Error) as error:
            raise StorageFailedError(f"cannot open the ledger {path}: {error}") from error

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """All statements or none; durable at the end."""
        with self._lock:
            try:
                self._database.execute("BEGIN IMMEDIATE")
                try:
                    yield self._database
                except BaseException:
                    self._database.execute("ROLLBACK")
                    raise
                self._database.execute("COMMIT")
            except sqlite3.Error as error:
                raise StorageFailedError(f"the ledger could not be written: {error}; check the disk") from error

    def _rows(self, query: str, *values: object) -> list[tuple[object, ...]]:
        with self._lock:
            try:
                return self._database.execute(query, values).fetchall()
            except sqlite3.Error as error:
                raise StorageFailedError(f"the ledger could not be read: {error}; check the disk") from error

    def trust_seen(self) -> TrustSeen | None:
        """The latest trust store that this party believed; None before the first."""
        rows = self._rows("SELECT version, digest, root, pinned FROM trust")
        return TrustSeen(_integer(rows[0][0]), *(str(value) for value in rows[0][1:])) if rows else None

    def remember_trust(self, seen: TrustSeen) -> None:
        """Remember the trust store that is believed from now on.

        Raises:
            RollbackError, EquivocationError: another process on this ledger has accepted a newer one meanwhile.
            StorageFailedError: it could not be stored, so it must not be believed.
        """
        with self._transaction() as database:
            row = database.execute("SELECT version, digest, root, pinned FROM trust").fetchone()
            before = None if row is None else TrustSeen(*row)
            # Under one pin or one root, versions count on.
            if before is not None and (before.pinned == seen.pinned or before.root == seen.root):
                seen.check_after(before)
            database.execute(
                "INSERT OR REPLACE INTO trust VALUES (1, ?, ?, ?, ?)",
                (seen.version, seen.digest, seen.root, seen.pinned),
            )

    def close(self) -> None:
        """Close the database; everything promised is on disk already."""
        self._database.close()


@dataclass(frozen=True)
class StoredRelease:
    """A release of this collective: its envelope and what that holds, the key to its blob, whether it was withdrawn."""

    envelope: bytes
    payload: Release
    content_key: bytes = field(repr=False)
    withdrawn: bool

    @property
    def digest(self) -> str:
        """The release's name."""
        return envelope.digest(self.envelope)

    @property
    def seq(self) -> int:
        """Its number in the chain."""
        return self.payload.seq


def stored_release(data: bytes, content_key: bytes, *, withdrawn: bool = False) -> StoredRelease:
    """A release that this collective made itself, as its ledger keeps it."""
    payload = messages.decode(Release, envelope.parse(data).payload)
    return StoredRelease(data, payload, content_key, withdrawn)


_RELEASE_COLUMNS = "envelope, content_key, withdrawn"


def _release_of(row: tuple[object, ...]) -> StoredRelease:
    return stored_release(_bytes(row[0]), _bytes(row[1]), withdrawn=bool(row[2]))


class CollectiveLedger(_Ledger):
    """The collective's: the chain of its releases, a grant for every request that it answered, and the receipts."""

    def __init__(self, folder: Path) -> None:
        """Open or make the ledger in the collective's private ``folder``.

        Raises:
            StorageFailedError: it cannot be opened.
        """
        super().__init__(folder, _COLLECTIVE_TABLES, "releases")

    def releases(self, run_id: str) -> list[StoredRelease]:
        """The chain of a run, first to last."""
        rows = self._rows(f"SELECT {_RELEASE_COLUMNS} FROM releases WHERE run_id = ? ORDER BY seq", run_id)
        return [_release_of(row) for row in rows]

    def latest(self, run_id: str, form: Form | None = None) -> StoredRelease | None:
        """The last release of a run, of one form or (None) of any; withdrawn or not."""
        rows = self._rows(
            f"SELECT {_RELEASE_COLUMNS} FROM releases WHERE run_id = ? AND form = coalesce(?, form)"
            " ORDER BY seq DESC LIMIT 1",
            run_id,
            form,
        )
        return _release_of(rows[0]) if rows else None

    def release(self, digest: str) -> StoredRelease:
        """The release with this digest.

        Raises:
            StorageFailedError: there is none.
        """
        rows = self._rows(f"SELECT {_RELEASE_COLUMNS} FROM releases WHERE digest = ?", digest)
        if not rows:
            raise StorageFailedError(f"the ledger holds no release {digest[:16]}; publish again")
        return _release_of(rows[0])

    def withdraw(self, run_id: str, digest: str) -> list[StoredRelease]:
        """Mark a release of a run as withdrawn, and with it every other one that holds the same content; what is
        withdrawn, stays so.

        Returns:
            All of them, first to last.

        Raises:
            InputError: there is no such release in this run.
            StorageFailedError: it could not be stored.
        """
        with self._transaction() as database:
            chain = self.releases(run_id)
            contents = {release.payload.plaintext for release in chain if release.digest == digest}
            if not contents:
                raise InputError(f"this run has no release {digest[:16]}; `collective-node releases` lists them")
            found = [release.digest for release in chain if release.payload.plaintext in contents]
            database.executemany("UPDATE releases SET withdrawn = 1 WHERE digest = ?", [(one,) for one in found])
        return [self.release(one) for one in found]

    def withdrawn(self, run_id: str) -> list[StoredRelease]:
        """The withdrawn releases of a run, first to last: the order in which they were released."""
        rows = self._rows(
            f"SELECT {_RELEASE_COLUMNS} FROM releases WHERE run_id = ? AND withdrawn = 1 ORDER BY seq", run_id
        )
        return [_release_of(row) for row in rows]

    def add_release(self, data: bytes, content_key: bytes, blob: bytes) -> StoredRelease:
        """Store a release with its sealed blob and the key to it as the next link of its run's chain.

        Raises:
            EquivocationError: it is not the next link; the ledger never holds two releases with one number.
            StorageFailedError: it could not be stored.
            ValueError: the content key sealed an earlier release.
        """
        if self._rows("SELECT 1 FROM releases WHERE content_key = ?", content_key):
            raise ValueError("a content key seals one release only: GCM fails with two plaintexts under one key")
        stored = stored_release(data, content_key)
        payload = stored.payload
        # The blob first: a row never names a file that is not there.
        self.keep_blob(stored, blob)
        with self._transaction() as database:
            last = database.execute(
                "SELECT seq, digest FROM releases WHERE run_id = ? ORDER BY seq DESC LIMIT 1", (payload.run_id,)
            ).fetchone()
            seq, prev = last or (0, NO_RELEASE)
            if (payload.seq, payload.prev) != (seq + 1, prev):
                raise EquivocationError(
                    f"release {payload.seq} does not follow release {seq}; check whether another collective is running"
                )
            gone = database.execute(
                "SELECT digest FROM releases WHERE run_id = ? AND withdrawn = 1 ORDER BY seq DESC LIMIT ?",
                (payload.run_id, MOST_WITHDRAWN),
            ).fetchall()
            if not {row[0] for row in gone} <= set(payload.withdraws):
                raise StorageFailedError("a release was withdrawn while this one was made; publish again")
            database.execute(
                "INSERT INTO releases VALUES (?, ?, ?, ?, ?, ?, ?, 0)",
                (payload.run_id, payload.seq, payload.form, stored.digest, payload.prev, data, content_key),
            )
        return stored

    def keep_blob(self, stored: StoredRelease, blob: bytes) -> None:
        """Store the blob of a release, unless it lies there whole.

        Raises:
            StorageFailedError: it could not be stored.
        """
        try:
            self.blob(stored)
        except StorageFailedError:
            write_atomically(self._blob_path(stored), blob, mode=0o600)

    def blob(self, stored: StoredRelease) -> bytes:
        """The (sealed) blob of a release.

        Raises:
            StorageFailedError: the file is gone or was changed.
        """
        data = self.read_blob(stored)
        if envelope.digest(data) != stored.payload.ciphertext.sha256:
            raise StorageFailedError(f"the blob {self._blob_path(stored)} was changed on disk; publish again")
        return data

    def read_blob(self, stored: StoredRelease) -> bytes:
        """What lies there as the blob of a release: for whoever compares it with the release next, as the gate does.

        Raises:
            StorageFailedError: the file is gone.
        """
        path = self._blob_path(stored)
        try:
            return path.read_bytes()
        except OSError as error:
            raise StorageFailedError(f"cannot read the blob {path}: {error.strerror}; publish again") from error

    def request_with_nonce(self, run_id: str, keyid: str, nonce: str) -> str | None:
        """The digest of the answered request with this nonce of this signer, if there is one."""
        rows = self._rows(
            "SELECT request FROM grants WHERE run_id = ? AND keyid = ? AND nonce = ?", run_id, keyid, nonce
        )
        return str(rows[0][0]) if rows else None

    def grant(self, request: str) -> tuple[bytes, StoredRelease] | None:
        """The grant that answers the request with this digest, and its release, if it was answered: the latest."""
        rows = self._rows("SELECT envelope, release FROM grants WHERE request = ? ORDER BY rowid DESC LIMIT 1", request)
        return (_bytes(rows[0][0]), self.release(str(rows[0][1]))) if rows else None

    def add_grant(
        self, request: VerifiedRequest, release: StoredRelease, grant: bytes, *, instead_of: bytes | None = None
    ) -> None:
        """Store the answer to a request. An earlier answer is kept beside it, so that a receipt that is still on its
        way finds it; only one that granted the same release is replaced.

        Args:
            instead_of: the grant that answered it until now, and that its maker found stale; None: there is none.

        Raises:
            EquivocationError: another request with its nonce was answered.
            StorageFailedError: it could not be stored, or the request has another answer than ``instead_of``.
        """
        payload = request.payload
        with self._transaction() as database:
            namesake = database.execute(
                "SELECT 1 FROM grants WHERE run_id = ? AND keyid = ? AND nonce = ? AND request != ?",
                (payload.run_id, request.key.keyid, payload.nonce, request.digest),
            ).fetchone()
            if namesake is not None:
                raise EquivocationError(f"{request.key.party} used the nonce of an earlier request for another one")
            answered = database.execute(
                "SELECT envelope FROM grants WHERE request = ? ORDER BY rowid DESC LIMIT 1", (request.digest,)
            ).fetchone()
            if (None if answered is None else answered[0]) != instead_of:
                raise StorageFailedError("the request was answered by another process at this moment; send it again")
            # A row that takes another's place gets a new rowid, so that it is the latest.
            database.execute(
                "INSERT OR REPLACE INTO grants VALUES (?, ?, ?, ?, ?, ?)",
                (request.digest, payload.run_id, request.key.keyid, payload.nonce, release.digest, grant),
            )

    def granted(self, release: str) -> tuple[str, ...]:
        """The key ids to which a release was granted."""
        rows = self._rows("SELECT DISTINCT keyid FROM grants WHERE release = ? ORDER BY keyid", release)
        return tuple(str(row[0]) for row in rows)

    def add_receipt(self, keyid: str, release: str, data: bytes) -> None:
        """Store a receipt; the first one for a release stays.

        Raises:
            WrongAudienceError: this release was never granted to this key.
            StorageFailedError: it could not be stored.
        """
        with self._transaction() as database:
            granted = database.execute(
                "SELECT 1 FROM grants WHERE keyid = ? AND release = ?", (keyid, release)
            ).fetchone()
            if granted is None:
                raise WrongAudienceError(f"the key {keyid[:16]} sent a receipt for a release that it was never granted")
            database.execute("INSERT OR IGNORE INTO receipts VALUES (?, ?, ?)", (keyid, release, data))

    def receipts(self, release: str) -> dict[str, bytes]:
        """The receipts for a release, by the signer's key id."""
        rows = self._rows("SELECT keyid, envelope FROM receipts WHERE release = ? ORDER BY keyid", release)
        return {str(keyid): _bytes(data) for keyid, data in rows}

    def _blob_path(self, stored: StoredRelease) -> Path:
        return self._files / f"{stored.payload.ciphertext.sha256}.blob"


@dataclass(frozen=True)
class StoredRequest:
    """A request of this individual."""

    envelope: bytes

    @property
    def payload(self) -> Request:
        """What it says."""
        return messages.decode(Request, envelope.parse(self.envelope).payload)


@dataclass(frozen=True)
class Inherited:
    """A committed learngene: which release, under which grant, and the receipt once it was made."""

    key_epoch: int
    seq: int
    form: Form
    release: str
    grant: str
    receipt: bytes | None


class IndividualLedger(_Ledger):
    """The individual's: per run and form one exchange with its state, the releases seen, the learngenes committed."""

    def __init__(self, folder: Path) -> None:
        """Open or make the ledger in the individual's private ``folder``.

        Raises:
            StorageFailedError: it cannot be opened.
        """
        super().__init__(folder, _INDIVIDUAL_TABLES, "learngenes")

    def state(self, run_id: str, form: Form) -> State:
        """Where the exchange for this form stands."""
        rows = self._rows("SELECT state FROM exchanges WHERE run_id = ? AND form = ?", run_id, form)
        return State(str(rows[0][0])) if rows else State.IDLE

    def open_request(self, run_id: str, form: Form) -> StoredRequest | None:
        """The request for this form that is not answered yet, if there is one."""
        rows = self._rows("SELECT envelope, state FROM exchanges WHERE run_id = ? AND form = ?", run_id, form)
        if not rows or State(str(rows[0][1])) not in _OPEN:
            return None
        return StoredRequest(_bytes(rows[0][0]))

    def open_requests(self, run_id: str) -> dict[str, Form]:
        """Digest and form of every request that is not answered yet."""
        rows = self._rows("SELECT request, form, state FROM exchanges WHERE run_id = ?", run_id)
        return {str(request): _form(form) for request, form, state in rows if State(str(state)) in _OPEN}

    def requested(self, run_id: str, form: Form, request: bytes) -> None:
        """A new request is about to be sent: any state -> REQUESTED. An earlier request is no longer waited for."""
        with self._transaction() as database:
            database.execute(
                "INSERT OR REPLACE INTO exchanges VALUES (?, ?, ?, ?, ?, NULL)",
                (run_id, form, State.REQUESTED, envelope.digest(request), request),
            )

    def received(self, envelopes: VerifiedEnvelopes) -> None:
        """An authentic answer has come: REQUESTED -> RECEIVED. Its release is remembered as seen, with what it
        withdraws; the exchange is about this release from now on.

        Raises:
            EquivocationError: another release with its number was seen, since it was verified too.
            StorageFailedError: it could not be stored, or the exchange stands elsewhere.
        """
        release, digest = envelopes.release, envelopes.release_digest
        with self._transaction() as database:
            database.execute(
                "UPDATE exchanges SET release = ? WHERE run_id = ? AND form = ?", (digest, release.run_id, release.form)
            )
            self._advance(database, release, digest, State.RECEIVED)
            place = (release.run_id, release.key_epoch, release.seq)
            database.execute(
                "INSERT OR IGNORE INTO seen VALUES (?, ?, ?, ?, ?, ?, ?)",
                (*place, release.form, digest, release.prev, envelopes.release_bytes),
            )
            # Two answers at one moment were each compared with what was seen before either.
            (seen,) = database.execute(
                "SELECT digest FROM seen WHERE run_id = ? AND key_epoch = ? AND seq = ?", place
            ).fetchone()
            if seen != digest:
                raise EquivocationError(
                    f"the collective signed two histories: there are two releases {release.seq}; ask the collective"
                )
            self._withdraw(database, release.run_id, release.withdraws)

    def refused(self, envelopes: VerifiedEnvelopes) -> None:
        """The blob that came was not the right one: RECEIVED -> REQUESTED, so that the right one may still come.

        Raises:
            StorageFailedError: the exchange stands elsewhere, or is about another release.
        """
        with self._transaction() as database:
            self._advance(database, envelopes.release, envelopes.release_digest, State.REQUESTED)

    def verified(self, learngene: VerifiedLearngene) -> None:
        """Everything was verified: RECEIVED -> VERIFIED. Raises as ``refused``."""
        with self._transaction() as database:
            self._advance(database, learngene.release, learngene.release_digest, State.VERIFIED)

    def commit(self, learngene: VerifiedLearngene, *, again: bool = False) -> None:
        """Store release, grant and blob together, all or nothing: VERIFIED -> COMMITTED.

        A release that is stored already stays as it is, unless its files were lost or changed.

        Args:
            again: store it under the new grant even so: the earlier one's encryption key is gone.

        Raises:
            RollbackError: a later release of the form is committed already.
            EquivocationError: another release with its number is committed already.
            StorageFailedError: it could not be stored, or the exchange stands elsewhere or is about another release;
                nothing has changed.
        """
        release, digest, sealed = learngene.release, learngene.release_digest, learngene.sealed
        with self._transaction() as database:
            self._advance(database, release, digest, State.COMMITTED)
            newest = database.execute(
                "SELECT key_epoch, seq FROM inherited WHERE run_id = ? AND form = ?"
                " ORDER BY key_epoch DESC, seq DESC LIMIT 1",
                (release.run_id, release.form),
            ).fetchone()
            if newest is not None and newest > (release.key_epoch, release.seq):
                raise RollbackError(f"release {newest[1]} is committed already, {release.seq} is older")
            namesake = database.execute(
                "SELECT 1 FROM inherited WHERE run_id = ? AND key_epoch = ? AND seq = ? AND release != ?",
                (release.run_id, release.key_epoch, release.seq, digest),
            ).fetchone()
            if namesake is not None:
                raise EquivocationError(f"another release {release.seq} is committed already; ask the collective")
            # Only now, when nothing speaks against it any more, and before the row is durable that names the files.
            stored = self.inherited(release.run_id, digest)
            if stored is not None and not again and self._is_whole(stored):
                grant_digest = stored.grant
            else:
                grant_digest = envelope.digest(sealed.grant_bytes)
                write_folder_atomically(
                    self._files / digest,
                    {
                        "release.json": sealed.release_bytes,
                        "grant.json": sealed.grant_bytes,
                        "blob.sealed": sealed.ciphertext,
                    },
                )
            database.execute(
                "INSERT INTO inherited VALUES (?, ?, ?, ?, ?, ?, NULL)"
                " ON CONFLICT DO UPDATE SET grant_digest = excluded.grant_digest",
                (release.run_id, release.key_epoch, release.seq, release.form, digest, grant_digest),
            )

    def acknowledged(self, run_id: str, inherited: Inherited, receipt: bytes) -> None:
        """This receipt is about to be sent, and again whenever the release comes again: COMMITTED -> ACKED where the
        exchange ended with this release.

        Raises:
            StorageFailedError: it could not be stored, or this release was never inherited.
        """
        with self._transaction() as database:
            database.execute(
                "UPDATE exchanges SET state = ? WHERE run_id = ? AND form = ? AND release = ? AND state = ?",
                (State.ACKED, run_id, inherited.form, inherited.release, State.COMMITTED),
            )
            changed = database.execute(
                "UPDATE inherited SET receipt = ? WHERE run_id = ? AND release = ?",
                (receipt, run_id, inherited.release),
            ).rowcount
            if changed != 1:
                raise StorageFailedError(
                    f"the ledger holds no learngene of the release {inherited.release[:16]}; request it again"
                )

    def seen(self, run_id: str) -> tuple[SeenRelease, ...]:
        """The authentic releases of a run that have come, in the order of the chain."""
        rows = self._rows(
            "SELECT key_epoch, seq, form, digest, prev FROM seen WHERE run_id = ? ORDER BY key_epoch, seq", run_id
        )
        return tuple(_seen_of(row) for row in rows)

    def keep_evidence(self, data: bytes) -> list[Path]:
        """Keep an authentic release that contradicts what was seen, and what it contradicts, as
        ``evidence/<digest>.json`` in the individual's folder: the collective's own signatures are the only proof.

        Returns:
            Where they lie. What was kept first stays: ``MOST_EVIDENCE`` files at most, and what finds no room is not
            among them.

        Raises:
            StorageFailedError: they could not be stored.
        """
        release, digest = messages.decode(Release, envelope.parse(data).payload), envelope.digest(data)
        rows = self._rows(
            "SELECT key_epoch, seq, form, digest, prev, envelope FROM seen WHERE run_id = ? AND key_epoch = ?"
            " AND seq BETWEEN ? AND ?",
            release.run_id,
            release.key_epoch,
            release.seq - 1,
            release.seq + 1,
        )
        envelopes = {str(row[3]): _bytes(row[5]) for row in rows if contradicts(release, digest, _seen_of(row))}
        folder = self._folder / "evidence"
        try:
            folder.mkdir(exist_ok=True, mode=0o700)
            kept = {path.name for path in folder.iterdir()}
        except OSError as error:
            raise StorageFailedError(f"cannot keep evidence in {folder}: {error.strerror}; check the disk") from error
        paths = []
        for name, content in (*envelopes.items(), (digest, data)):
            path = folder / f"{name}.json"
            if path.name not in kept:
                if len(kept) >= MOST_EVIDENCE:
                    continue
                write_atomically(path, content, mode=0o600)
                kept.add(path.name)
            paths.append(path)
        return paths

    def withdraw(self, run_id: str, release: str) -> None:
        """Remember that the collective has withdrawn a release.

        Raises:
            StorageFailedError: it could not be stored.
        """
        with self._transaction() as database:
            self._withdraw(database, run_id, (release,))

    def withdrawn(self, run_id: str) -> frozenset[str]:
        """Digests of the releases of a run that the collective has withdrawn, as far as is known here."""
        return frozenset(str(row[0]) for row in self._rows("SELECT release FROM withdrawn WHERE run_id = ?", run_id))

    def inherited(self, run_id: str, release: str) -> Inherited | None:
        """The committed learngene of the release with this digest, if it was committed."""
        return self._inherited("release = ?", run_id, release)

    def latest(self, run_id: str, form: Form) -> Inherited | None:
        """The last committed learngene of a form."""
        return self._inherited("form = ?", run_id, form)

    def load(self, inherited: Inherited) -> SealedLearngene:
        """Read a committed learngene back, as sealed as it came; its digests are those of the ledger.

        Raises:
            StorageFailedError: its files are gone or were changed.
        """
        folder = self._files / inherited.release
        try:
            release, grant, blob = (
                (folder / name).read_bytes() for name in ("release.json", "grant.json", "blob.sealed")
            )
            return verify_committed(
                release, grant, blob, release_digest=inherited.release, grant_digest=inherited.grant
            )
        except OSError as error:
            raise StorageFailedError(
                f"cannot read the learngene {folder}: {error.strerror}; request it again"
            ) from error
        except (DigestMismatchError, MalformedError) as error:
            raise StorageFailedError(f"the learngene {folder} was changed on disk: {error}") from error

    def _is_whole(self, inherited: Inherited) -> bool:
        try:
            self.load(inherited)
        except StorageFailedError:
            return False
        return True

    def _inherited(self, condition: str, run_id: str, value: str) -> Inherited | None:
        rows = self._rows(
            "SELECT key_epoch, seq, form, release, grant_digest, receipt FROM inherited"
            f" WHERE run_id = ? AND {condition} ORDER BY key_epoch DESC, seq DESC LIMIT 1",
            run_id,
            value,
        )
        if not rows:
            return None
        epoch, seq, form, release, grant, receipt = rows[0]
        return Inherited(
            _integer(epoch),
            _integer(seq),
            _form(form),
            str(release),
            str(grant),
            None if receipt is None else _bytes(receipt),
        )

    @staticmethod
    def _withdraw(database: sqlite3.Connection, run_id: str, releases: tuple[str, ...]) -> None:
        database.executemany(
            "INSERT OR IGNORE INTO withdrawn VALUES (?, ?)", [(run_id, release) for release in releases]
        )

    @staticmethod
    def _advance(database: sqlite3.Connection, release: Release, digest: str, state: State) -> None:
        before = _BEFORE[state]
        marks = ", ".join("?" * len(before))
        changed = database.execute(
            f"UPDATE exchanges SET state = ? WHERE run_id = ? AND form = ? AND release = ? AND state IN ({marks})",
            (state, release.run_id, release.form, digest, *before),
        ).rowcount
        if changed != 1:
            raise StorageFailedError(
                f"the exchange for the form {release.form} cannot become {state} with release {release.seq} from where"
                " it stands"
            )


def _seen_of(row: tuple[object, ...]) -> SeenRelease:
    return SeenRelease(_integer(row[0]), _integer(row[1]), _form(row[2]), str(row[3]), str(row[4]))


# SQLite's rows are untyped; STRICT tables make these true.
def _bytes(value: object) -> bytes:
    assert isinstance(value, bytes)
    return value


def _integer(value: object) -> int:
    assert isinstance(value, int)
    return value


def _form(value: object) -> Form:
    for form in get_args(Form):
        if value == form:
            found: Form = form
            return found
    raise AssertionError(f"the ledger holds a form that there is not: {value!r}")
