"""The individual's ledger: what it asked for, has seen and has inherited; durable before anything is sent.

What it inherited lies beside the database as files, written before the row that names them.
"""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from protocol.digest import digest_of
from protocol.encoding.blob import MAX_BLOB_BYTES
from protocol.errors import (
    DigestMismatchError,
    EquivocationError,
    InputError,
    MalformedError,
    RefusedError,
    RollbackError,
    StorageFailedError,
    TooLargeError,
)
from protocol.exchange.ledger_database import (
    LedgerDatabase,
    Row,
    as_bytes,
    as_digest,
    as_integer,
    ledger_file,
    refuse_row,
)
from protocol.exchange.ledger_tables import INDIVIDUAL
from protocol.exchange.release_chain import SeenRelease, contradicts
from protocol.exchange.verification import SealedLearngene, VerifiedEnvelopes, VerifiedLearngene, verify_committed
from protocol.files import state_files
from protocol.files.atomic import write_atomically, write_folder_atomically
from protocol.learngene.architecture import Form, form_named
from protocol.messages import envelope, payloads
from protocol.messages.payloads import Release, Request
from protocol.messages.sealing import OVERHEAD_BYTES

#: Most envelopes that an individual keeps as evidence of two histories.
MOST_EVIDENCE = 64
#: The files of an inherited learngene, and how large each may be.
_PARTS = {
    "release.json": envelope.MAX_BYTES,
    "grant.json": envelope.MAX_BYTES,
    "blob.sealed": MAX_BLOB_BYTES + OVERHEAD_BYTES,
}


class State(StrEnum):
    """Where an individual stands with one form of learngene of one run."""

    IDLE = "IDLE"
    REQUESTED = "REQUESTED"
    RECEIVED = "RECEIVED"
    VERIFIED = "VERIFIED"
    COMMITTED = "COMMITTED"
    ACKED = "ACKED"


#: The states from which each state can be reached. After a crash in between, receiving the same bundle again repairs
#: the state; ``requested`` begins a new exchange from any state and ``acknowledged`` ends it.
_BEFORE: dict[State, tuple[State, ...]] = {
    State.REQUESTED: (State.RECEIVED,),
    State.RECEIVED: (State.REQUESTED, State.RECEIVED, State.VERIFIED),
    State.VERIFIED: (State.RECEIVED,),
    State.COMMITTED: (State.VERIFIED,),
}
_OPEN = (State.REQUESTED, State.RECEIVED, State.VERIFIED)


@dataclass(frozen=True)
class StoredRequest:
    """A request of this individual."""

    envelope: bytes

    @property
    def payload(self) -> Request:
        """The payload of the request.

        Raises:
            StorageFailedError: it is no request, so this program did not store it.
        """
        try:
            return payloads.decode(Request, envelope.parse(self.envelope).payload)
        except RefusedError:
            refuse_row("what stands for a request is none")


@dataclass(frozen=True)
class Inherited:
    """A committed learngene: its release, its grant, and its receipt if there is one."""

    key_epoch: int
    seq: int
    form: Form
    release: str
    grant: str
    receipt: bytes | None


