"""The desks of the two parties: what they answer and accept, with ledger, policy and log in the right order.

A desk is the last thing before the socket: what it returns has passed the policy's gate, is durable in the ledger and
is recorded in the log of crossings.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar, Generic, NamedTuple, Self, TypeVar, get_args

from protocol.digest import digest_of
from protocol.encoding import blob as blobs
from protocol.errors import (
    DigestMismatchError,
    EquivocationError,
    ExpiredError,
    InputError,
    PolicyDeniedError,
    RefusedError,
    RevokedKeyError,
    StorageFailedError,
    UnknownKeyError,
    WrongAudienceError,
)
from protocol.exchange import content_keys
from protocol.exchange.audit import Crossings
from protocol.exchange.egress import Gate, egress
from protocol.exchange.ledger import CollectiveLedger, IndividualLedger, Inherited, State, StoredRelease
from protocol.exchange.verification import (
    Expectation,
    Holder,
    VerifiedAbort,
    VerifiedLearngene,
    VerifiedReceipt,
    VerifiedRequest,
    check_values,
    open_sealed,
    verify_abort,
    verify_content,
    verify_envelopes,
    verify_file,
    verify_receipt,
    verify_request,
)
from protocol.keys.party_keys import NodeKeys
from protocol.keys.signing_key import SigningKey
from protocol.learngene.architecture import Form
from protocol.learngene.learngene import Learngene
from protocol.messages import envelope, payloads, sealing
from protocol.messages.builders import make_abort, make_grant, make_receipt, make_release, make_request
from protocol.messages.bundle_file import BundleFile
from protocol.messages.payloads import (
    MOST_WITHDRAWN,
    NO_RELEASE,
    SKEW,
    Content,
    Grant,
    Payload,
    Receipt,
    Release,
    Request,
)
from protocol.trust.policy import Policy
from protocol.trust.trust_file import TrustFile, read_trust
from protocol.trust.trust_store import RevocationStatus, Role, TrustedKey, TrustStore

logger = logging.getLogger(__name__)

LedgerT = TypeVar("LedgerT", CollectiveLedger, IndividualLedger)

_PARTNER: dict[Role, Role] = {"collective": "individual", "individual": "collective"}
_A_PARTY: dict[Role, str] = {"collective": "a collective", "individual": "an individual"}

#: Who is named in the log for what could not be verified.
UNVERIFIED = "unverified"


class Answer(NamedTuple):
    """What grants a request: the release, the grant and the sealed blob, ready to be sent."""

    release: bytes
    grant: bytes
    blob: bytes


class Withdrawal(NamedTuple):
    """What answers a request where the learngene was withdrawn and nothing took its place: an ABORT."""

    abort: bytes


class _Desk(Generic[LedgerT]):
    """What both desks hold: key, trust store, ledger, policy, run, log of crossings.

    ``trust`` is asked anew for each piece of work, so that a revocation reaches a desk that is open. Every ``now`` is
    compared with the latest time that the ledger remembers, and the later one is decided by: what has expired once is
    not answered again where the clock is set back.
    """

    role: ClassVar[Role]

    def __init__(
        self,
        *,
        keys: NodeKeys,
        trust: Callable[[], TrustStore],
        ledger: LedgerT,
        policy: Policy,
        run_id: str,
        crossings: Crossings,
    ) -> None:
        if policy.role != self.role:
            raise InputError(f"the {self.role} needs the policy of {_A_PARTY[self.role]}")
        self._key = keys.signing
        self._trust = trust
        self._ledger: LedgerT = ledger
        self._policy = policy
        self._run_id = run_id
        self._clock_was_behind = False
        self.gate = Gate(policy, crossings, key=self._key, run_id=run_id, is_partner=self._is_partner)
        # Before anything is said in its name or to it.
        self._collective(trust())

    @classmethod
    def open(
        cls,
        state: Path,
        *,
        party: str,
        keys: NodeKeys,
        trust: Path,
        root: str,
        run_id: str,
        clock: Callable[[], int],
        policy: Policy | None = None,
    ) -> Self:
        """The desk of ``party``; ledger and log of crossings lie in its own folder.

        Args:
            state: the party's own folder, made where there is none.
            trust: the trust store's file.
            root: the public key, in hexadecimal, of the root that must have signed it.
            clock: unix seconds, for the log of crossings.
            policy: of the site; None: the default.
        """
        ledger = cls._open_ledger(state)
        return cls(
            keys=keys,
            trust=TrustFile(trust, root, ledger).current,
            ledger=ledger,
            policy=policy or Policy.for_role(cls.role),
            run_id=run_id,
            crossings=Crossings(state / "crossings.jsonl", party, clock),
        )

    @staticmethod
    def _open_ledger(state: Path) -> LedgerT:
        """The role's ledger in a party's folder."""
        raise NotImplementedError

    @classmethod
    def check_trust(cls, trust: Path, root: str, keys: NodeKeys) -> None:
        """Whether a desk opens under a trust store, to be asked before anything is made for it. What the ledger
        remembers is left aside.

        Args:
            trust: the trust store's file.
            root: the public key, in hexadecimal, of the root that must have signed it.

        Raises:
            InputError: it cannot be read, or lacks the collective's own key.
            RefusedError: it is refused, or names no collective, or several.
        """
        cls._believed(read_trust(trust, root=root), keys.signing)

    def _collective(self, trust: TrustStore) -> TrustedKey:
        """The collective's pinned key."""
        return self._believed(trust, self._key)

    @staticmethod
    def _believed(trust: TrustStore, own: SigningKey) -> TrustedKey:
        """The collective's pinned key; ``own``: the party's."""
        raise NotImplementedError

    def time(self, now: int) -> int:
        """The time to decide by, which never goes back; ``now``: what the clock says. A clock that stands further
        behind than clocks may differ is named in the log, once.

        Raises:
            StorageFailedError: it could not be remembered.
        """
        later = self._ledger.time_after(now)
        behind = later - now > SKEW
        if behind and not self._clock_was_behind:
            logger.warning("%s", behind_line(now, later, self.role))
        self._clock_was_behind = behind
        return later

    def _is_partner(self, keyid: str) -> bool:
        try:
            self._trust().key_for(keyid, _PARTNER[self.role])
        except (UnknownKeyError, RevokedKeyError):
            return False
        return True


