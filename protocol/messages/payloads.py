"""The payloads of the five kinds of message: integers, digests and words from fixed lists; no free text."""

from typing import Annotated, ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from protocol.encoding import blob, canonical_json
from protocol.encoding.blob import Dtype
from protocol.errors import MalformedError, fault_line
from protocol.keys.kem import PUBLIC_BYTES, Kem
from protocol.learngene.architecture import Architecture, Form, TensorRole
from protocol.learngene.learngene import DifferentialPrivacy, FisherDescription

Kind = Literal["request", "release", "grant", "receipt", "abort"]
Status = Literal["committed"]
AbortCode = Literal[
    "refused",
    "too_large",
    "malformed",
    "unknown_key",
    "revoked_key",
    "bad_signature",
    "wrong_run",
    "wrong_audience",
    "expired",
    "rollback",
    "equivocation",
    "digest_mismatch",
    "non_finite",
    "policy_denied",
    "storage_failed",
    "stopped",
    "withdrawn",
]

#: DSSE payload type of each kind.
PAYLOAD_TYPES: dict[Kind, str] = {
    "request": "application/vnd.learngene.request.v1+json",
    "release": "application/vnd.learngene.release.v1+json",
    "grant": "application/vnd.learngene.grant.v1+json",
    "receipt": "application/vnd.learngene.receipt.v1+json",
    "abort": "application/vnd.learngene.abort.v1+json",
}
#: Longest validity of a message, in seconds.
LIFE = 7 * 24 * 3600
#: Largest allowed difference between two parties' clocks, in seconds.
SKEW = 300
#: Bytes of every payload that an individual sends, whatever its content, except a request with the hybrid's long public
#: key.
PADDED_BYTES = 512
#: Bytes of the payload of a REQUEST whose encryption key is of this kind.
REQUEST_BYTES: dict[Kem, int] = {"x25519": PADDED_BYTES, "mlkem768-x25519": 3072}
#: Most releases that one release can withdraw.
MOST_WITHDRAWN = 64
#: ``prev`` of the first release of a run.
NO_RELEASE = "0" * 64

Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
RunId = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")]
Nonce = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")]
Seconds = Annotated[int, Field(ge=0, le=2**40)]

_CONFIG = ConfigDict(frozen=True, extra="forbid", strict=True)


class Payload(BaseModel):
    """What every payload holds: format, run, the signer's key id, and from when until when it is valid (unix s)."""

    model_config = _CONFIG

    kind: ClassVar[Kind]

    v: int = Field(default=1, ge=1, le=1)
    run_id: RunId
    signer: Digest
    issued_at: Seconds
    expires_at: Seconds


class PaddedPayload(Payload):
    """A payload filled to ``padded_bytes`` with zeros, so that its length says nothing. ``encode`` fills it."""

    audience: Digest = Field(description="key id of the receiver")
    pad: Annotated[str, StringConstraints(pattern=r"^0*$")] = ""

    @property
    def padded_bytes(self) -> int:
        """The size of every payload of this kind."""
        return PADDED_BYTES


class Request(PaddedPayload):
    """Individual -> collective: asks for the learngene in this form, with its content key sealed to this public key."""

    kind: ClassVar[Kind] = "request"

    form: Form
    nonce: Nonce
    hpke_kem: Kem
    hpke_public: Annotated[str, StringConstraints(pattern=r"^([0-9a-f]{2}){1,2048}$")]

    @model_validator(mode="after")
    def _key_is_of_its_kind(self) -> "Request":
        if len(self.hpke_public) != 2 * PUBLIC_BYTES[self.hpke_kem]:
            raise ValueError(f"the encryption key has not the length of {self.hpke_kem}")
        return self

    @property
    def padded_bytes(self) -> int:
        """The size of every request with an encryption key of this kind."""
        return REQUEST_BYTES[self.hpke_kem]


class Receipt(PaddedPayload):
    """Individual -> collective: the release with this digest is safely stored."""

    kind: ClassVar[Kind] = "receipt"

    release: Digest
    status: Status


