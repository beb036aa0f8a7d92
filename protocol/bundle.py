"""What the two sides do: making messages, and desks that answer them with ledger, policy and log in the right order.

A desk is the last thing before the socket: what it returns has passed the policy's gate, is durable in the ledger and
is recorded in the log of crossings.
"""

from collections.abc import Callable
from pathlib import Path
from typing import ClassVar, Generic, NamedTuple, Self, TypeVar

from protocol import blob as blobs
from protocol import envelope
from protocol.architecture import Form
from protocol.audit import Crossings
from protocol.bundle_file import BundleFile
from protocol.errors import ExpiredError, InputError, PolicyDeniedError, RefusedError, UnknownKeyError
from protocol.keys import SigningKey
from protocol.learngene import Learngene
from protocol.ledger import CollectiveLedger, IndividualLedger, Inherited, State, StoredRelease, stored_release
from protocol.messages import (
    LIFE,
    NO_RELEASE,
    Abort,
    AbortCode,
    Content,
    Grant,
    Receipt,
    Release,
    Request,
    TensorDescription,
)
from protocol.policy import Policy, egress, egress_blob
from protocol.trust import Role, TrustStore
from protocol.verification import (
    Expectation,
    Holder,
    VerifiedLearngene,
    VerifiedReceipt,
    VerifiedRequest,
    check_values,
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


def make_request(
    *, run_id: str, audience: str, form: Form, key: SigningKey, now: int, nonce: bytes, hpke_public: str | None = None
) -> bytes:
    """A REQUEST of the individual ``key`` to the collective with key id ``audience``; ``nonce``: 16 random bytes."""
    payload = Request(
        run_id=run_id,
        signer=key.keyid,
        issued_at=now,
        expires_at=now + LIFE,
        audience=audience,
        form=form,
        nonce=nonce.hex(),
        hpke_public=hpke_public,
    )
    return envelope.seal(payload, key)


def make_release(
    learngene: Learngene, *, run_id: str, seq: int, prev: str, key: SigningKey, key_epoch: int, policy: Policy, now: int
) -> tuple[bytes, bytes]:
    """A RELEASE of the collective ``key`` and its blob. ``prev``: the digest of the release before, or ``NO_RELEASE``.

    Raises:
        ValueError: a learngene that the format cannot hold.
    """
    data = blobs.encode(learngene.tensors)
    content = Content(size=len(data), sha256=envelope.digest(data))
    allowed = learngene.architecture.tensors(fisher=learngene.fisher is not None)
    payload = Release(
        run_id=run_id,
        signer=key.keyid,
        issued_at=now,
        expires_at=now + LIFE,
        seq=seq,
        prev=prev,
        key_epoch=key_epoch,
        form=learngene.architecture.form,
        architecture=learngene.architecture,
        policy_sha256=policy.sha256,
        plaintext=content,
        ciphertext=content,
        tensors=tuple(
            TensorDescription(name=name, role=role, dtype="float32", shape=shape)
            for name, (role, shape) in allowed.items()
        ),
        fisher=learngene.fisher,
        dp=None,
    )
    # The place for sealing: a fresh content key, and the ciphertext's own size and digest.
    return envelope.seal(payload, key), data


def make_grant(
    *, run_id: str, release: str, request: str, audience: str, key: SigningKey, now: int, until: int
) -> bytes:
    """A GRANT of the release (digest) for the request (digest) to the individual with the key id ``audience``,
    valid as long as the release, ``until`` (unix s)."""
    payload = Grant(
        run_id=run_id,
        signer=key.keyid,
        issued_at=now,
        expires_at=min(now + LIFE, until),
        release=release,
        request=request,
        audience=audience,
        sealed_key=None,
    )
    return envelope.seal(payload, key)


def make_receipt(*, run_id: str, release: str, audience: str, key: SigningKey, now: int) -> bytes:
    """A RECEIPT of the individual ``key`` for the release (digest) to the collective with the key id ``audience``."""
    payload = Receipt(
        run_id=run_id,
        signer=key.keyid,
        issued_at=now,
        expires_at=now + LIFE,
        audience=audience,
        release=release,
        status="committed",
    )
    return envelope.seal(payload, key)


def make_abort(*, run_id: str, audience: str, code: AbortCode, subject: str | None, key: SigningKey, now: int) -> bytes:
    """An ABORT to the party with the key id ``audience``; ``subject``: the digest of the message at fault, if any."""
    payload = Abort(
        run_id=run_id,
        signer=key.keyid,
        issued_at=now,
        expires_at=now + LIFE,
        audience=audience,
        code=code,
        subject=subject,
    )
    return envelope.seal(payload, key)


class Answer(NamedTuple):
    """What answers a request: the release, the grant and the blob, ready to be sent."""

    release: bytes
    grant: bytes
    blob: bytes


class _Desk(Generic[LedgerT]):
    """What both desks hold: key, trust store, ledger, policy, run, log of crossings."""

    _role: ClassVar[Role]

    def __init__(
        self,
        *,
        key: SigningKey,
        trust: TrustStore,
        ledger: LedgerT,
        policy: Policy,
        run_id: str,
        crossings: Crossings,
    ) -> None:
        if policy.role != self._role:
            raise InputError(f"the {self._role} needs the policy of {_A_PARTY[self._role]}")
        self._key = key
        self._trust = trust
        self._ledger: LedgerT = ledger
        self._policy = policy
        self._run_id = run_id
        self._crossings = crossings
        self._find_collective()

    @staticmethod
    def _open_ledger(state: Path) -> LedgerT:
        """The role's ledger in a party's folder."""
        raise NotImplementedError

    def _find_collective(self) -> None:
        """Look the collective up in the trust store, before anything is said in its name or to it."""
        raise NotImplementedError

    @classmethod
    def open(
        cls, state: Path, *, party: str, key: SigningKey, trust: TrustStore, run_id: str, clock: Callable[[], int]
    ) -> Self:
        """The desk of ``party`` under its role's default policy; ledger and log of crossings lie in its own folder.

        Args:
            state: the party's own folder, made where there is none.
            clock: unix seconds, for the log of crossings.
        """
        return cls(
            key=key,
            trust=trust,
            ledger=cls._open_ledger(state),
            policy=Policy.for_role(cls._role),
            run_id=run_id,
            crossings=Crossings(state / "crossings.jsonl", party, clock),
        )


class CollectiveDesk(_Desk[CollectiveLedger]):
    """The collective's side: publishes learngenes, answers requests, takes receipts. All of it survives a restart.

    Args:
        key: the collective's signing key, pinned in ``trust`` for the role.
        run_id: 128 bits as 32 hexadecimal digits.
    """

    _role = "collective"

    @staticmethod
    def _open_ledger(state: Path) -> CollectiveLedger:
        return CollectiveLedger(state)

    def _find_collective(self) -> None:
        # A key that nobody pinned would sign releases that everybody refuses.
        try:
            self._epoch = self._trust.key_for(self._key.keyid, "collective").epoch
        except UnknownKeyError as error:
            raise InputError(f"the collective's own key is not in its trust store: {error}") from None

    def publish(self, learngene: Learngene, now: int) -> StoredRelease:
        """Sign and store a learngene as the next release of the run. Nothing is sent yet.

        The same content again, while its release is the newest of its form and valid, is that release, no second one.

        Raises:
            PolicyDeniedError, TooLargeError: the policy does not let it leave.
            NonFiniteError: it holds values that no computation could have meant.
            StorageFailedError: it could not be stored.
        """
        check_values(learngene.architecture, learngene.tensors)
        head = self._ledger.latest(self._run_id)
        seq, prev = (head.seq + 1, head.digest) if head is not None else (1, NO_RELEASE)
        release, data = make_release(
            learngene,
            run_id=self._run_id,
            seq=seq,
            prev=prev,
            key=self._key,
            key_epoch=self._epoch,
            policy=self._policy,
            now=now,
        )
        # What may not leave is not written down as released either.
        egress(self._policy, release)
        published = self._ledger.latest(self._run_id, learngene.architecture.form)
        if published is not None and now < published.payload.expires_at and _says_the_same(published, release):
            self._ledger.keep_blob(published, data)
            return published
        return self._ledger.add_release(release, data)

    @property
    def fewest_samples(self) -> int:
        """A Fisher diagonal from fewer images than this may not leave the site."""
        return self._policy.minimum_fisher_samples

    def published(self, form: Form) -> StoredRelease | None:
        """The newest release of a form in this run; None where there is none."""
        return self._ledger.latest(self._run_id, form)

    def answer_request(self, request: bytes, now: int) -> Answer:
        """Grant the newest release of the form that a request asks for. The same request again has the same answer.

        Raises:
            RefusedError: its subclass for what is wrong with the request; ``PolicyDeniedError`` where nothing of that
                form is published; ``ExpiredError`` where the release is past its time.
        """
        verified = self._verify_request(request, now)
        self._crossings.append("in", verified.key.party, "request", request)
        answered = self._ledger.grant(verified.digest)
        if answered is None:
            answered = self._grant(verified, now)
        grant, release = answered
        answer = Answer(
            egress(self._policy, release.envelope),
            egress(self._policy, grant),
            egress_blob(self._policy, release.envelope, self._ledger.blob(release)),
        )
        for kind, data in zip(("release", "grant", "blob"), answer, strict=True):
            self._crossings.append("out", verified.key.party, kind, data)
        return answer

    def accept_receipt(self, data: bytes, now: int) -> VerifiedReceipt:
        """Take a receipt; the same again changes nothing.

        Raises:
            RefusedError: its subclass for what is wrong; ``WrongAudienceError``: a release never granted to the signer.
        """
        try:
            verified = verify_receipt(data, trust=self._trust, run_id=self._run_id, audience=self._key.keyid, now=now)
            self._ledger.add_receipt(verified.key.keyid, verified.payload.release, data)
        except RefusedError:
            self._crossings.append("in", UNVERIFIED, "receipt", data)
            raise
        self._crossings.append("in", verified.key.party, "receipt", data)
        return verified

    def _verify_request(self, request: bytes, now: int) -> VerifiedRequest:
        try:
            return verify_request(
                request,
                trust=self._trust,
                run_id=self._run_id,
                audience=self._key.keyid,
                known=lambda keyid, nonce: self._ledger.request_with_nonce(self._run_id, keyid, nonce),
                now=now,
            )
        except RefusedError:
            self._crossings.append("in", UNVERIFIED, "request", request)
            raise

    def _grant(self, request: VerifiedRequest, now: int) -> tuple[bytes, StoredRelease]:
        release = self._ledger.latest(self._run_id, request.payload.form)
        if release is None:
            raise PolicyDeniedError(
                f"nothing of the form {request.payload.form} is published in this run; publish first"
            )
        if now >= release.payload.expires_at:
            raise ExpiredError(f"release {release.seq} is past its time; publish the learngene again")
        grant = make_grant(
            run_id=self._run_id,
            release=release.digest,
            request=request.digest,
            audience=request.key.keyid,
            key=self._key,
            now=now,
            until=release.payload.expires_at,
        )
        self._ledger.add_grant(request, release, grant)
        return grant, release


class Inheritance(NamedTuple):
    """What came of a bundle: the receipt to be sent, and the learngene that is now the newest of its form here."""

    receipt: bytes
    learngene: VerifiedLearngene


class IndividualDesk(_Desk[IndividualLedger]):
    """The individual's side: requests a form, inherits what answers it. All of it survives a restart.

    Args:
        key: the individual's signing key, which the collective has pinned.
        trust: it must hold exactly one collective.
        run_id: 128 bits as 32 hexadecimal digits.
    """

    _role = "individual"

    @staticmethod
    def _open_ledger(state: Path) -> IndividualLedger:
        return IndividualLedger(state)

    def _find_collective(self) -> None:
        self._collective = self._trust.only("collective")

    def request(self, form: Form, now: int, nonce: bytes, *, fresh: bool = False) -> bytes:
        """The request for a form, to be sent.

        An unanswered one that is still valid is sent again as it is, unless ``fresh``; after an answer a new exchange
        begins. ``nonce``: 16 random bytes, used only if a new request is made.

        Raises:
            StorageFailedError: it could not be stored, so it must not be sent.
            PolicyDeniedError: the policy lets no request leave.
        """
        open_request = self._ledger.open_request(self._run_id, form)
        if open_request is not None and not fresh and now <= open_request.expires_at:
            data = egress(self._policy, open_request.envelope)
        else:
            data = egress(
                self._policy,
                make_request(
                    run_id=self._run_id,
                    audience=self._collective.keyid,
                    form=form,
                    key=self._key,
                    now=now,
                    nonce=nonce,
                ),
            )
            self._ledger.requested(self._run_id, form, data, now + LIFE)
        self._crossings.append("out", self._collective.party, "request", data)
        return data

    def inherit(self, release: bytes, grant: bytes, blob: bytes, now: int) -> Inheritance:
        """Verify a bundle, commit it, and make the receipt. A release that is committed already has its stored receipt,
        whatever comes with it.

        Raises:
            RefusedError: its subclass for the first step of the verification that fails; nothing has changed then.
        """
        release_digest = envelope.digest(release)
        committed = self._ledger.inherited(self._run_id, release_digest)
        try:
            if committed is None or committed.grant != envelope.digest(grant):
                self._verify_and_commit(release, grant, blob, now)
        except RefusedError:
            self._record_arrival(UNVERIFIED, release, grant, blob)
            if committed is None:
                raise
        else:
            self._record_arrival(self._collective.party, release, grant, blob)
        committed = self._ledger.inherited(self._run_id, release_digest)
        assert committed is not None
        newest = self._ledger.latest(self._run_id, committed.form)
        assert newest is not None
        # Read back before the receipt says that it is there.
        learngene = self._ledger.load(newest)
        receipt = egress(self._policy, self._receipt(committed, now))
        self._crossings.append("out", self._collective.party, "receipt", receipt)
        return Inheritance(receipt, learngene)

    def learngene(self, form: Form) -> VerifiedLearngene | None:
        """The newest committed learngene of a form, read back from disk; None where none was inherited in this run.

        Raises:
            StorageFailedError: its files are gone or were changed.
        """
        newest = self._ledger.latest(self._run_id, form)
        return None if newest is None else self._ledger.load(newest)

    def bundle(self, form: Form) -> BundleFile | None:
        """The newest committed learngene of a form with its release and grant, as a file holds it; None where none was
        inherited in this run.

        Raises:
            StorageFailedError: its files are gone or were changed.
        """
        found = self.learngene(form)
        return None if found is None else BundleFile(found.release_bytes, found.grant_bytes, found.blob)

    def verify_file(self, bundle: BundleFile, now: int) -> VerifiedLearngene:
        """Verify a bundle out of a file that was granted to this individual in this run; nothing is stored. A release
        that the ledger committed in time is accepted after its time too.

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
        )
        return verify_file(*bundle, holder=holder, trust=self._trust, policy=self._policy, now=now)

    def _verify_and_commit(self, release: bytes, grant: bytes, blob: bytes, now: int) -> None:
        envelopes = verify_envelopes(
            release,
            grant,
            expectation=Expectation(self._run_id, self._key.keyid, self._ledger.open_requests(self._run_id)),
            seen=self._ledger.seen(self._run_id),
            trust=self._trust,
            policy=self._policy,
            now=now,
        )
        self._ledger.received(envelopes)
        try:
            learngene = verify_content(envelopes, blob)
        except RefusedError:
            self._ledger.refused(envelopes)
            raise
        self._ledger.verified(learngene)
        self._ledger.commit(learngene)

    def _receipt(self, committed: Inherited, now: int) -> bytes:
        state = self._ledger.state(self._run_id, committed.form)
        if committed.receipt is not None and state is not State.COMMITTED:
            return committed.receipt
        receipt = make_receipt(
            run_id=self._run_id,
            release=committed.release,
            audience=self._collective.keyid,
            key=self._key,
            now=now,
        )
        return self._ledger.acknowledged(self._run_id, committed, receipt)

    def _record_arrival(self, peer: str, release: bytes, grant: bytes, blob: bytes) -> None:
        for kind, data in (("release", release), ("grant", grant), ("blob", blob)):
            self._crossings.append("in", peer, kind, data)


def _says_the_same(published: StoredRelease, release: bytes) -> bool:
    """Whether a release has the content of one that is published already; its place in the chain apart."""
    old, new = published.payload, stored_release(release).payload
    return (old.signer, old.plaintext, old.architecture, old.fisher, old.policy_sha256) == (
        new.signer,
        new.plaintext,
        new.architecture,
        new.fisher,
        new.policy_sha256,
    )
