"""Verification of everything that arrives: bytes in, a verified object or a typed refusal out, in one fixed order.

Nothing here reads a file, a clock or the network. The rest of the software accepts only the ``Verified...`` classes,
and no other module can make their objects.

The order: the trust store's own time, size, strict JSON, pinned key, signature, type, schema, agreement, time, ledger,
policy, ciphertext, unsealing, plaintext digest, blob header, allow-list of tensors, values. Each step is one function,
and each stage has its own type: ``VerifiedEnvelopes``, ``SealedLearngene`` (the ciphertext is the signed one),
``VerifiedLearngene``.
"""

from collections.abc import Callable, Mapping
from dataclasses import InitVar, dataclass
from typing import Generic

from protocol.digest import digest_of
from protocol.errors import (
    DigestMismatchError,
    EquivocationError,
    ExpiredError,
    MalformedError,
    UnknownKeyError,
    WrongAudienceError,
    WrongRunError,
)
from protocol.exchange.blob_content import read_learngene
from protocol.exchange.expectation import Expectation, Holder
from protocol.exchange.release_chain import SeenRelease, check_chain
from protocol.keys.encryption_key import EncryptionKey
from protocol.learngene.architecture import Form
from protocol.learngene.learngene import Learngene
from protocol.messages import envelope, payloads, sealing
from protocol.messages.payloads import (
    LIFE,
    PAYLOAD_TYPES,
    SKEW,
    Abort,
    Content,
    Grant,
    Payload,
    PayloadT,
    Receipt,
    Release,
    Request,
)
from protocol.trust import policy as policies
from protocol.trust.policy import Policy
from protocol.trust.role import Role
from protocol.trust.trust_store import TrustedKey, TrustStore

# Only this module knows it, and without it no verified object can be constructed.
_PROOF = object()


@dataclass(frozen=True, kw_only=True)
class _Verified:
    proof: InitVar[object]

    def __post_init__(self, proof: object) -> None:
        if proof is not _PROOF:
            raise TypeError(f"only protocol.exchange.verification makes a {type(self).__name__}")


@dataclass(frozen=True, kw_only=True)
class _VerifiedMessage(_Verified, Generic[PayloadT]):
    """A message from a pinned key: its payload, the SHA-256 of its envelope, and the key that signed it."""

    payload: PayloadT
    digest: str
    key: TrustedKey


class VerifiedRequest(_VerifiedMessage[Request]):
    """A request that this collective may answer."""


class VerifiedReceipt(_VerifiedMessage[Receipt]):
    """A receipt for a release of this collective. The ledger says whether the release was granted to its signer."""


class VerifiedAbort(_VerifiedMessage[Abort]):
    """An ABORT of the other party."""


@dataclass(frozen=True, kw_only=True)
class _Envelopes:
    """A release and a grant, both signed by the collective's current key; nothing else is checked yet."""

    release: Release
    grant: Grant
    release_bytes: bytes
    grant_bytes: bytes
    release_digest: str
    grant_digest: str
    key: TrustedKey


@dataclass(frozen=True, kw_only=True)
class VerifiedEnvelopes(_Envelopes, _Verified):
    """A release and its grant, verified up to and including the policy; the blob is not checked yet."""


@dataclass(frozen=True, kw_only=True)
class SealedLearngene(_Verified):
    """A release, its grant and the ciphertext that the release signs; its content is not checked yet."""

    release: Release
    release_digest: str
    release_bytes: bytes
    grant: Grant
    grant_bytes: bytes
    ciphertext: bytes


@dataclass(frozen=True, kw_only=True)
class VerifiedLearngene(_Verified):
    """A learngene that may be inherited: its tensors are read-only views on the one decrypted blob.

    ``sealed`` holds its sealed form, byte for byte as it travelled; this form is stored on disk and in bundle files.
    """

    learngene: Learngene
    sealed: SealedLearngene

    @property
    def release(self) -> Release:
        """The release that describes it."""
        return self.sealed.release

    @property
    def release_digest(self) -> str:
        """The release's name."""
        return self.sealed.release_digest


# The ledger's view of requests: the digest of the request of this run with this (signer's key id, nonce), if any.
RequestWithNonce = Callable[[str, str], str | None]


