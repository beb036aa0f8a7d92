"""The collective's endpoint: it publishes learngenes, answers requests and takes receipts."""

from collections.abc import Callable
from pathlib import Path
from typing import ClassVar, NamedTuple, get_args

from protocol.digest import digest_of
from protocol.errors import (
    DigestMismatchError,
    EquivocationError,
    ExpiredError,
    PolicyDeniedError,
    RefusedError,
    StorageFailedError,
)
from protocol.exchange import content_keys
from protocol.exchange.blob_content import check_values
from protocol.exchange.collective_ledger import CollectiveLedger, StoredRelease
from protocol.exchange.egress import egress, leaving_release
from protocol.exchange.endpoint import UNVERIFIED, Endpoint, holds
from protocol.exchange.verification import VerifiedReceipt, VerifiedRequest, verify_receipt, verify_request
from protocol.learngene import storage
from protocol.learngene.architecture import Form
from protocol.learngene.learngene import Learngene
from protocol.messages import envelope, payloads, sealing
from protocol.messages.builders import make_abort, make_grant, make_release
from protocol.messages.payloads import (
    MOST_WITHDRAWN,
    NO_RELEASE,
    Content,
    Grant,
)
from protocol.trust.role import Role


class Answer(NamedTuple):
    """Answer that grants a request: the release, the grant and the sealed blob, ready to be sent."""

    release: bytes
    grant: bytes
    blob: bytes


class Withdrawal(NamedTuple):
    """Answer to a request if the learngene was withdrawn without a replacement: an ABORT."""

    abort: bytes


