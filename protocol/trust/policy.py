"""The site's own policy: what may leave it, and which releases it accepts."""

from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

from protocol.digest import digest_of
from protocol.encoding import canonical_json
from protocol.errors import MalformedError, PolicyDeniedError, TooLargeError
from protocol.keys.kem import Kem
from protocol.learngene import storage
from protocol.learngene.architecture import Form
from protocol.learngene.learngene import DifferentialPrivacy
from protocol.messages import sealing
from protocol.messages.payloads import Kind, Release
from protocol.trust.role import Role

#: All kinds that a role can send. A policy may only narrow the list.
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
        kems: kinds of encryption key to which a collective seals; only the hybrid withstands a quantum computer.
        forms: forms of learngene that may leave or are accepted.
        fisher: whether a Fisher diagonal may leave or is accepted.
        largest_epsilon_micro: largest epsilon, in millionths, of the differential privacy that a release must state for
            its whole content; None: it need not state any.
        smallest_delta_exponent: such a release must state a delta of 10 to the minus this, or smaller.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    format: Literal[1] = 1
    role: Role
    kinds_out: tuple[Kind, ...]
    minimum_fisher_samples: int = Field(default=1024, ge=1024, le=2**31)
    largest_blob: int = Field(default=256 << 20, ge=1, le=1 << 30)
    kems: tuple[Kem, ...] = Field(default=("x25519", "mlkem768-x25519"), min_length=1)
    forms: tuple[Form, ...] = Field(default=get_args(Form), min_length=1)
    fisher: bool = True
    largest_epsilon_micro: int | None = Field(default=None, ge=1, le=10**12)
    smallest_delta_exponent: int = Field(default=5, ge=1, le=30)

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
        return digest_of(canonical_json.encode(self.model_dump(mode="json")))


def check_release(policy: Policy, release: Release) -> None:
    """Check the content of a release, on the way out and on the way in: only the tensors of its architecture, so never
    a classifier, and a Fisher diagonal only from many samples.

    Raises:
        PolicyDeniedError: the policy does not allow it.
        MalformedError: the blob's size is not the architecture's.
        TooLargeError: the blob is larger than the policy allows.
    """
    if release.form not in policy.forms:
        raise PolicyDeniedError(f"this site's policy has the forms {', '.join(policy.forms)}, not {release.form}")
    if release.fisher is not None and not policy.fisher:
        raise PolicyDeniedError("this site's policy lets no Fisher diagonal pass")
    if policy.largest_epsilon_micro is not None:
        _check_privacy(policy.largest_epsilon_micro, policy.smallest_delta_exponent, release.dp)
    if release.fisher is not None and release.fisher.samples < policy.minimum_fisher_samples:
        raise PolicyDeniedError(
            f"a Fisher diagonal from {release.fisher.samples} samples follows single images; take"
            f" at least {policy.minimum_fisher_samples} where it leaves the site"
        )
    fisher = release.fisher is not None
    described = {tensor.name: (tensor.role, tensor.dtype, tensor.shape) for tensor in release.tensors}
    allowed = release.architecture.stored(fisher=fisher)
    if described != allowed or [tensor.name for tensor in release.tensors] != list(allowed):
        beyond = sorted(set(described) ^ set(allowed)) or ["a role, a dtype, a shape or the order"]
        raise PolicyDeniedError(f"the release's tensors are not those of its architecture: {', '.join(beyond[:4])}")
    expected = storage.encoded_size(release.architecture, fisher=fisher)
    if release.plaintext.size != expected:
        raise MalformedError(f"the release says {release.plaintext.size} bytes, its architecture makes {expected}")
    if release.ciphertext.size != expected + sealing.OVERHEAD_BYTES:
        raise MalformedError(f"the release's ciphertext of {release.ciphertext.size} bytes is not that of its content")
    if release.ciphertext.size > policy.largest_blob:
        raise TooLargeError(f"a blob of {release.ciphertext.size} bytes, the policy allows {policy.largest_blob}")


def _check_privacy(
    largest_epsilon_micro: int, smallest_delta_exponent: int, stated: DifferentialPrivacy | None
) -> None:
    if stated is None:
        raise PolicyDeniedError("this site's policy asks for differential privacy, the release states none")
    if stated.scope != "weights-and-fisher":
        raise PolicyDeniedError(
            f"this site's policy asks for differential privacy of all that a release holds, this one has the scope"
            f" {stated.scope}: its weights carry no guarantee"
        )
    if stated.epsilon_micro > largest_epsilon_micro:
        raise PolicyDeniedError(
            f"the release states epsilon {stated.epsilon_micro / 1e6:g}, this site's policy has at most"
            f" {largest_epsilon_micro / 1e6:g}"
        )
    if stated.delta_exponent < smallest_delta_exponent:
        raise PolicyDeniedError(
            f"the release states delta 1e-{stated.delta_exponent}, this site's policy has at most"
            f" 1e-{smallest_delta_exponent}"
        )