class CollectiveDesk(_Desk[CollectiveLedger]):
    """The collective's side: publishes learngenes, answers requests, takes receipts. All of it survives a restart.

    Args:
        keys: the signing key is pinned in ``trust`` for the role.
        run_id: 128 bits as 32 hexadecimal digits.
    """

    role: ClassVar[Role] = "collective"

    @staticmethod
    def _open_ledger(state: Path) -> CollectiveLedger:
        return CollectiveLedger(state)

    @staticmethod
    def _believed(trust: TrustStore, own: SigningKey) -> TrustedKey:
        # A key that nobody pinned would sign releases that everybody refuses.
        try:
            return trust.key_for(own.keyid, "collective")
        except (UnknownKeyError, RevokedKeyError) as error:
            raise InputError(f"the collective's own key is not in its trust store: {error}") from None

    def publish(self, learngene: Learngene, now: int, content_key: bytes) -> StoredRelease:
        """Sign, seal and store a learngene as the next release of the run. Nothing is sent yet.

        The same content again, while its release is the newest of its form, valid and says all that is withdrawn, is
        that release, no second one. A release withdraws all that were withdrawn before it, of more than
        ``MOST_WITHDRAWN`` the ones with the highest numbers.

        Args:
            content_key: 32 random bytes that nothing else was sealed with; used only if a new release is made.

        Raises:
            PolicyDeniedError, TooLargeError: the policy does not let it leave, or this content was withdrawn.
            NonFiniteError: it holds values that no computation could have meant.
            ExpiredError: the trust store is past its time.
            StorageFailedError: it could not be stored.
            ValueError: the content key sealed an earlier release.
        """
        now = self.time(now)
        epoch = self._epoch(now)
        check_values(learngene.architecture, learngene.tensors)
        content = _content(learngene)
        while True:
            head, withdrawn = self._ledger.latest(self._run_id), self._ledger.withdrawn(self._run_id)
            for former in withdrawn:
                if former.payload.plaintext == content:
                    raise PolicyDeniedError(f"this very learngene was withdrawn as release {former.seq}; evolve anew")
            published = self._ledger.latest(self._run_id, learngene.architecture.form)
            if (
                published is not None
                and _holds(published.payload, now)
                and _names(published, withdrawn)
                and self._says_the_same(published, learngene, content, epoch)
            ):
                sealed = sealing.encrypt(self._content_key(published), blobs.encode(learngene.tensors))
                self._ledger.keep_blob(published, sealed)
                return published
            made = self._append(learngene, head, withdrawn, now, epoch, content_key)
            if made is not None:
                return made

    def release_again(self, now: int, content_key: Callable[[], bytes]) -> list[StoredRelease]:
        """Release what is granted now once more, form by form, where its release does not name all that is withdrawn:
        then the answer to the next request for any form tells of it. Nothing is made where everything is said.

        Args:
            content_key: draws 32 random bytes, for each release that is made.

        Returns:
            The releases that were made.

        Raises:
            ExpiredError: the trust store is past its time.
            StorageFailedError: a stored blob is gone or was changed, or a release could not be stored.
        """
        now = self.time(now)
        epoch = self._epoch(now)
        made: list[StoredRelease] = []
        forms: list[Form] = [*get_args(Form)]
        while forms:
            head, withdrawn = self._ledger.latest(self._run_id), self._ledger.withdrawn(self._run_id)
            newest = self._ledger.latest(self._run_id, forms[-1])
            if newest is not None and self._is_granted_now(newest, now, epoch) and not _names(newest, withdrawn):
                again = self._append(self._opened(newest), head, withdrawn, now, epoch, content_key())
                if again is None:
                    continue
                made.append(again)
            forms.pop()
        return made

    def _append(
        self,
        learngene: Learngene,
        head: StoredRelease | None,
        withdrawn: list[StoredRelease],
        now: int,
        epoch: int,
        content_key: bytes,
    ) -> StoredRelease | None:
        """Release a learngene next after ``head``, and withdraw what is withdrawn. None: meanwhile another process of
        this collective has released or withdrawn something, so that it must be looked at anew."""
        seq, prev = (head.seq + 1, head.digest) if head is not None else (1, NO_RELEASE)
        release, data = make_release(
            learngene,
            run_id=self._run_id,
            seq=seq,
            prev=prev,
            key=self._key,
            key_epoch=epoch,
            policy_sha256=self._policy.sha256,
            now=now,
            content_key=content_key,
            withdraws=_named(withdrawn),
        )
        # What may not leave is not written down as released either.
        egress(self._policy, release)
        try:
            closed = content_keys.close(self._key, content_key, digest_of(release))
            return self._ledger.add_release(release, closed, data)
        except (EquivocationError, StorageFailedError):
            if (self._ledger.latest(self._run_id), self._ledger.withdrawn(self._run_id)) == (head, withdrawn):
                raise
        return None

    @property
    def fewest_samples(self) -> int:
        """A Fisher diagonal from fewer images than this may not leave the site."""
        return self._policy.minimum_fisher_samples

    def published(self, form: Form) -> StoredRelease | None:
        """The newest release of a form in this run; None where there is none."""
        return self._ledger.latest(self._run_id, form)

    def releases(self) -> list[StoredRelease]:
        """The chain of this run, first to last."""
        return self._ledger.releases(self._run_id)

    def withdraw(self, digest: str) -> list[StoredRelease]:
        """Withdraw a release of this run, and every other one that holds the same content: they are granted no more.

        Where one is the newest of its form, a request for that form is answered with that word. Otherwise a release
        says it: those that ``release_again`` or ``publish`` make from now on.

        Returns:
            All that are withdrawn with it, first to last.

        Raises:
            InputError: there is no such release in this run.
            StorageFailedError: it could not be stored.
        """
        return self._ledger.withdraw(self._run_id, digest)

    def answer_request(self, request: bytes, now: int) -> Answer | Withdrawal:
        """Grant the newest release of the form that a request asks for. The same request again has the same answer, as
        long as its release is not withdrawn, both it and the grant hold at this time, and no newer one tells more of
        what is withdrawn.

        Raises:
            RefusedError: its subclass for what is wrong with the request; ``PolicyDeniedError`` where nothing of that
                form is published; ``ExpiredError`` where the newest release does not hold at this time.
        """
        now = self.time(now)
        verified = self._verify_request(request, now)
        peer = verified.key.party
        self.gate.let_in(peer, "request", request)
        kem, epoch = verified.payload.hpke_kem, self._epoch(now)
        if kem not in self._policy.kems:
            raise PolicyDeniedError(
                f"{peer} asks with a key of the kind {kem}, this site seals to: {', '.join(self._policy.kems)}"
            )
        answered = self._ledger.grant(verified.digest)
        if answered is None or not self._still_answers(*answered, now, epoch):
            release = self._release_for(verified, now, epoch)
            if release.withdrawn:
                return self._withdrawal(verified, release, now)
            stale = None if answered is None else answered[0]
            answered = self._grant(verified, release, now, instead_of=stale), release
        grant, release = answered
        # The blob is compared with its release by the gate, once.
        answer = Answer(release.envelope, grant, self._ledger.read_blob(release))
        try:
            self.gate.let_out(peer, answer._asdict())
        except DigestMismatchError as error:
            raise StorageFailedError(f"release {release.seq} was changed on disk: {error}") from None
        return answer

    def accept_receipt(self, data: bytes, now: int) -> VerifiedReceipt:
        """Take a receipt; the same again changes nothing.

        Raises:
            RefusedError: its subclass for what is wrong; ``WrongAudienceError``: a release never granted to the signer.
        """
        now = self.time(now)
        try:
            verified = verify_receipt(data, trust=self._trust(), run_id=self._run_id, audience=self._key.keyid, now=now)
            self._ledger.add_receipt(verified.key.keyid, verified.payload.release, data)
        except RefusedError as error:
            self.gate.let_in(UNVERIFIED, "receipt", data, error)
            raise
        self.gate.let_in(verified.key.party, "receipt", data)
        return verified

    def _verify_request(self, request: bytes, now: int) -> VerifiedRequest:
        try:
            return verify_request(
                request,
                trust=self._trust(),
                run_id=self._run_id,
                audience=self._key.keyid,
                known=lambda keyid, nonce: self._ledger.request_with_nonce(self._run_id, keyid, nonce),
                now=now,
            )
        except RefusedError as error:
            self.gate.let_in(UNVERIFIED, "request", request, error)
            raise

    def _release_for(self, request: VerifiedRequest, now: int, epoch: int) -> StoredRelease:
        """The newest release of the form that is asked for; older ones are never granted again."""
        payload = request.payload
        release = self._ledger.latest(self._run_id, payload.form)
        if release is None:
            raise PolicyDeniedError(f"nothing of the form {payload.form} is published in this run; publish first")
        if not release.withdrawn and not _holds(release.payload, now):
            when = "past its time" if now >= release.payload.expires_at else "from the future"
            raise ExpiredError(f"release {release.seq} is {when}; publish the learngene again")
        if not release.withdrawn and not self._is_of_this_key(release, epoch):
            raise ExpiredError(f"release {release.seq} is signed with a former key; publish the learngene again")
        return release

    def _grant(self, request: VerifiedRequest, release: StoredRelease, now: int, *, instead_of: bytes | None) -> bytes:
        grant = make_grant(
            request.payload,
            request.digest,
            release.payload,
            release.digest,
            key=self._key,
            now=now,
            content_key=self._content_key(release),
        )
        self._ledger.add_grant(request, release, grant, instead_of=instead_of)
        return grant

    def _withdrawal(self, request: VerifiedRequest, release: StoredRelease, now: int) -> Withdrawal:
        abort = make_abort(
            run_id=self._run_id,
            audience=request.key.keyid,
            code="withdrawn",
            subject=release.digest,
            key=self._key,
            now=now,
        )
        self.gate.let_out(request.key.party, {"abort": abort})
        return Withdrawal(abort)

    def _content_key(self, release: StoredRelease) -> bytes:
        """What a release of this signing key was sealed with."""
        return content_keys.reopen(self._key, release.closed_key, release.digest)

    def _opened(self, release: StoredRelease) -> Learngene:
        """The learngene of a release of this signing key.

        Raises:
            StorageFailedError: its blob is gone or was changed, or its content key does not open.
        """
        tensors = blobs.decode(sealing.decrypt(self._content_key(release), self._ledger.blob(release)))
        return Learngene(release.payload.architecture, tensors, release.payload.fisher, release.payload.dp)

    def _epoch(self, now: int) -> int:
        """The epoch of this collective's key, under a trust store that holds now."""
        trust = self._trust()
        trust.check_current(now)
        return self._collective(trust).epoch

    def _is_of_this_key(self, release: StoredRelease, epoch: int) -> bool:
        """Whether individuals believe its signature now."""
        return (release.payload.signer, release.payload.key_epoch) == (self._key.keyid, epoch)

    def _is_granted_now(self, release: StoredRelease, now: int, epoch: int) -> bool:
        """Whether the newest release of a form would be granted to who asks."""
        try:
            egress(self._policy, release.envelope)
        except RefusedError:
            return False
        return not release.withdrawn and _holds(release.payload, now) and self._is_of_this_key(release, epoch)

    def _still_answers(self, grant: bytes, release: StoredRelease, now: int, epoch: int) -> bool:
        payload = payloads.decode(Grant, envelope.parse(grant).payload)
        if release.withdrawn or not (_holds(release.payload, now) and _holds(payload, now)):
            return False
        # Where a newer release tells more of what is withdrawn, whoever asks is to be told.
        tells = _names(release, self._ledger.withdrawn(self._run_id)) or release == self.published(release.payload.form)
        return tells and self._is_of_this_key(release, epoch)

    def _says_the_same(self, published: StoredRelease, learngene: Learngene, content: Content, epoch: int) -> bool:
        """Whether a learngene is what a release holds, under the same key and policy; its place in the chain apart."""
        payload = published.payload
        return self._is_of_this_key(published, epoch) and (
            payload.plaintext,
            payload.architecture,
            payload.fisher,
            payload.dp,
            payload.policy_sha256,
        ) == (
            content,
            learngene.architecture,
            learngene.fisher,
            learngene.privacy,
            self._policy.sha256,
        )