class CollectiveEndpoint(Endpoint[CollectiveLedger]):
    """The collective's endpoint: publishes learngenes, answers requests, takes receipts. All of it survives a restart.

    Args:
        keys: the signing key is pinned in ``trust`` for the role.
        run_id: 128 bits as 32 hexadecimal digits.
    """

    role: ClassVar[Role] = "collective"

    @staticmethod
    def _open_ledger(state: Path) -> CollectiveLedger:
        return CollectiveLedger(state)

    def publish(self, learngene: Learngene, now: int, content_key: bytes) -> StoredRelease:
        """Sign, seal and store a learngene as the next release of the run. Nothing is sent yet.

        If the newest release of the form has the same content, is valid and names all withdrawn releases, that release
        is returned and no second one is made. A release names all releases that were withdrawn before it; if these are
        more than ``MOST_WITHDRAWN``, the ones with the highest numbers.

        Args:
            content_key: 32 random bytes that have sealed nothing else; used only if a new release is made.

        Raises:
            PolicyDeniedError, TooLargeError: the policy does not let it leave, or this content was withdrawn.
            NonFiniteError: it holds values that no correct computation gives, or that its dtype cannot hold.
            ExpiredError: the trust store is past its time.
            StorageFailedError: it could not be stored.
            ValueError: the content key sealed an earlier release.
        """
        now = self.time(now)
        epoch = self._epoch(now)
        check_values(learngene.architecture, learngene.tensors)
        plaintext = storage.encode(learngene.architecture, learngene.tensors)
        content = Content(size=len(plaintext), sha256=digest_of(plaintext))
        while True:
            head, withdrawn = self._ledger.latest(self._run_id), self._ledger.withdrawn(self._run_id)
            for former in withdrawn:
                if former.payload.plaintext == content:
                    raise PolicyDeniedError(f"this very learngene was withdrawn as release {former.seq}; evolve anew")
            published = self._ledger.latest(self._run_id, learngene.architecture.form)
            if (
                published is not None
                and holds(published.payload, now)
                and _names(published, withdrawn)
                and self._says_the_same(published, learngene, content, epoch)
            ):
                sealed = sealing.encrypt(self._content_key(published), plaintext)
                self._ledger.keep_blob(published, sealed)
                return published
            made = self._append(learngene, plaintext, head, withdrawn, now, epoch, content_key)
            if made is not None:
                return made

    def release_again(self, now: int, content_key: Callable[[], bytes]) -> list[StoredRelease]:
        """Release once more, form by form, what is granted now, if its release does not name all withdrawn ones. The
        answer to the next request for any form then names them. No release is made if all are named.

        Args:
            content_key: draws 32 random bytes for each new release.

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
                again = self._append(*self._opened(newest), head, withdrawn, now, epoch, content_key())
                if again is None:
                    continue
                made.append(again)
            forms.pop()
        return made

    def _append(
        self,
        learngene: Learngene,
        plaintext: bytes,
        head: StoredRelease | None,
        withdrawn: list[StoredRelease],
        now: int,
        epoch: int,
        content_key: bytes,
    ) -> StoredRelease | None:
        """Release a learngene next after ``head``, and withdraw what is withdrawn. None: another process of this
        collective has released or withdrawn something meanwhile, and the caller must look again.
        """
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
            plaintext=plaintext,
        )
        # A learngene that may not leave is not recorded as released either.
        payload = leaving_release(self._policy, release)
        try:
            closed = content_keys.close(self._key, content_key, digest_of(release))
            return self._ledger.add_release(release, closed, data, payload)
        except (EquivocationError, StorageFailedError):
            if (self._ledger.latest(self._run_id), self._ledger.withdrawn(self._run_id)) == (head, withdrawn):
                raise
        return None

    @property
    def fewest_samples(self) -> int:
        """A Fisher diagonal from fewer images than this may not leave the site."""
        return self._policy.minimum_fisher_samples

    def published(self, form: Form) -> StoredRelease | None:
        """The newest release of a form in this run; None if there is none."""
        return self._ledger.latest(self._run_id, form)

    def releases(self) -> list[StoredRelease]:
        """The chain of this run, first to last."""
        return self._ledger.releases(self._run_id)

    def withdraw(self, digest: str) -> list[StoredRelease]:
        """Withdraw a release of this run, and every other one that holds the same content: they are granted no more.

        If one is the newest of its form, a request for that form is answered with ``withdrawn``. Otherwise every
        release that ``release_again`` or ``publish`` makes from now on names it.

        Returns:
            All releases that are withdrawn by this call, first to last.

        Raises:
            InputError: there is no such release in this run.
            StorageFailedError: it could not be stored.
        """
        return self._ledger.withdraw(self._run_id, digest)

    def answer_request(self, request: bytes, now: int) -> Answer | Withdrawal:
        """Grant the newest release of the form that a request asks for. The same request gets the same answer as long
        as its release is not withdrawn, release and grant are valid at this time, and no newer release names more
        withdrawn ones.

        Raises:
            RefusedError: its subclass for what is wrong with the request; ``PolicyDeniedError`` if nothing of that form
                is published; ``ExpiredError`` if the newest release is not valid at this time.
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
        # The gate compares the blob with its release, so it is not compared here.
        answer = Answer(release.envelope, grant, self._ledger.read_blob(release))
        try:
            self.gate.let_out(peer, answer._asdict())
        except DigestMismatchError as error:
            raise StorageFailedError(f"release {release.seq} was changed on disk: {error}") from None
        return answer

    def accept_receipt(self, data: bytes, now: int) -> VerifiedReceipt:
        """Take a receipt; taking it twice changes nothing.

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
        """The newest release of the requested form; older ones are never granted again."""
        payload = request.payload
        release = self._ledger.latest(self._run_id, payload.form)
        if release is None:
            raise PolicyDeniedError(f"nothing of the form {payload.form} is published in this run; publish first")
        if not release.withdrawn and not holds(release.payload, now):
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
        """The content key of a release of this signing key."""
        return content_keys.reopen(self._key, release.closed_key, release.digest)

    def _opened(self, release: StoredRelease) -> tuple[Learngene, bytes]:
        """The learngene of a release of this signing key, and its encoded blob.

        Raises:
            StorageFailedError: its blob is gone or was changed, or its content key does not open.
        """
        plaintext = sealing.decrypt(self._content_key(release), self._ledger.blob(release))
        payload = release.payload
        tensors = storage.decode(payload.architecture, plaintext, fisher=payload.fisher is not None)
        return Learngene(payload.architecture, tensors, payload.fisher, payload.dp), plaintext

    def _epoch(self, now: int) -> int:
        """The epoch of this collective's key, under a trust store that is valid now."""
        trust = self._trust()
        trust.check_current(now)
        return self._collective(trust).epoch

    def _is_of_this_key(self, release: StoredRelease, epoch: int) -> bool:
        """Whether individuals now believe this key's signature on the release."""
        return (release.payload.signer, release.payload.key_epoch) == (self._key.keyid, epoch)

    def _is_granted_now(self, release: StoredRelease, now: int, epoch: int) -> bool:
        """Whether the newest release of a form would be granted to a requester."""
        try:
            egress(self._policy, release.envelope)
        except RefusedError:
            return False
        return not release.withdrawn and holds(release.payload, now) and self._is_of_this_key(release, epoch)

    def _still_answers(self, grant: bytes, release: StoredRelease, now: int, epoch: int) -> bool:
        payload = payloads.decode(Grant, envelope.parse(grant).payload)
        if release.withdrawn or not (holds(release.payload, now) and holds(payload, now)):
            return False
        # If a newer release names more withdrawn ones, every requester must get it.
        tells = _names(release, self._ledger.withdrawn(self._run_id)) or release == self.published(release.payload.form)
        return tells and self._is_of_this_key(release, epoch)

    def _says_the_same(self, published: StoredRelease, learngene: Learngene, content: Content, epoch: int) -> bool:
        """Whether a release holds this learngene under the same key and policy, wherever it stands in the chain."""
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


def _named(withdrawn: list[StoredRelease]) -> tuple[str, ...]:
    """The withdrawn releases that one release can name."""
    return tuple(former.digest for former in withdrawn[-MOST_WITHDRAWN:])


def _names(release: StoredRelease, withdrawn: list[StoredRelease]) -> bool:
    """Whether a release names all withdrawn ones that one release can name."""
    return set(_named(withdrawn)) <= set(release.payload.withdraws)
