"""The site's own policy, and the one gate that everything passes last before the socket: default is to refuse."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from protocol import blob, canonical_json, envelope, messages, sealing
from protocol.encryption_key import Kem
from protocol.errors import DigestMismatchError, MalformedError, PolicyDeniedError, TooLargeError
from protocol.messages import Kind, Release
from protocol.trust import Role

#: What a role can ever send. A policy may only narrow it.
KINDS_OUT: dict[Role, tuple[Kind, ...]] = {
    "collective": ("abort", "grant", "release"),
    "individual": ("abort", "receipt", "request"),
}


class Policy(BaseModel):
    """What may leave a site.

    Attributes:
        role: which party's site it is.
        kinds_out: kinds of message that may leave.
        minimum_fisher_samples: a Fisher diagonal from fewer samples neither leaves nor is accepted: from few samples it
            follows single training images. It can be raised, not lowered.
        largest_blob: bytes of the largest blob that may leave or is accepted.
        kems: kinds of encryption key to which a collective seals; the hybrid alone withstands a quantum computer.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    format: Literal[1] = 1
    role: Role
    kinds_out: tuple[Kind, ...]
    minimum_fisher_samples: int = Field(default=1024, ge=1024, le=2**31)
    largest_blob: int = Field(default=256 << 20, ge=1, le=1 << 30)
    kems: tuple[Kem, ...] = Field(default=("x25519", "mlkem768-x25519"), min_length=1)

    @model_validator(mode="after")
    def _only_narrows(self) -> "Policy":
        beyond = sorted(set(self.kinds_out) - set(KINDS_OUT[self.role]))
        if beyond:
            raise ValueError(f"the {self.role} never sends: {', '.join(beyond)}")
        return self

    @classmethod
    def for_role(cls, role: Role) -> "Policy":
        """The default policy of a role."""
        return cls(role=role, kinds_out=KINDS_OUT[role])

    @property
    def sha256(self) -> str:
        """The digest of the policy, which a RELEASE names."""
        return envelope.digest(canonical_json.encode(self.model_dump(mode="json")))


def egress(policy: Policy, data: bytes) -> bytes:
    """The gate for messages: the same bytes, if they may leave.

    Raises:
        PolicyDeniedError: not an envelope of a kind and content that this policy allows.
        TooLargeError, MalformedError: not a message at all.
    """
    opened = envelope.parse(data)
    model = messages.MODELS.get(opened.payload_type)
    if model is None or model.kind not in policy.kinds_out:
        raise PolicyDeniedError(f"the policy of this {policy.role} lets no {opened.payload_type} leave")
    # The schema is the list of fields that may leave; for padded kinds it fixes the size too.
    payload = messages.decode(model, opened.payload)
    if isinstance(payload, Release):
        check_release(policy, payload)
    return data


def egress_blob(policy: Policy, release: bytes, data: bytes) -> bytes:
    """The gate for blobs: the same bytes, if they are the content of a release that may leave.

    Raises:
        PolicyDeniedError: the release may not leave, or this policy lets none leave.
        DigestMismatchError: the blob is not this release's.
        TooLargeError, MalformedError: the release is not a message at all.
    """
    egress(policy, release)
    opened = envelope.parse(release)
    if opened.payload_type != messages.PAYLOAD_TYPES["release"]:
        raise PolicyDeniedError("a blob leaves only with the release that describes it")
    ciphertext = messages.decode(Release, opened.payload).ciphertext
    if len(data) != ciphertext.size or envelope.digest(data) != ciphertext.sha256:
        raise DigestMismatchError("the blob is not the one that the release describes; publish again")
    return data


def check_release(policy: Policy, release: Release) -> None:
    """What a release may hold, the same on the way out and on the way in: the tensors of its architecture, so never a
    classifier, and a Fisher diagonal only from many samples.

    Raises:
        PolicyDeniedError: the policy does not allow it.
        MalformedError: the blob's size is not the architecture's.
        TooLargeError: the blob is larger than the policy allows.
    """
    if release.fisher is not None and release.fisher.samples < policy.minimum_fisher_samples:
        raise PolicyDeniedError(
            f"a Fisher diagonal from {release.fisher.samples} samples follows single images; take"
            f" at least {policy.minimum_fisher_samples} where it leaves the site"
        )
    described = {tensor.name: (tensor.role, tensor.shape) for tensor in release.tensors}
    allowed = release.architecture.tensors(fisher=release.fisher is not None)
    if described != allowed or [tensor.name for tensor in release.tensors] != list(allowed):
        beyond = sorted(set(described) ^ set(allowed)) or ["a role, a shape or the order"]
        raise PolicyDeniedError(f"the release's tensors are not those of its architecture: {', '.join(beyond[:4])}")
    expected = blob.encoded_size({name: shape for name, (_, shape) in allowed.items()})
    if release.plaintext.size != expected:
        raise MalformedError(f"the release says {release.plaintext.size} bytes, its architecture makes {expected}")
    if release.ciphertext.size != expected + sealing.OVERHEAD_BYTES:
        raise MalformedError(f"the release's ciphertext of {release.ciphertext.size} bytes is not that of its content")
    if release.ciphertext.size > policy.largest_blob:
        raise TooLargeError(f"a blob of {release.ciphertext.size} bytes, the policy allows {policy.largest_blob}")
