"""The collective's ledger: its releases, and to whom each was granted; durable before anything is sent.

Blobs lie beside the database as files, written before the row that names them. Content keys are stored only encrypted
(:mod:`protocol.exchange.content_keys`), so a ledger can be read without any key.
"""

from dataclasses import dataclass, field
from pathlib import Path

from protocol.digest import digest_of
from protocol.errors import (
    EquivocationError,
    InputError,
    RefusedError,
    StorageFailedError,
    WrongAudienceError,
)
from protocol.exchange.content_keys import CLOSED_BYTES, ClosedKey
from protocol.exchange.ledger_database import (
    LedgerDatabase,
    Row,
    as_bytes,
    as_digest,
    as_integer,
    ledger_file,
    refuse_row,
)
from protocol.exchange.ledger_tables import COLLECTIVE
from protocol.exchange.verification import (
    VerifiedRequest,
)
from protocol.files.atomic import write_atomically
from protocol.learngene.architecture import Form
from protocol.messages import envelope, payloads
from protocol.messages.payloads import MOST_WITHDRAWN, NO_RELEASE, Release


@dataclass(frozen=True)
class StoredRelease:
    """A release of this collective: its envelope and payload, its content key encrypted with the collective's signing
    key, and whether it was withdrawn.
    """

    envelope: bytes
    payload: Release
    closed_key: bytes = field(repr=False)
    withdrawn: bool

    @property
    def digest(self) -> str:
        """The release's name."""
        return digest_of(self.envelope)

    @property
    def seq(self) -> int:
        """Its number in the chain."""
        return self.payload.seq


def stored_release(data: bytes, closed_key: bytes, *, withdrawn: bool = False) -> StoredRelease:
    """A release that this collective made itself, as its ledger keeps it."""
    payload = payloads.decode(Release, envelope.parse(data).payload)
    return StoredRelease(data, payload, closed_key, withdrawn)


_RELEASE_COLUMNS = "envelope, closed_key, withdrawn, run_id, seq, form, digest"


def _release_of(row: Row) -> StoredRelease:
    data, closed_key = as_bytes(row[0]), as_bytes(row[1])
    try:
        stored = stored_release(data, closed_key, withdrawn=bool(as_integer(row[2], most=1)))
    except StorageFailedError:
        raise
    except RefusedError:
        refuse_row("what stands for a release is none")
    payload = stored.payload
    if (payload.run_id, payload.seq, payload.form, stored.digest) != row[3:] or len(closed_key) != CLOSED_BYTES:
        refuse_row("a release does not stand in its own place")
    return stored