def verify_request(
    data: bytes, *, trust: TrustStore, run_id: str, audience: str, known: RequestWithNonce, now: int
) -> VerifiedRequest:
    """Verify a REQUEST for the collective whose key id is ``audience``. A repeated request is accepted again.

    Raises:
        RefusedError: its subclass for the first step that fails; ``EquivocationError`` for a nonce used before.
    """
    trust.check_current(now)
    request, key = _authenticate(data, Request, "individual", trust)
    _check_addressed(request, audience, run_id)
    _check_time(request, now)
    digest = digest_of(data)
    if known(key.keyid, request.nonce) not in (None, digest):
        raise EquivocationError(
            f"{key.party} used the nonce of an earlier request for another one; tell its owner to send a new one"
        )
    return VerifiedRequest(payload=request, digest=digest, key=key, proof=_PROOF)


def verify_receipt(data: bytes, *, trust: TrustStore, run_id: str, audience: str, now: int) -> VerifiedReceipt:
    """Verify a RECEIPT for the collective whose key id is ``audience``.

    Raises:
        RefusedError: its subclass for the first step that fails.
    """
    trust.check_current(now)
    receipt, key = _authenticate(data, Receipt, "individual", trust)
    _check_addressed(receipt, audience, run_id)
    _check_time(receipt, now)
    return VerifiedReceipt(payload=receipt, digest=digest_of(data), key=key, proof=_PROOF)


def verify_abort(data: bytes, *, trust: TrustStore, role: Role, run_id: str, audience: str, now: int) -> VerifiedAbort:
    """Verify an ABORT from a party of ``role`` to the party whose key id is ``audience``.

    Raises:
        RefusedError: its subclass for the first step that fails.
    """
    trust.check_current(now)
    abort, key = _authenticate(data, Abort, role, trust)
    _check_addressed(abort, audience, run_id)
    _check_time(abort, now)
    return VerifiedAbort(payload=abort, digest=digest_of(data), key=key, proof=_PROOF)


def verify_envelopes(
    release: bytes,
    grant: bytes,
    *,
    expectation: Expectation,
    seen: tuple[SeenRelease, ...],
    trust: TrustStore,
    policy: Policy,
    now: int,
) -> VerifiedEnvelopes:
    """Verify a RELEASE and the GRANT that answers a request of this individual: the steps before the blob.

    Args:
        expectation: run, own key id and unanswered requests.
        seen: the authentic releases of this run that the ledger remembers.
        now: unix seconds, read once by the caller.

    Raises:
        RefusedError: its subclass for the first step that fails.
    """
    trust.check_current(now)
    envelopes = _authenticate_answer(release, grant, trust)
    _check_agreement(envelopes, expectation.audience, expectation.run_id)
    _check_requested(envelopes, expectation.requests)
    _check_time(envelopes.release, now)
    _check_time(envelopes.grant, now)
    check_chain(envelopes.release, envelopes.release_digest, seen, expectation.withdrawn)
    policies.check_release(policy, envelopes.release)
    return VerifiedEnvelopes(**vars(envelopes), proof=_PROOF)


def verify_ciphertext(envelopes: VerifiedEnvelopes, data: bytes) -> SealedLearngene:
    """Check that the ciphertext is the one that the verified release describes.

    Raises:
        DigestMismatchError: it is another ciphertext.
    """
    _check_content(data, envelopes.release.ciphertext, "the blob")
    return SealedLearngene(
        release=envelopes.release,
        release_digest=envelopes.release_digest,
        release_bytes=envelopes.release_bytes,
        grant=envelopes.grant,
        grant_bytes=envelopes.grant_bytes,
        ciphertext=data,
        proof=_PROOF,
    )


def decrypt(sealed: SealedLearngene, key: EncryptionKey) -> bytes:
    """Open a learngene with its audience's key, and return the plaintext. Nothing in it is trusted yet.

    Raises:
        WrongAudienceError: the grant is not sealed to this key. DigestMismatchError: its key does not open the blob.
    """
    info = sealing.binding(
        run_id=sealed.grant.run_id,
        request=sealed.grant.request,
        audience=sealed.grant.audience,
        ciphertext=sealed.release.ciphertext.sha256,
    )
    return sealing.decrypt(sealing.open_content_key(sealed.grant.sealed_key, key, info), sealed.ciphertext)