def behind_line(now: int, latest: int, role: Role) -> str:
    """What is said of a clock that stands behind the latest time that was decided by."""
    # Only here: what draws tables has no place in a node.
    from protocol.output import moment

    return (
        f"the clock stands at {moment(now)}, and this node has decided by {moment(latest)} before: that time counts, "
        f"and what has expired stays so. Set the clock right; where it was wrong before: {role}-node clock --forget"
    )


def _holds(payload: Payload, now: int) -> bool:
    """Whether a message that was made here once may be sent at this time; others would refuse it otherwise."""
    return payload.issued_at <= now + SKEW and now < payload.expires_at


def _named(withdrawn: list[StoredRelease]) -> tuple[str, ...]:
    """What a release can name of the withdrawn ones."""
    return tuple(former.digest for former in withdrawn[-MOST_WITHDRAWN:])


def _names(release: StoredRelease, withdrawn: list[StoredRelease]) -> bool:
    """Whether a release tells its readers all of the withdrawn ones that a release can tell."""
    return set(_named(withdrawn)) <= set(release.payload.withdraws)


def _blob_fault(release: bytes, blob: bytes) -> DigestMismatchError | None:
    """Whether a blob is not the one that an authentic release describes."""
    described = payloads.decode(Release, envelope.parse(release).payload).ciphertext
    if (len(blob), digest_of(blob)) == (described.size, described.sha256):
        return None
    return DigestMismatchError("the blob is not the one that was signed; fetch it again")


