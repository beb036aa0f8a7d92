"""The individual's endpoint: it requests a form, and inherits what answers it."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar, NamedTuple

from protocol.digest import digest_of
from protocol.errors import (
    DigestMismatchError,
    EquivocationError,
    InputError,
    RefusedError,
    StorageFailedError,
    WrongAudienceError,
)
from protocol.exchange.audit import Crossings
from protocol.exchange.egress import egress
from protocol.exchange.endpoint import UNVERIFIED, Endpoint, holds
from protocol.exchange.expectation import Expectation, Holder
from protocol.exchange.individual_ledger import IndividualLedger, Inherited, State
from protocol.exchange.verification import (
    VerifiedAbort,
    VerifiedLearngene,
    open_sealed,
    verify_abort,
    verify_content,
    verify_envelopes,
    verify_file,
)
from protocol.keys.party_keys import NodeKeys
from protocol.learngene.architecture import Form
from protocol.messages import envelope, payloads
from protocol.messages.builders import make_receipt, make_request
from protocol.messages.bundle_file import BundleFile
from protocol.messages.payloads import (
    Receipt,
    Release,
    Request,
)
from protocol.trust.policy import Policy
from protocol.trust.role import Role
from protocol.trust.trust_store import RevocationStatus, TrustedKey, TrustStore


class Inheritance(NamedTuple):
    """Result of inheriting a bundle: the receipt to send, and the newest learngene of its form."""

    receipt: bytes
    learngene: VerifiedLearngene


class IndividualEndpoint(Endpoint[IndividualLedger]):
    """The individual's endpoint: requests a form, inherits what answers it. All of it survives a restart.

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

    def request(self, form: Form, now: int, nonce: bytes, *, fresh: bool = False) -> bytes:
        """The request for a form, ready to send.

        An unanswered request that is valid at this time, under the present keys, is sent again unchanged, unless
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
            and holds(open_request.payload, now)
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
            # Check first: if the request may not leave, no answer is awaited either.
            egress(self._policy, data)
            self._ledger.requested(self._run_id, form, data)
        self.gate.let_out(collective.party, {"request": data})
        return data

    def inherit(self, release: bytes, grant: bytes, blob: bytes, now: int) -> Inheritance:
        """Verify a bundle, commit it, and make the receipt. For a committed release the stored receipt is returned,
        whatever comes with it; a new one is made if the stored one has expired or is between other keys than the
        present ones.

        Raises:
            RefusedError: its subclass for the first step of the verification that fails; nothing is inherited then, and
                the request stays open. If release and grant were authentic and only the blob was wrong, the release is
                remembered as seen, and so is what it withdraws. ``EquivocationError``: its text names the files in
                which both releases are kept.
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
                    committed = self._verify_and_commit(release, grant, blob, committed, trust, now)
            else:
                fault = _blob_fault(release, blob)
        except RefusedError as error:
            for kind, data in arrived:
                self.gate.let_in(UNVERIFIED, kind, data, error)
            # A committed release gets its receipt whatever came with it, unless our own disk fails.
            if committed is None or isinstance(error, StorageFailedError):
                raise
        else:
            for kind, data in arrived:
                refused = fault if kind == "blob" else None
                self.gate.let_in(collective.party if refused is None else UNVERIFIED, kind, data, refused)
        newest = self._ledger.latest(self._run_id, committed.form)
        assert newest is not None
        # Read it back before the receipt confirms that it is stored.
        learngene = self._open(newest)
        receipt = self._receipt(committed, collective, now)
        self.gate.let_out(collective.party, {"receipt": receipt})
        return Inheritance(receipt, learngene)

    def accept_abort(self, data: bytes, now: int) -> VerifiedAbort:
        """Take an ABORT of the collective; taking it twice changes nothing. What it withdraws is remembered.

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
        """The newest committed learngene of a form, read back from disk; None if none was inherited in this run.

        Raises:
            StorageFailedError: its files are gone or were changed, or it was sealed to another encryption key.
        """
        newest = self._ledger.latest(self._run_id, form)
        return None if newest is None else self._open(newest)

    def withdrawn(self, release: str) -> bool:
        """Whether the collective has withdrawn the release with this digest, as far as this individual has learned."""
        return release in self._ledger.withdrawn(self._run_id)

    def revocation_status(self, release: str, signer: str) -> RevocationStatus | None:
        """Why the release with this digest, signed with the key of this id, should not be used any more; None: nothing
        is known against it. Ask at every use, since a release can be revoked after it was inherited."""
        if self.withdrawn(release):
            return "withdrawn"
        return "compromised" if self._trust().is_compromised(signer) else None

    def bundle(self, form: Form) -> BundleFile | None:
        """The newest committed learngene of a form as a bundle file holds it, sealed; None if none was inherited in
        this run.

        Raises:
            StorageFailedError: its files are gone or were changed.
        """
        newest = self._ledger.latest(self._run_id, form)
        if newest is None:
            return None
        sealed = self._ledger.load(newest)
        return BundleFile(sealed.release_bytes, sealed.grant_bytes, sealed.ciphertext)

    def verify_file(self, bundle: BundleFile, now: int) -> VerifiedLearngene:
        """Verify and open a bundle file whose grant is for this individual in this run; it is not inherited,
        but what it withdraws is remembered. A release that the ledger committed before it expired is accepted
        afterwards too.

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
        """Keep both releases as evidence if an authentic one contradicts a release seen before; the error names the
        files.
        """
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
        """Whether a message of this individual is from its present key to the collective's present key."""
        return (payload.audience, payload.signer) == (collective.keyid, self._key.keyid)

    def _verify_and_commit(
        self, release: bytes, grant: bytes, blob: bytes, before: Inherited | None, trust: TrustStore, now: int
    ) -> Inherited:
        """Verify a bundle and commit it; ``before``: the learngene that was committed of this release before."""
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
        return self._ledger.commit(learngene, again=before is not None and not self._opens(before))

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
            # Replace a receipt that would always be refused, or the collective would never get one; it keeps the first
            # that it accepts.
            if not (holds(payload, now) and self._is_between(payload, collective)):
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


def _blob_fault(release: bytes, blob: bytes) -> DigestMismatchError | None:
    """Whether a blob is not the one that an authentic release describes."""
    described = payloads.decode(Release, envelope.parse(release).payload).ciphertext
    if (len(blob), digest_of(blob)) == (described.size, described.sha256):
        return None
    return DigestMismatchError("the blob is not the one that was signed; fetch it again")