def verify_plaintext(sealed: SealedLearngene, plaintext: bytes) -> VerifiedLearngene:
    """Check that the plaintext is the one that the collective signed, and holds what the architecture allows. GCM does
    not commit to its key: only the signed digest says that every audience reads the same.

    Raises:
        DigestMismatchError, MalformedError, TooLargeError, NonFiniteError: the first step that fails.
    """
    _check_content(plaintext, sealed.release.plaintext, "the opened blob")
    return VerifiedLearngene(learngene=read_learngene(sealed.release, plaintext), sealed=sealed, proof=_PROOF)


def open_sealed(sealed: SealedLearngene, key: EncryptionKey) -> VerifiedLearngene:
    """``decrypt``, then ``verify_plaintext``. Raises as they do."""
    return verify_plaintext(sealed, decrypt(sealed, key))


def verify_content(envelopes: VerifiedEnvelopes, data: bytes, key: EncryptionKey) -> VerifiedLearngene:
    """``verify_ciphertext``, then ``open_sealed``: all steps on the blob. Raises as they do."""
    return open_sealed(verify_ciphertext(envelopes, data), key)


def verify_bundle(
    release: bytes,
    grant: bytes,
    data: bytes,
    *,
    expectation: Expectation,
    seen: tuple[SeenRelease, ...],
    trust: TrustStore,
    policy: Policy,
    key: EncryptionKey,
    now: int,
) -> VerifiedLearngene:
    """``verify_envelopes``, then ``verify_content``: the whole order at once. Raises as they do."""
    envelopes = verify_envelopes(
        release, grant, expectation=expectation, seen=seen, trust=trust, policy=policy, now=now
    )
    return verify_content(envelopes, data, key)


def verify_file(
    release: bytes, grant: bytes, data: bytes, *, holder: Holder, trust: TrustStore, policy: Policy, now: int
) -> SealedLearngene:
    """Verify a bundle file, later or elsewhere than its inheritance: the whole order up to the ciphertext, without the
    request. ``open_sealed`` does the rest; it needs the audience's encryption key.

    No request is open any more, so nothing proves that the bundle is fresh; its own validity (7 days,
    ``payloads.LIFE``) limits its age. After that it is accepted only if the reader's own ledger committed its release
    in time. Then neither time nor chain is checked again, but signatures are, so that a key that is no longer pinned is
    no longer believed.

    Raises:
        RefusedError: its subclass for the first step that fails.
    """
    trust.check_current(now)
    envelopes = _authenticate_answer(release, grant, trust)
    audience = _pinned_audience(envelopes.grant, trust) if holder.audience is None else holder.audience
    _check_agreement(envelopes, audience, envelopes.release.run_id if holder.run_id is None else holder.run_id)
    if envelopes.release_digest not in holder.committed:
        _check_time(envelopes.release, now)
        _check_time(envelopes.grant, now)
        check_chain(envelopes.release, envelopes.release_digest, holder.seen, holder.withdrawn)
    policies.check_release(policy, envelopes.release)
    return verify_ciphertext(VerifiedEnvelopes(**vars(envelopes), proof=_PROOF), data)


def verify_committed(
    release: bytes, grant: bytes, data: bytes, *, release_digest: str, grant_digest: str
) -> SealedLearngene:
    """Read back, from the party's own disk, a learngene that was verified and committed before.

    This checks that the bytes have the digests in the party's ledger. Signatures, time and trust were checked on
    arrival and are not checked again. ``open_sealed`` checks the content.

    Raises:
        DigestMismatchError: the files are not the committed ones.
    """
    if digest_of(release) != release_digest or digest_of(grant) != grant_digest:
        raise DigestMismatchError("the stored release or grant was changed after it was committed; request it again")
    opened = payloads.decode(Release, envelope.parse(release).payload)
    _check_content(data, opened.ciphertext, "the stored learngene")
    return SealedLearngene(
        release=opened,
        release_digest=release_digest,
        release_bytes=release,
        grant=payloads.decode(Grant, envelope.parse(grant).payload),
        grant_bytes=grant,
        ciphertext=data,
        proof=_PROOF,
    )


