"""The desks of the two parties: what they answer and accept, with ledger, policy and log in the right order.

A desk is the last thing before the socket: what it returns has passed the policy's gate, is durable in the ledger and
is recorded in the log of crossings.
"""

from collections.abc import Callable
from pathlib import Path
from typing import ClassVar, Generic, NamedTuple, Self, TypeVar

from protocol import blob as blobs
from protocol import envelope, messages, sealing
from protocol.architecture import Form
from protocol.audit import Crossings
from protocol.bundle_file import BundleFile
from protocol.egress import Gate, egress
from protocol.encryption_key import EncryptionKey
from protocol.errors import (
    DigestMismatchError,
    ExpiredError,
    InputError,
    PolicyDeniedError,
    RefusedError,
    RevokedKeyError,
    StorageFailedError,
    UnknownKeyError,
    WrongAudienceError,
)
from protocol.keys import SigningKey
from protocol.learngene import Doubt, Learngene
from protocol.ledger import CollectiveLedger, IndividualLedger, Inherited, State, StoredRelease
from protocol.make_messages import make_abort, make_grant, make_receipt, make_release, make_request
from protocol.messages import MOST_WITHDRAWN, NO_RELEASE, SKEW, Content, Grant, Payload, Receipt, Request
from protocol.node_keys import NodeKeys
from protocol.policy import Policy
from protocol.trust import Role, TrustedKey, TrustStore
from protocol.trust_file import TrustFile
from protocol.verification import (
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

LedgerT = TypeVar("LedgerT", CollectiveLedger, IndividualLedger)

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

    ``trust`` is asked once at the beginning of each piece of work, so that a revocation reaches a desk that is open.
    """

    role: ClassVar[Role]

    def __init__(
        self,
        *,
        key: SigningKey,
        trust: Callable[[], TrustStore],
        ledger: LedgerT,
        policy: Policy,
        run_id: str,
        crossings: Crossings,
    ) -> None:
        if policy.role != self.role:
            raise InputError(f"the {self.role} needs the policy of {_A_PARTY[self.role]}")
        self._key = key
        self._trust = trust
        self._ledger: LedgerT = ledger
        self._policy = policy
        self._run_id = run_id
        self.gate = Gate(policy, crossings)
        # Before anything is said in its name or to it.
        self._collective(trust())

    def _collective(self, trust: TrustStore) -> TrustedKey:
        """The collective's pinned key."""
        raise NotImplementedError


class CollectiveDesk(_Desk[CollectiveLedger]):
    """The collective's side: publishes learngenes, answers requests, takes receipts. All of it survives a restart.

    Args:
        key: the collective's signing key, pinned in ``trust`` for the role.
        run_id: 128 bits as 32 hexadecimal digits.
    """

    role: ClassVar[Role] = "collective"

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
        """The collective's desk; ledger and log of crossings lie in its own folder.

        Args:
            state: the party's own folder, made where there is none.
            trust: the trust store's file.
            root: the public key, in hexadecimal, of the root that must have signed it.
            clock: unix seconds, for the log of crossings.
            policy: of the site; None: the default.
        """
        ledger = CollectiveLedger(state)
        return cls(
            key=keys.signing,
            trust=TrustFile(trust, root, ledger).current,
            ledger=ledger,
            policy=policy or Policy.for_role(cls.role),
            run_id=run_id,
            crossings=Crossings(state / "crossings.jsonl", party, clock),
        )

    def _collective(self, trust: TrustStore) -> TrustedKey:
        # A key that nobody pinned would sign releases that everybody refuses.
        try:
            return trust.key_for(self._key.keyid, "collective")
        except (UnknownKeyError, RevokedKeyError) as error:
            raise InputError(f"the collective's own key is not in its trust store: {error}") from None

    def publish(self, learngene: Learngene, now: int, content_key: bytes) -> StoredRelease:
        """Sign, seal and store a learngene as the next release of the run. Nothing is sent yet.

        The same content again, while its release is the newest of its form and valid, is that release, no second one.
        A release withdraws all that were withdrawn before it.

        Args:
            content_key: 32 random bytes that nothing else was sealed with; used only if a new release is made.

        Raises:
            PolicyDeniedError, TooLargeError: the policy does not let it leave, or this content was withdrawn.
            NonFiniteError: it holds values that no computation could have meant.
            StorageFailedError: it could not be stored.
            ValueError: the content key sealed an earlier release.
        """
        check_values(learngene.architecture, learngene.tensors)
        content = _content(learngene)
        withdrawn = self._ledger.withdrawn(self._run_id)
        for former in withdrawn:
            if former.payload.plaintext == content:
                raise PolicyDeniedError(f"this very learngene was withdrawn as release {former.seq}; evolve anew")
        published = self._ledger.latest(self._run_id, learngene.architecture.form)
        if (
            published is not None
            and _holds(published.payload, now)
            and self._says_the_same(published, learngene, content)
        ):
            sealed = sealing.encrypt(published.content_key, blobs.encode(learngene.tensors))
            self._ledger.keep_blob(published, sealed)
            return published
        head = self._ledger.latest(self._run_id)
        seq, prev = (head.seq + 1, head.digest) if head is not None else (1, NO_RELEASE)
        release, data = make_release(
            learngene,
            run_id=self._run_id,
            seq=seq,
            prev=prev,
            key=self._key,
            key_epoch=self._collective(self._trust()).epoch,
            policy=self._policy,
            now=now,
            content_key=content_key,
            withdraws=tuple(former.digest for former in withdrawn[-MOST_WITHDRAWN:]),
        )
        # What may not leave is not written down as released either.
        egress(self._policy, release)
        try:
            return self._ledger.add_release(release, content_key, data)
        except StorageFailedError:
            if self._ledger.withdrawn(self._run_id) == withdrawn:
                raise
        # One was withdrawn while this release was made, by a command beside the node: it must say so too.
        return self.publish(learngene, now, content_key)

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

    def withdraw(self, digest: str) -> StoredRelease:
        """Withdraw a release of this run: it is granted no more, every later release says so, and so does the answer to
        a request for it.

        Raises:
            InputError: there is no such release in this run.
            StorageFailedError: it could not be stored.
        """
        for release in self.releases():
            if release.digest == digest:
                self._ledger.withdraw(digest)
                return self._ledger.release(digest)
        raise InputError(f"this run has no release {digest[:16]}; `collective-node releases` lists them")

    def answer_request(self, request: bytes, now: int) -> Answer | Withdrawal:
        """Grant the newest release of the form that a request asks for. The same request again has the same answer, as
        long as its release is not withdrawn and both it and the grant hold at this time.

        Raises:
            RefusedError: its subclass for what is wrong with the request; ``PolicyDeniedError`` where nothing of that
                form is published; ``ExpiredError`` where the newest release does not hold at this time.
        """
        verified = self._verify_request(request, now)
        peer = verified.key.party
        self.gate.let_in(peer, "request", request)
        answered = self._ledger.grant(verified.digest)
        if answered is None or not _still_answers(*answered, now):
            release = self._release_for(verified, now)
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

    def _release_for(self, request: VerifiedRequest, now: int) -> StoredRelease:
        """The newest release of the form that is asked for; older ones are never granted again."""
        payload = request.payload
        if payload.hpke_kem not in self._policy.kems:
            raise PolicyDeniedError(
                f"{request.key.party} asks with a key of the kind {payload.hpke_kem}, this site seals to: "
                + ", ".join(self._policy.kems)
            )
        release = self._ledger.latest(self._run_id, payload.form)
        if release is None:
            raise PolicyDeniedError(f"nothing of the form {payload.form} is published in this run; publish first")
        if not release.withdrawn and not _holds(release.payload, now):
            when = "past its time" if now >= release.payload.expires_at else "from the future"
            raise ExpiredError(f"release {release.seq} is {when}; publish the learngene again")
        if not release.withdrawn and release.payload.signer != self._key.keyid:
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
            content_key=release.content_key,
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

    def _says_the_same(self, published: StoredRelease, learngene: Learngene, content: Content) -> bool:
        """Whether a learngene is what a release holds, under the same key and policy; its place in the chain apart."""
        payload = published.payload
        return (
            payload.signer,
            payload.plaintext,
            payload.architecture,
            payload.fisher,
            payload.dp,
            payload.policy_sha256,
        ) == (
            self._key.keyid,
            content,
            learngene.architecture,
            learngene.fisher,
            learngene.privacy,
            self._policy.sha256,
        )


def _holds(payload: Payload, now: int) -> bool:
    """Whether a message that was made here once may be sent at this time; others would refuse it otherwise."""
    return payload.issued_at <= now + SKEW and now < payload.expires_at


def _still_answers(grant: bytes, release: StoredRelease, now: int) -> bool:
    payload = messages.decode(Grant, envelope.parse(grant).payload)
    return not release.withdrawn and _holds(release.payload, now) and _holds(payload, now)


def _content(learngene: Learngene) -> Content:
    plaintext = blobs.encode(learngene.tensors)
    return Content(size=len(plaintext), sha256=envelope.digest(plaintext))


class Inheritance(NamedTuple):
    """What came of a bundle: the receipt to be sent, and the learngene that is now the newest of its form here."""

    receipt: bytes
    learngene: VerifiedLearngene


class IndividualDesk(_Desk[IndividualLedger]):
    """The individual's side: requests a form, inherits what answers it. All of it survives a restart.

    Args:
        key: the individual's signing key, which the collective has pinned.
        encryption: the individual's encryption key, to which content keys are sealed.
        trust: it must hold exactly one collective.
        run_id: 128 bits as 32 hexadecimal digits.
    """

    role: ClassVar[Role] = "individual"

    def __init__(
        self,
        *,
        key: SigningKey,
        encryption: EncryptionKey,
        trust: Callable[[], TrustStore],
        ledger: IndividualLedger,
        policy: Policy,
        run_id: str,
        crossings: Crossings,
    ) -> None:
        super().__init__(key=key, trust=trust, ledger=ledger, policy=policy, run_id=run_id, crossings=crossings)
        self._encryption = encryption

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
        """The individual's desk; arguments as of :meth:`CollectiveDesk.open`.

        Raises:
            InputError: there is no encryption key.
        """
        if keys.encryption is None:
            raise InputError("an individual needs an encryption key: learngene keygen --kind encryption")
        ledger = IndividualLedger(state)
        return cls(
            key=keys.signing,
            encryption=keys.encryption,
            trust=TrustFile(trust, root, ledger).current,
            ledger=ledger,
            policy=policy or Policy.for_role(cls.role),
            run_id=run_id,
            crossings=Crossings(state / "crossings.jsonl", party, clock),
        )

    def _collective(self, trust: TrustStore) -> TrustedKey:
        return trust.only("collective")

    def request(self, form: Form, now: int, nonce: bytes, *, fresh: bool = False) -> bytes:
        """The request for a form, to be sent.

        An unanswered one that holds at this time, under the keys that hold now, is sent again as it is, unless
        ``fresh``; after an answer a new exchange begins. ``nonce``: 16 random bytes, used only if a new request is
        made.

        Raises:
            StorageFailedError: it could not be stored, so it must not be sent.
            PolicyDeniedError: the policy lets no request leave.
        """
        collective = self._collective(self._trust())
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
                wrong, the release is remembered as seen, and so is what it withdraws.
        """
        release_digest = envelope.digest(release)
        trust = self._trust()
        collective = self._collective(trust)
        arrived = (("release", release), ("grant", grant), ("blob", blob))
        committed = self._ledger.inherited(self._run_id, release_digest)
        try:
            if committed is None or committed.grant != envelope.digest(grant):
                self._verify_and_commit(release, grant, blob, trust, now)
        except RefusedError as error:
            for kind, data in arrived:
                self.gate.let_in(UNVERIFIED, kind, data, error)
            if committed is None:
                raise
        else:
            for kind, data in arrived:
                self.gate.let_in(collective.party, kind, data)
        committed = self._ledger.inherited(self._run_id, release_digest)
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

    def doubt(self, release: str, signer: str) -> Doubt | None:
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
        release = envelope.digest(bundle.release)
        committed = self._ledger.inherited(self._run_id, release) is not None
        holder = Holder(
            run_id=self._run_id,
            audience=self._key.keyid,
            seen=self._ledger.seen(self._run_id),
            committed=frozenset({release} if committed else ()),
            withdrawn=self._ledger.withdrawn(self._run_id),
        )
        sealed = verify_file(*bundle, holder=holder, trust=self._trust(), policy=self._policy, now=now)
        for digest in sealed.release.withdraws:
            self._ledger.withdraw(self._run_id, digest)
        return open_sealed(sealed, self._encryption)

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
            payload = messages.decode(Receipt, envelope.parse(receipt).payload)
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