def _content(learngene: Learngene) -> Content:
    plaintext = blobs.encode(learngene.tensors)
    return Content(size=len(plaintext), sha256=digest_of(plaintext))


class Inheritance(NamedTuple):
    """What came of a bundle: the receipt to be sent, and the learngene that is now the newest of its form here."""

    receipt: bytes
    learngene: VerifiedLearngene


class IndividualDesk(_Desk[IndividualLedger]):
    """The individual's side: requests a form, inherits what answers it. All of it survives a restart.

    Args:
        keys: the collective has pinned the signing key, and seals content keys to the encryption key.
        trust: it must hold exactly one collective.
        run_id: 128 bits as 32 hexadecimal digits.

    Raises:
        InputError: there is no encryption key.
    """

    role: ClassVar[Role] = "individual"

    def __init__(
        self,
        *,
        keys: NodeKeys,
        trust: Callable[[], TrustStore],
        ledger: IndividualLedger,
        policy: Policy,
        run_id: str,
        crossings: Crossings,
    ) -> None:
        if keys.encryption is None:
            raise InputError("an individual needs an encryption key: learngene keygen --kind encryption")
        super().__init__(keys=keys, trust=trust, ledger=ledger, policy=policy, run_id=run_id, crossings=crossings)
        self._encryption = keys.encryption

    @staticmethod
    def _open_ledger(state: Path) -> IndividualLedger:
        return IndividualLedger(state)

    @staticmethod
    def _believed(trust: TrustStore, own: SigningKey) -> TrustedKey:
        return trust.only("collective")

    def request(self, form: Form, now: int, nonce: bytes, *, fresh: bool = False) -> bytes:
        """The request for a form, to be sent.

        An unanswered one that holds at this time, under the keys that hold now, is sent again as it is, unless
        ``fresh``; after an answer a new exchange begins. ``nonce``: 16 random bytes, used only if a new request is
        made.

        Raises:
            StorageFailedError: it could not be stored, so it must not be sent.
            PolicyDeniedError: the policy lets no request leave.
            ExpiredError: the trust store is past its time.
        """
        now = self.time(now)
        trust = self._trust()
        trust.check_current(now)
        collective = self._collective(trust)
        open_request = self._ledger.open_request(self._run_id, form)
        if (
            open_request is not None
            and not fresh
            and _holds(open_request.payload, now)
            and self._is_between(open_request.payload, collective)
            and open_request.payload.hpke_public == self._encryption.public.hex()
        ):
            data = open_request.envelope
        else:
            data = make_request(
                run_id=self._run_id,
                audience=collective.keyid,
                form=form,
                key=self._key,
                encryption=self._encryption,
                now=now,
                nonce=nonce,
            )
            # What may not leave is not waited for either.
            egress(self._policy, data)
            self._ledger.requested(self._run_id, form, data)
        self.gate.let_out(collective.party, {"request": data})
        return data

    def inherit(self, release: bytes, grant: bytes, blob: bytes, now: int) -> Inheritance:
        """Verify a bundle, commit it, and make the receipt. A release that is committed already has its stored receipt,
        whatever comes with it; a new one where that is past its time, or between other keys than hold now.

        Raises:
            RefusedError: its subclass for the first step of the verification that fails; nothing is inherited then, and
                the request stays open. Where release and grant were authentic and only what came as their blob was
                wrong, the release is remembered as seen, and so is what it withdraws. ``EquivocationError``: its text
                names the files in which both releases are kept.
        """
        now = self.time(now)
        trust = self._trust()
        collective = self._collective(trust)
        arrived = (("release", release), ("grant", grant), ("blob", blob))
        committed, fault = None, None
        try:
            for kind, data in arrived:
                self.gate.check_size(kind, data)
            committed = self._ledger.inherited(self._run_id, digest_of(release))
            if committed is None or committed.grant != digest_of(grant):
                with self._evidence_kept(release):
                    self._verify_and_commit(release, grant, blob, trust, now)
            else:
                fault = _blob_fault(release, blob)
        except RefusedError as error:
            for kind, data in arrived:
                self.gate.let_in(UNVERIFIED, kind, data, error)
            # A committed release has its receipt whatever came with it, but not where our own disk fails.
            if committed is None or isinstance(error, StorageFailedError):
                raise
        else:
            for kind, data in arrived:
                refused = fault if kind == "blob" else None
                self.gate.let_in(collective.party if refused is None else UNVERIFIED, kind, data, refused)
        committed = self._ledger.inherited(self._run_id, digest_of(release))
        assert committed is not None
        newest = self._ledger.latest(self._run_id, committed.form)
        assert newest is not None
        # Read back before the receipt says that it is there.
        learngene = self._open(newest)
        receipt = self._receipt(committed, collective, now)
        self.gate.let_out(collective.party, {"receipt": receipt})
        return Inheritance(receipt, learngene)

    def accept_abort(self, data: bytes, now: int) -> VerifiedAbort:
        """Take an ABORT of the collective; the same again changes nothing. What it withdraws is remembered.

        Raises:
            RefusedError: its subclass for what is wrong with it; nothing has changed then.
        """
        now = self.time(now)
        trust = self._trust()
        try:
            verified = verify_abort(
                data, trust=trust, role="collective", run_id=self._run_id, audience=self._key.keyid, now=now
            )
        except RefusedError as error:
            self.gate.let_in(UNVERIFIED, "abort", data, error)
            raise
        self.gate.let_in(verified.key.party, "abort", data)
        if verified.payload.code == "withdrawn" and verified.payload.subject is not None:
            self._ledger.withdraw(self._run_id, verified.payload.subject)
        return verified

    def learngene(self, form: Form) -> VerifiedLearngene | None:
        """The newest committed learngene of a form, read back from disk; None where none was inherited in this run.

        Raises:
            StorageFailedError: its files are gone or were changed, or it was sealed to another encryption key.
        """
        newest = self._ledger.latest(self._run_id, form)
        return None if newest is None else self._open(newest)

    def withdrawn(self, release: str) -> bool:
        """Whether the collective has withdrawn the release with this digest, as far as this individual has learned."""
        return release in self._ledger.withdrawn(self._run_id)

    def doubt(self, release: str, signer: str) -> RevocationStatus | None:
        """Why the release with this digest, signed with the key of this id, should not be used any more; None: nothing
        is known against it. To be asked at every use, since it may have been good when it was inherited."""
        if self.withdrawn(release):
            return "withdrawn"
        return "compromised" if self._trust().is_compromised(signer) else None

    def bundle(self, form: Form) -> BundleFile | None:
        """The newest committed learngene of a form as a file holds it, as sealed as it came; None where none was
        inherited in this run.

        Raises:
            StorageFailedError: its files are gone or were changed.
        """
        newest = self._ledger.latest(self._run_id, form)
        if newest is None:
            return None
        sealed = self._ledger.load(newest)
        return BundleFile(sealed.release_bytes, sealed.grant_bytes, sealed.ciphertext)

    def verify_file(self, bundle: BundleFile, now: int) -> VerifiedLearngene:
        """Verify and open a bundle out of a file that was granted to this individual in this run; it is not inherited,
        but what it withdraws is remembered. A release that the ledger committed in time is accepted after its time too.

        Raises:
            RefusedError: its subclass for the first step of the verification that fails.
        """
        now = self.time(now)
        release = digest_of(bundle.release)
        committed = self._ledger.inherited(self._run_id, release) is not None
        holder = Holder(
            run_id=self._run_id,
            audience=self._key.keyid,
            seen=self._ledger.seen(self._run_id),
            committed=frozenset({release} if committed else ()),
            withdrawn=self._ledger.withdrawn(self._run_id),
        )
        with self._evidence_kept(bundle.release):
            sealed = verify_file(*bundle, holder=holder, trust=self._trust(), policy=self._policy, now=now)
        for digest in sealed.release.withdraws:
            self._ledger.withdraw(self._run_id, digest)
        return open_sealed(sealed, self._encryption)

    @contextlib.contextmanager
    def _evidence_kept(self, release: bytes) -> Iterator[None]:
        """Where an authentic release contradicts what was seen, both are kept and the error says where."""
        try:
            yield
        except EquivocationError as error:
            try:
                paths = self._ledger.keep_evidence(release)
            except StorageFailedError as failed:
                raise EquivocationError(f"{error}; keep what came, since this node could not: {failed}") from error
            if not paths:
                raise EquivocationError(f"{error}; keep what came, since there is no room for more evidence") from error
            raise EquivocationError(f"{error}; keep the evidence: {', '.join(map(str, paths))}") from error

    def _is_between(self, payload: Request | Receipt, collective: TrustedKey) -> bool:
        """Whether a message of this individual is from the key that it has now to the one that the collective has."""
        return (payload.audience, payload.signer) == (collective.keyid, self._key.keyid)

    def _verify_and_commit(self, release: bytes, grant: bytes, blob: bytes, trust: TrustStore, now: int) -> None:
        envelopes = verify_envelopes(
            release,
            grant,
            expectation=Expectation(
                run_id=self._run_id,
                audience=self._key.keyid,
                requests=self._ledger.open_requests(self._run_id),
                withdrawn=self._ledger.withdrawn(self._run_id),
            ),
            seen=self._ledger.seen(self._run_id),
            trust=trust,
            policy=self._policy,
            now=now,
        )
        self._ledger.received(envelopes)
        try:
            learngene = verify_content(envelopes, blob, self._encryption)
        except RefusedError:
            self._ledger.refused(envelopes)
            raise
        self._ledger.verified(learngene)
        stored = self._ledger.inherited(self._run_id, learngene.release_digest)
        self._ledger.commit(learngene, again=stored is not None and not self._opens(stored))

    def _open(self, inherited: Inherited) -> VerifiedLearngene:
        try:
            return open_sealed(self._ledger.load(inherited), self._encryption)
        except WrongAudienceError as error:
            raise StorageFailedError(f"the inherited learngene cannot be opened any more: {error}") from None

    def _opens(self, inherited: Inherited) -> bool:
        try:
            self._open(inherited)
        except StorageFailedError:
            return False
        return True

    def _receipt(self, committed: Inherited, collective: TrustedKey, now: int) -> bytes:
        receipt = committed.receipt
        if receipt is not None:
            payload = payloads.decode(Receipt, envelope.parse(receipt).payload)
            # One that is refused for ever would leave the collective without any: it keeps the first that it accepts.
            if not (_holds(payload, now) and self._is_between(payload, collective)):
                receipt = None
        state = self._ledger.state(self._run_id, committed.form)
        if receipt is not None and state is not State.COMMITTED:
            return receipt
        if receipt is None:
            receipt = make_receipt(
                run_id=self._run_id,
                release=committed.release,
                audience=collective.keyid,
                key=self._key,
                now=now,
            )
        self._ledger.acknowledged(self._run_id, committed, receipt)
        return receipt
