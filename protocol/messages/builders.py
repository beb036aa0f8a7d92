"""Functions that make the five kinds of message, each signed."""

from typing import TypedDict

from protocol.digest import digest_of
from protocol.keys.encryption_key import EncryptionKey
from protocol.keys.signing_key import SigningKey
from protocol.learngene import storage
from protocol.learngene.architecture import Form
from protocol.learngene.learngene import Learngene
from protocol.messages import envelope, payloads, sealing
from protocol.messages.payloads import (
    LIFE,
    PAYLOAD_TYPES,
    Abort,
    AbortCode,
    Content,
    Grant,
    Payload,
    Receipt,
    Release,
    Request,
    TensorDescription,
)


def sign(payload: Payload, key: SigningKey) -> bytes:
    """The signed envelope of a payload.

    Raises:
        ValueError: ``payload.signer`` is not this key, or the envelope would be larger than ``envelope.MAX_BYTES``.
    """
    if payload.signer != key.keyid:
        raise ValueError("the payload names another signer than the key")
    return envelope.sign(PAYLOAD_TYPES[payload.kind], payloads.encode(payload), key)


def make_request(
    *, run_id: str, audience: str, form: Form, key: SigningKey, encryption: EncryptionKey, now: int, nonce: bytes
) -> bytes:
    """A REQUEST of the individual ``key`` to the collective with key id ``audience``; ``nonce``: 16 random bytes.
    The content key must be sealed to ``encryption``."""
    payload = Request(
        **_head(run_id, key, now),
        audience=audience,
        form=form,
        nonce=nonce.hex(),
        hpke_kem=encryption.kem,
        hpke_public=encryption.public.hex(),
    )
    return sign(payload, key)


def make_release(
    learngene: Learngene,
    *,
    run_id: str,
    seq: int,
    prev: str,
    key: SigningKey,
    key_epoch: int,
    policy_sha256: str,
    now: int,
    content_key: bytes,
    withdraws: tuple[str, ...] = (),
    plaintext: bytes | None = None,
) -> tuple[bytes, bytes]:
    """A RELEASE of the collective ``key`` and its sealed blob.

    Args:
        prev: the digest of the release before, or ``NO_RELEASE``.
        policy_sha256: digest of the policy that lets it out.
        content_key: 32 random bytes that have sealed nothing else.
        withdraws: digests of earlier releases that must not be used any more.
        plaintext: the learngene's blob, if it was encoded before.

    Raises:
        NonFiniteError: a value is too large for the dtype that the architecture says.
        ValueError: a learngene that the format cannot hold.
    """
    if plaintext is None:
        plaintext = storage.encode(learngene.architecture, learngene.tensors)
    ciphertext = sealing.encrypt(content_key, plaintext)
    allowed = learngene.architecture.stored(fisher=learngene.fisher is not None)
    payload = Release(
        **_head(run_id, key, now),
        seq=seq,
        prev=prev,
        key_epoch=key_epoch,
        form=learngene.architecture.form,
        architecture=learngene.architecture,
        policy_sha256=policy_sha256,
        plaintext=Content(size=len(plaintext), sha256=digest_of(plaintext)),
        ciphertext=Content(size=len(ciphertext), sha256=digest_of(ciphertext)),
        tensors=tuple(
            TensorDescription(name=name, role=kind.role, dtype=kind.dtype, shape=kind.shape)
            for name, kind in allowed.items()
        ),
        fisher=learngene.fisher,
        dp=learngene.privacy,
        withdraws=tuple(sorted(withdraws)),
    )
    return sign(payload, key), ciphertext


def make_grant(
    request: Request,
    request_digest: str,
    release: Release,
    release_digest: str,
    *,
    key: SigningKey,
    now: int,
    content_key: bytes,
) -> bytes:
    """A GRANT of the release to the request's signer, valid no longer than the release.

    Raises:
        MalformedError: the content key cannot be sealed to the request's public key.
    """
    info = sealing.binding(
        run_id=release.run_id,
        request=request_digest,
        audience=request.signer,
        ciphertext=release.ciphertext.sha256,
    )
    payload = Grant(
        **_head(release.run_id, key, now, latest=release.expires_at),
        release=release_digest,
        request=request_digest,
        audience=request.signer,
        sealed_key=sealing.seal_content_key(content_key, request, info),
    )
    return sign(payload, key)


def make_receipt(*, run_id: str, release: str, audience: str, key: SigningKey, now: int) -> bytes:
    """A RECEIPT of the individual ``key`` for the release (digest) to the collective with the key id ``audience``."""
    payload = Receipt(
        **_head(run_id, key, now),
        audience=audience,
        release=release,
        status="committed",
    )
    return sign(payload, key)


def make_abort(*, run_id: str, audience: str, code: AbortCode, subject: str | None, key: SigningKey, now: int) -> bytes:
    """An ABORT to the party with the key id ``audience``; ``subject``: the digest of the message at fault, if any."""
    payload = Abort(
        **_head(run_id, key, now),
        audience=audience,
        code=code,
        subject=subject,
    )
    return sign(payload, key)


class _Head(TypedDict):
    """The first fields of every payload."""

    run_id: str
    signer: str
    issued_at: int
    expires_at: int


def _head(run_id: str, key: SigningKey, now: int, *, latest: int | None = None) -> _Head:
    """The head of a payload that is valid for ``LIFE``, but no longer than ``latest`` (unix seconds)."""
    end = now + LIFE if latest is None else min(now + LIFE, latest)
    return _Head(run_id=run_id, signer=key.keyid, issued_at=now, expires_at=end)