class CollectiveLedger(LedgerDatabase):
    """The chain of a collective's releases, a grant for every request that it answered, and the receipts."""

    def __init__(self, folder: Path) -> None:
        """Open or make the ledger in the collective's private ``folder``.

        Raises:
            StorageFailedError: it cannot be opened.
        """
        super().__init__(folder, COLLECTIVE)

    def releases(self, run_id: str) -> list[StoredRelease]:
        """The chain of a run, first to last."""
        rows = self._rows(f"SELECT {_RELEASE_COLUMNS} FROM releases WHERE run_id = ? ORDER BY seq", run_id)
        return [_release_of(row) for row in rows]

    def latest(self, run_id: str, form: Form | None = None) -> StoredRelease | None:
        """The last release of a run, of one form or (None) of any; withdrawn or not."""
        row = self._row(
            f"SELECT {_RELEASE_COLUMNS} FROM releases WHERE run_id = ? AND form = coalesce(?, form) ORDER BY seq DESC",
            run_id,
            form,
        )
        return None if row is None else _release_of(row)

    def release(self, digest: str) -> StoredRelease:
        """The release with this digest.

        Raises:
            StorageFailedError: the ledger has no such release.
        """
        row = self._row(f"SELECT {_RELEASE_COLUMNS} FROM releases WHERE digest = ?", digest)
        if row is None:
            raise StorageFailedError(f"the ledger holds no release {digest[:16]}; publish again")
        return _release_of(row)

    def withdraw(self, run_id: str, digest: str) -> list[StoredRelease]:
        """Mark a release of a run as withdrawn, and with it every other one with the same content. A withdrawal is
        final.

        Returns:
            All of them, first to last.

        Raises:
            InputError: there is no such release in this run.
            StorageFailedError: it could not be stored.
        """
        with self._transaction():
            chain = self.releases(run_id)
            contents = {release.payload.plaintext for release in chain if release.digest == digest}
            if not contents:
                raise InputError(f"this run has no release {digest[:16]}; `collective-node releases` lists them")
            found = [release.digest for release in chain if release.payload.plaintext in contents]
            for one in found:
                self._execute("UPDATE releases SET withdrawn = 1 WHERE digest = ?", one)
        return [self.release(one) for one in found]

    def withdrawn(self, run_id: str) -> list[StoredRelease]:
        """The withdrawn releases of a run, first to last: the order in which they were released."""
        rows = self._rows(
            f"SELECT {_RELEASE_COLUMNS} FROM releases WHERE run_id = ? AND withdrawn = 1 ORDER BY seq", run_id
        )
        return [_release_of(row) for row in rows]

    def add_release(
        self, data: bytes, content_key: ClosedKey, blob: bytes, payload: Release | None = None
    ) -> StoredRelease:
        """Store a release with its sealed blob and the closed key to it as the next link of its run's chain.

        Args:
            payload: the payload of the envelope ``data``, if it was parsed before.

        Raises:
            EquivocationError: it is not the next link; the ledger never holds two releases with one number.
            StorageFailedError: it could not be stored.
            ValueError: the content key sealed an earlier release.
        """
        if self._rows("SELECT 1 FROM releases WHERE key_name = ?", content_key.name):
            raise ValueError("a content key seals one release only: GCM fails with two plaintexts under one key")
        if payload is None:
            stored = stored_release(data, content_key.closed)
            payload = stored.payload
        else:
            stored = StoredRelease(data, payload, content_key.closed, withdrawn=False)
        # Store the blob first: a row never names a missing file.
        self.keep_blob(stored, blob)
        with self._transaction():
            last = self._row("SELECT seq, digest FROM releases WHERE run_id = ? ORDER BY seq DESC", payload.run_id) or (
                0,
                NO_RELEASE,
            )
            seq, prev = as_integer(last[0]), as_digest(last[1])
            if (payload.seq, payload.prev) != (seq + 1, prev):
                raise EquivocationError(
                    f"release {payload.seq} does not follow release {seq}; check whether another collective is running"
                )
            gone = self._rows(
                "SELECT digest FROM releases WHERE run_id = ? AND withdrawn = 1 ORDER BY seq DESC LIMIT ?",
                payload.run_id,
                MOST_WITHDRAWN,
            )
            if not {as_digest(row[0]) for row in gone} <= set(payload.withdraws):
                raise StorageFailedError("a release was withdrawn while this one was made; publish again")
            self._execute(
                "INSERT INTO releases VALUES (?, ?, ?, ?, ?, ?, ?, ?, 0)",
                payload.run_id,
                payload.seq,
                payload.form,
                stored.digest,
                payload.prev,
                data,
                *content_key,
            )
        return stored

    def keep_blob(self, stored: StoredRelease, blob: bytes) -> None:
        """Store the blob of a release, unless it is stored and whole.

        Raises:
            StorageFailedError: it could not be stored.
        """
        try:
            self.blob(stored)
        except StorageFailedError:
            write_atomically(self._folder / self._blob_name(stored), blob, mode=0o600)

    def blob(self, stored: StoredRelease) -> bytes:
        """The (sealed) blob of a release.

        Raises:
            StorageFailedError: the file is gone or was changed.
        """
        data = self.read_blob(stored)
        if digest_of(data) != stored.payload.ciphertext.sha256:
            raise StorageFailedError(f"the blob {self._blob_name(stored)} was changed on disk; publish again")
        return data

    def read_blob(self, stored: StoredRelease) -> bytes:
        """The bytes stored as the blob of a release, unverified: the caller compares them with it, as the gate does.

        Raises:
            StorageFailedError: the file is gone, or no file.
        """
        name = self._blob_name(stored)
        found = ledger_file(self._folder, name, "the blob", max_bytes=stored.payload.ciphertext.size)
        if found is None:
            raise StorageFailedError(f"cannot read the blob {self._folder / name}: there is none; publish again")
        return found

    def request_with_nonce(self, run_id: str, keyid: str, nonce: str) -> str | None:
        """The digest of the answered request with this nonce of this signer, if there is one."""
        row = self._row("SELECT request FROM grants WHERE run_id = ? AND keyid = ? AND nonce = ?", run_id, keyid, nonce)
        return None if row is None else as_digest(row[0])

    def grant(self, request: str) -> tuple[bytes, StoredRelease] | None:
        """The latest grant that answers the request with this digest, and its release; None if it was not answered."""
        row = self._row("SELECT envelope, release FROM grants WHERE request = ? ORDER BY rowid DESC", request)
        return None if row is None else (as_bytes(row[0]), self.release(as_digest(row[1])))

    def add_grant(
        self, request: VerifiedRequest, release: StoredRelease, grant: bytes, *, instead_of: bytes | None = None
    ) -> None:
        """Store the answer to a request. An earlier answer is kept beside it, so that a receipt that is still on its
        way finds it; only one that granted the same release is replaced.

        Args:
            instead_of: the stale grant that this one replaces as the answer; None: there is none.

        Raises:
            EquivocationError: another request with its nonce was answered.
            StorageFailedError: it could not be stored, or the request has another answer than ``instead_of``.
        """
        payload = request.payload
        with self._transaction():
            namesake = self._row(
                "SELECT 1 FROM grants WHERE run_id = ? AND keyid = ? AND nonce = ? AND request != ?",
                payload.run_id,
                request.key.keyid,
                payload.nonce,
                request.digest,
            )
            if namesake is not None:
                raise EquivocationError(f"{request.key.party} used the nonce of an earlier request for another one")
            answered = self._row("SELECT envelope FROM grants WHERE request = ? ORDER BY rowid DESC", request.digest)
            if (None if answered is None else answered[0]) != instead_of:
                raise StorageFailedError("the request was answered by another process at this moment; send it again")
            # A row that takes another's place gets a new rowid, so that it is the latest.
            self._execute(
                "INSERT OR REPLACE INTO grants VALUES (?, ?, ?, ?, ?, ?)",
                request.digest,
                payload.run_id,
                request.key.keyid,
                payload.nonce,
                release.digest,
                grant,
            )

    def granted(self, release: str) -> tuple[str, ...]:
        """The key ids to which a release was granted."""
        rows = self._rows("SELECT DISTINCT keyid FROM grants WHERE release = ? ORDER BY keyid", release)
        return tuple(as_digest(row[0]) for row in rows)

    def add_receipt(self, keyid: str, release: str, data: bytes) -> None:
        """Store a receipt; the first one for a release stays.

        Raises:
            WrongAudienceError: this release was never granted to this key.
            StorageFailedError: it could not be stored.
        """
        with self._transaction():
            if self._row("SELECT 1 FROM grants WHERE keyid = ? AND release = ?", keyid, release) is None:
                raise WrongAudienceError(f"the key {keyid[:16]} sent a receipt for a release that it was never granted")
            self._execute("INSERT OR IGNORE INTO receipts VALUES (?, ?, ?)", keyid, release, data)

    def receipts(self, release: str) -> dict[str, bytes]:
        """The receipts for a release, by the signer's key id."""
        rows = self._rows("SELECT keyid, envelope FROM receipts WHERE release = ? ORDER BY keyid", release)
        return {as_digest(keyid): as_bytes(data) for keyid, data in rows}

    def _blob_name(self, stored: StoredRelease) -> str:
        return f"releases/{stored.payload.ciphertext.sha256}.blob"