def _authenticate(data: bytes, model: type[PayloadT], role: Role, trust: TrustStore) -> tuple[PayloadT, TrustedKey]:
    """Verify an envelope: size, strict JSON, pinned key, signature, type, schema, signer, in this order."""
    opened = envelope.parse(data)
    key = trust.key_for(opened.keyid, role)
    envelope.check_signature(opened, key.raw)
    if opened.payload_type != PAYLOAD_TYPES[model.kind]:
        raise MalformedError(f"the message is {opened.payload_type}, not the expected {model.kind}")
    payload = payloads.decode(model, opened.payload)
    # The envelope's own key id is not signed, but the payload's is.
    if payload.signer != key.keyid:
        raise MalformedError("the payload names another signer than the key that signed it")
    return payload, key


def _authenticate_answer(release: bytes, grant: bytes, trust: TrustStore) -> _Envelopes:
    opened_release, key = _authenticate(release, Release, "collective", trust)
    opened_grant, grant_key = _authenticate(grant, Grant, "collective", trust)
    if grant_key.keyid != key.keyid:
        raise UnknownKeyError(
            "release and grant are not both signed by the collective's current key; ask it for a new answer"
        )
    if opened_release.key_epoch != key.epoch:
        raise UnknownKeyError(
            f"the release counts the collective's current key as epoch {opened_release.key_epoch}, the trust store as"
            f" epoch {key.epoch}; request it again, and if the answer says the same, have whoever keeps the root key"
            f" pin it with the collective's own epoch: trust add --epoch {opened_release.key_epoch}"
        )
    return _Envelopes(
        release=opened_release,
        grant=opened_grant,
        release_bytes=release,
        grant_bytes=grant,
        release_digest=digest_of(release),
        grant_digest=digest_of(grant),
        key=key,
    )


def _check_addressed(payload: Request | Receipt | Abort, audience: str, run_id: str) -> None:
    if payload.audience != audience:
        raise WrongAudienceError(f"the {payload.kind} is addressed to the key {payload.audience[:16]}, not to this one")
    if payload.run_id != run_id:
        raise WrongRunError(f"the {payload.kind} belongs to the run {payload.run_id}, not to {run_id}")


def _check_agreement(envelopes: _Envelopes, audience: str, run_id: str) -> None:
    """Check that both envelopes belong together, to this audience and to this run."""
    release, grant = envelopes.release, envelopes.grant
    if grant.release != envelopes.release_digest:
        raise DigestMismatchError("the grant is for another release than the one that came with it")
    if grant.audience != audience:
        raise WrongAudienceError(f"the grant is for the key {grant.audience[:16]}, not for this individual")
    for payload in (release, grant):
        if payload.run_id != run_id:
            raise WrongRunError(f"the {payload.kind} belongs to the run {payload.run_id}, not to {run_id}")


def _pinned_audience(grant: Grant, trust: TrustStore) -> str:
    try:
        return trust.key_for(grant.audience, "individual").keyid
    except UnknownKeyError:
        raise WrongAudienceError(
            f"the grant is for the key {grant.audience[:16]}, which this trust store does not pin as an individual's;"
            " use the trust store of the individual that inherited it"
        ) from None


def _check_requested(envelopes: _Envelopes, requests: Mapping[str, Form]) -> None:
    """Check that the grant answers an open request, for the requested form."""
    form = requests.get(envelopes.grant.request)
    if form is None:
        raise WrongAudienceError("the grant answers no open request of this individual; send a new request")
    if form != envelopes.release.form:
        raise WrongAudienceError(f"the request asked for the form {form}, the release holds {envelopes.release.form}")


def _check_time(payload: Payload, now: int) -> None:
    if payload.issued_at > now + SKEW:
        raise ExpiredError(
            f"the {payload.kind} is from the future ({payload.issued_at}, now {now}); compare the clocks"
        )
    if now > payload.expires_at + SKEW:
        raise ExpiredError(f"the {payload.kind} is past its time ({payload.expires_at}, now {now}); ask for a new one")
    if not 0 < payload.expires_at - payload.issued_at <= LIFE:
        raise ExpiredError(
            f"the {payload.kind} claims a life of {payload.expires_at - payload.issued_at} s, at most {LIFE}"
        )


def _check_content(data: bytes, content: Content, what: str) -> None:
    if len(data) != content.size:
        raise DigestMismatchError(f"{what} has {len(data)} bytes, the release says {content.size}; fetch it again")
    if digest_of(data) != content.sha256:
        raise DigestMismatchError(f"{what} is not the one that was signed; fetch it again")