class IndividualLedger(LedgerDatabase):
    """Per run and form of an individual, one exchange with its state, the releases seen, the learngenes committed."""

    def __init__(self, folder: Path, *, reading: bool = False) -> None:
        """Open or make the ledger in the individual's private ``folder``.

        Args:
            reading: make nothing, and change nothing in it.

        Raises:
            StorageFailedError: it cannot be opened.
        """
        super().__init__(folder, INDIVIDUAL, reading=reading)

    def state(self, run_id: str, form: Form) -> State:
        """Where the exchange for this form stands."""
        row = self._row("SELECT state FROM exchanges WHERE run_id = ? AND form = ?", run_id, form)
        return State.IDLE if row is None else _state(row[0])

    def open_request(self, run_id: str, form: Form) -> StoredRequest | None:
        """The request for this form that is not answered yet, if there is one."""
        row = self._row("SELECT envelope, state FROM exchanges WHERE run_id = ? AND form = ?", run_id, form)
        if row is None or _state(row[1]) not in _OPEN:
            return None
        return StoredRequest(as_bytes(row[0]))

    def open_requests(self, run_id: str) -> dict[str, Form]:
        """Digest and form of every request that is not answered yet."""
        rows = self._rows("SELECT request, form, state FROM exchanges WHERE run_id = ?", run_id)
        return {as_digest(request): _form(form) for request, form, state in rows if _state(state) in _OPEN}

    def requested(self, run_id: str, form: Form, request: bytes) -> None:
        """Store a request before it is sent: any state -> REQUESTED. An earlier request no longer awaits an answer."""
        with self._transaction():
            self._execute(
                "INSERT OR REPLACE INTO exchanges VALUES (?, ?, ?, ?, ?, NULL)",
                run_id,
                form,
                State.REQUESTED,
                digest_of(request),
                request,
            )

    def received(self, envelopes: VerifiedEnvelopes) -> None:
        """Store an authentic answer: REQUESTED -> RECEIVED. Its release is remembered as seen, with what it withdraws;
        the exchange is about this release from now on.

        Raises:
            EquivocationError: another release with its number was seen, since it was verified too.
            StorageFailedError: it could not be stored, or the exchange stands elsewhere.
        """
        release, digest = envelopes.release, envelopes.release_digest
        with self._transaction():
            self._execute(
                "UPDATE exchanges SET release = ? WHERE run_id = ? AND form = ?", digest, release.run_id, release.form
            )
            self._advance(release, digest, State.RECEIVED)
            place = (release.run_id, release.key_epoch, release.seq)
            self._execute(
                "INSERT OR IGNORE INTO seen VALUES (?, ?, ?, ?, ?, ?, ?)",
                *place,
                release.form,
                digest,
                release.prev,
                envelopes.release_bytes,
            )
            # Check again: two simultaneous answers were each compared only with what was seen before both.
            seen = self._row("SELECT digest FROM seen WHERE run_id = ? AND key_epoch = ? AND seq = ?", *place)
            if seen != (digest,):
                raise EquivocationError(
                    f"the collective signed two histories: there are two releases {release.seq}; ask the collective"
                )
            self._withdraw(release.run_id, release.withdraws)

    def refused(self, envelopes: VerifiedEnvelopes) -> None:
        """Go back after a wrong blob: RECEIVED -> REQUESTED, so that the right one can still be received.

        Raises:
            StorageFailedError: the exchange stands elsewhere, or is about another release.
        """
        with self._transaction():
            self._advance(envelopes.release, envelopes.release_digest, State.REQUESTED)

    def verified(self, learngene: VerifiedLearngene) -> None:
        """Store that everything was verified: RECEIVED -> VERIFIED. Raises as ``refused``."""
        with self._transaction():
            self._advance(learngene.release, learngene.release_digest, State.VERIFIED)

    def commit(self, learngene: VerifiedLearngene, *, again: bool = False) -> Inherited:
        """Store release, grant and blob together, all or nothing: VERIFIED -> COMMITTED.

        A stored release is not changed, unless its files were lost or changed.

        Args:
            again: store a stored release under the new grant: the earlier grant's encryption key is gone.

        Returns:
            The committed learngene of this release.

        Raises:
            RollbackError: a later release of the form is committed already.
            EquivocationError: another release with its number is committed already.
            StorageFailedError: it could not be stored, or the exchange stands elsewhere or is about another release;
                nothing has changed.
        """
        release, digest, sealed = learngene.release, learngene.release_digest, learngene.sealed
        with self._transaction():
            self._advance(release, digest, State.COMMITTED)
            newest = self.latest(release.run_id, release.form)
            if newest is not None and (newest.key_epoch, newest.seq) > (release.key_epoch, release.seq):
                raise RollbackError(f"release {newest.seq} is committed already, {release.seq} is older")
            namesake = self._row(
                "SELECT 1 FROM inherited WHERE run_id = ? AND key_epoch = ? AND seq = ? AND release != ?",
                release.run_id,
                release.key_epoch,
                release.seq,
                digest,
            )
            if namesake is not None:
                raise EquivocationError(f"another release {release.seq} is committed already; ask the collective")
            # Write the files now: all checks are done, and the row that names them is not durable yet.
            stored = self.inherited(release.run_id, digest)
            if stored is not None and not again and self._is_whole(stored):
                grant_digest = stored.grant
            else:
                grant_digest = digest_of(sealed.grant_bytes)
                write_folder_atomically(
                    self._files / digest,
                    {
                        "release.json": sealed.release_bytes,
                        "grant.json": sealed.grant_bytes,
                        "blob.sealed": sealed.ciphertext,
                    },
                )
            self._execute(
                "INSERT INTO inherited VALUES (?, ?, ?, ?, ?, ?, NULL)"
                " ON CONFLICT DO UPDATE SET grant_digest = excluded.grant_digest",
                release.run_id,
                release.key_epoch,
                release.seq,
                release.form,
                digest,
                grant_digest,
            )
        receipt = None if stored is None else stored.receipt
        return Inherited(release.key_epoch, release.seq, release.form, digest, grant_digest, receipt)

    def acknowledged(self, run_id: str, inherited: Inherited, receipt: bytes) -> None:
        """Store a receipt before it is sent, now and whenever the release comes again: COMMITTED -> ACKED if the
        exchange ended with this release.

        Raises:
            StorageFailedError: it could not be stored, or this release was never inherited.
        """
        with self._transaction():
            self._execute(
                "UPDATE exchanges SET state = ? WHERE run_id = ? AND form = ? AND release = ? AND state = ?",
                State.ACKED,
                run_id,
                inherited.form,
                inherited.release,
                State.COMMITTED,
            )
            changed = self._execute(
                "UPDATE inherited SET receipt = ? WHERE run_id = ? AND release = ?", receipt, run_id, inherited.release
            )
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
            The paths of the kept files. At most ``MOST_EVIDENCE`` files are kept, the first ones; a file for which
            there is no room is not among them.

        Raises:
            StorageFailedError: they could not be stored.
        """
        release, digest = payloads.decode(Release, envelope.parse(data).payload), digest_of(data)
        rows = self._rows(
            "SELECT key_epoch, seq, form, digest, prev, envelope FROM seen WHERE run_id = ? AND key_epoch = ?"
            " AND seq BETWEEN ? AND ?",
            release.run_id,
            release.key_epoch,
            release.seq - 1,
            release.seq + 1,
        )
        envelopes = {as_digest(row[3]): as_bytes(row[5]) for row in rows if contradicts(release, digest, _seen_of(row))}
        try:
            folder = state_files.subfolder(self._folder, "evidence", "the evidence")
            kept = set(state_files.entries(self._folder, "evidence", "the evidence"))
        except InputError as error:
            raise StorageFailedError(str(error)) from None
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
        with self._transaction():
            self._withdraw(run_id, (release,))

    def withdrawn(self, run_id: str) -> frozenset[str]:
        """Digests of the releases of a run that the collective has withdrawn, as far as this ledger knows."""
        rows = self._rows("SELECT release FROM withdrawn WHERE run_id = ?", run_id)
        return frozenset(as_digest(row[0]) for row in rows)

    def inherited(self, run_id: str, release: str) -> Inherited | None:
        """The committed learngene of the release with this digest, if it was committed."""
        return self._inherited("release = ?", run_id, release)

    def latest(self, run_id: str, form: Form) -> Inherited | None:
        """The last committed learngene of a form."""
        return self._inherited("form = ?", run_id, form)

    def load(self, inherited: Inherited) -> SealedLearngene:
        """Read a committed learngene back, still sealed, and compare its digests with the ledger's.

        Raises:
            StorageFailedError: its files are gone or were changed.
        """
        folder = self._files / inherited.release
        parts = []
        for name, limit in _PARTS.items():
            part = ledger_file(
                self._folder, f"{self._files.name}/{inherited.release}/{name}", "the learngene", max_bytes=limit
            )
            if part is None:
                raise StorageFailedError(f"cannot read the learngene {folder}: it has no {name}; request it again")
            parts.append(part)
        release, grant, blob = parts
        try:
            return verify_committed(
                release, grant, blob, release_digest=inherited.release, grant_digest=inherited.grant
            )
        except (DigestMismatchError, MalformedError, TooLargeError) as error:
            raise StorageFailedError(f"the learngene {folder} was changed on disk: {error}") from error

    def _is_whole(self, inherited: Inherited) -> bool:
        try:
            self.load(inherited)
        except StorageFailedError:
            return False
        return True

    def _inherited(self, condition: str, run_id: str, value: str) -> Inherited | None:
        row = self._row(
            "SELECT key_epoch, seq, form, release, grant_digest, receipt FROM inherited"
            f" WHERE run_id = ? AND {condition} ORDER BY key_epoch DESC, seq DESC",
            run_id,
            value,
        )
        if row is None:
            return None
        epoch, seq, form, release, grant, receipt = row
        return Inherited(
            as_integer(epoch),
            as_integer(seq),
            _form(form),
            as_digest(release),
            as_digest(grant),
            None if receipt is None else as_bytes(receipt),
        )

    def _withdraw(self, run_id: str, releases: tuple[str, ...]) -> None:
        for release in releases:
            self._execute("INSERT OR IGNORE INTO withdrawn VALUES (?, ?)", run_id, release)

    def _advance(self, release: Release, digest: str, state: State) -> None:
        before = _BEFORE[state]
        marks = ", ".join("?" * len(before))
        changed = self._execute(
            f"UPDATE exchanges SET state = ? WHERE run_id = ? AND form = ? AND release = ? AND state IN ({marks})",
            state,
            release.run_id,
            release.form,
            digest,
            *before,
        )
        if changed != 1:
            raise StorageFailedError(
                f"the exchange for the form {release.form} cannot become {state} with release {release.seq} from where"
                " it stands"
            )


def _seen_of(row: Row) -> SeenRelease:
    return SeenRelease(as_integer(row[0]), as_integer(row[1]), _form(row[2]), as_digest(row[3]), as_digest(row[4]))


def _form(value: object) -> Form:
    form = form_named(value) if isinstance(value, str) else None
    return refuse_row("it names a form that there is not") if form is None else form


def _state(value: object) -> State:
    # The text does not repeat the value, which may be anything.
    found = next((state for state in State if state.value == value), None)
    return refuse_row("it names a state that there is not") if found is None else found