class Abort(PaddedPayload):
    """Either -> the other: the sender stops, for a reason from the list. ``subject`` is the digest of the message in
    question; with the code ``withdrawn``, of the release that must not be used any more.
    """

    kind: ClassVar[Kind] = "abort"

    code: AbortCode
    subject: Digest | None


class Content(BaseModel):
    """Size in bytes and SHA-256 of a blob."""

    model_config = _CONFIG

    size: int = Field(ge=1, le=blob.MAX_BLOB_BYTES)
    sha256: Digest


class TensorDescription(BaseModel):
    """One tensor of the blob."""

    model_config = _CONFIG

    name: Annotated[str, StringConstraints(pattern=blob.NAME_PATTERN)]
    role: TensorRole
    dtype: Dtype
    shape: tuple[Annotated[int, Field(ge=1, le=2**31)], ...] = Field(min_length=1, max_length=blob.MAX_RANK)


class Release(Payload):
    """Collective -> all: one learngene, signed once. Only releases are chained: ``prev`` is the digest before.
    ``withdraws``: digests of earlier releases of the run that must not be used any more, sorted."""

    kind: ClassVar[Kind] = "release"

    seq: int = Field(ge=1, le=2**31)
    prev: Digest
    key_epoch: int = Field(ge=1, le=2**31)
    form: Form
    architecture: Architecture
    policy_sha256: Digest
    plaintext: Content
    ciphertext: Content
    tensors: tuple[TensorDescription, ...] = Field(min_length=1, max_length=blob.MAX_TENSORS)
    fisher: FisherDescription | None
    dp: DifferentialPrivacy | None
    withdraws: tuple[Digest, ...] = Field(max_length=MOST_WITHDRAWN)

    @model_validator(mode="after")
    def _parts_agree(self) -> "Release":
        if self.architecture.form != self.form:
            raise ValueError("the architecture is of another form than the release")
        if (self.seq == 1) != (self.prev == NO_RELEASE):
            raise ValueError("the first release of a run, and only it, follows none")
        if list(self.withdraws) != sorted(set(self.withdraws)):
            raise ValueError("the withdrawn releases are not sorted, or one is named twice")
        return self


class Grant(Payload):
    """Collective -> one individual: this release answers this request. ``sealed_key``: the release's content key,
    encrypted to the request's public key (``protocol.messages.sealing``)."""

    kind: ClassVar[Kind] = "grant"

    release: Digest
    request: Digest
    audience: Digest
    sealed_key: Annotated[str, StringConstraints(pattern=r"^([0-9a-f]{2}){1,2048}$")]


PayloadT = TypeVar("PayloadT", bound=Payload)

MODELS: dict[str, type[Payload]] = {
    PAYLOAD_TYPES[model.kind]: model for model in (Request, Release, Grant, Receipt, Abort)
}


def encode(payload: Payload) -> bytes:
    """The canonical bytes of a payload; a padded one is filled to exactly its ``padded_bytes``."""
    value = payload.model_dump(mode="json")
    if isinstance(payload, PaddedPayload):
        value["pad"] = ""
        value["pad"] = "0" * (payload.padded_bytes - len(canonical_json.encode(value)))
    return canonical_json.encode(value)


def decode(model: type[PayloadT], data: bytes) -> PayloadT:
    """Read the payload of one kind.

    Raises:
        TooLargeError: more bytes than the protocol allows.
        MalformedError: not canonical JSON, not of this schema, or not padded as it must be.
    """
    canonical_json.decode(data)
    try:
        # Canonical bytes have one meaning, so pydantic's own parser reads exactly what was checked above.
        payload = model.model_validate_json(data)
    except ValidationError as error:
        raise MalformedError(f"the payload of a {model.kind} does not fit its schema: {fault_line(error)}") from None
    if isinstance(payload, PaddedPayload) and len(data) != payload.padded_bytes:
        expected = payload.padded_bytes
        raise MalformedError(f"the payload of a {model.kind} has {len(data)} bytes, it must have {expected}")
    # Leaving out a field, or saying a default that is left out, would give the same payload in other bytes.
    if encode(payload) != data:
        raise MalformedError(
            f"the payload of a {model.kind} does not fit its schema: a field is missing, or says a default that is "
            "left out"
        )
    return payload
