"""A file's own statements, for display. Nothing is verified here, and nothing may be trusted.

Only values in the protocol's own form are shown: words from fixed lists, integers, digests.
"""

import math
from dataclasses import dataclass
from typing import get_args

from protocol.digest import digest_of
from protocol.encoding.calendar import moment
from protocol.encoding.canonical_json import Value
from protocol.errors import MalformedError, TooLargeError
from protocol.keys.kem import PUBLIC_BYTES, Kem
from protocol.keys.signing_key import fingerprint_of
from protocol.learngene.architecture import FISHER_DTYPES, FULL, Architecture
from protocol.learngene.learngene import DifferentialPrivacy
from protocol.learngene.sizes import sizes_in_words
from protocol.messages import envelope, payloads
from protocol.messages.bundle_file import BundleFile
from protocol.messages.payloads import Abort, Grant, Payload, Receipt, Release, Request
from protocol.messages.sealing import CONTENT_KEY_BYTES
from protocol.trust import signed_trust

#: Names and values, in the order in which they are shown.
Facts = list[tuple[str, str]]

# HPKE's ciphertext: the encapsulated key, which of X25519 is a public key and of ML-KEM-768 has 1088 bytes more, then
# the content key with GCM's tag.
_SEALED_BYTES: dict[int, Kem] = {
    encapsulated + CONTENT_KEY_BYTES + 16: kem for encapsulated, kem in zip((32, 32 + 1088), get_args(Kem), strict=True)
}


@dataclass(frozen=True)
class Message:
    """One envelope and its payload. The signature is not verified."""

    payload: Payload
    digest: str
    size: int
    other_signer: bool

    @property
    def facts(self) -> Facts:
        """What it says."""
        payload = self.payload
        facts = [
            ("digest", self.digest),
            ("signed by", f"{payload.signer}"),
            ("", fingerprint_of(payload.signer)),
            ("signed", moment(payload.issued_at)),
            ("valid until", moment(payload.expires_at)),
            ("run", payload.run_id),
        ]
        if self.other_signer:
            facts.insert(3, ("", "but the envelope names another key: it would be refused"))
        return facts + _own_facts(payload) + [("bytes", str(self.size))]

    @property
    def values(self) -> dict[str, Value]:
        """What it says, for programs."""
        return {
            "kind": self.payload.kind,
            "digest": self.digest,
            "bytes": self.size,
            "fingerprint": fingerprint_of(self.payload.signer),
            "payload": self.payload.model_dump(mode="json"),
        }


@dataclass(frozen=True)
class Bundle:
    """A bundle file's release, grant and blob. Not verified."""

    release: Message
    grant: Message
    blob: bytes

    @property
    def described(self) -> Release:
        """The facts of the release."""
        assert isinstance(self.release.payload, Release)
        return self.release.payload

    @property
    def values(self) -> dict[str, Value]:
        """The facts of the file, for programs."""
        return {
            "kind": "bundle",
            "release": self.release.values,
            "grant": self.grant.values,
            "blob": {"bytes": len(self.blob), "sha256": digest_of(self.blob)},
            "parameters": self.described.architecture.parameters,
            "dtype": self.described.architecture.dtype,
            "sizes": _sizes(self.described.architecture),
        }


@dataclass(frozen=True)
class TrustFile:
    """A trust store; ``learngene trust show`` says what is in it."""


#: Bytes of the largest file that is no bundle.
MAX_BYTES = signed_trust.MAX_BYTES
_FOREIGN = "it is no file of this project: no bundle, no message of an exchange and no trust store; give another file"


def inspect(data: bytes) -> Message | TrustFile:
    """Read the bytes of a file that is no bundle.

    Raises:
        TooLargeError, MalformedError: it is no valid message and no valid trust store.
    """
    try:
        opened = envelope.parse(data, max_bytes=MAX_BYTES)
    except (MalformedError, TooLargeError):
        raise MalformedError(_FOREIGN) from None
    return TrustFile() if opened.payload_type == signed_trust.PAYLOAD_TYPE else _message(data)


def layers(release: Release) -> list[tuple[str, ...]]:
    """A row for each block: number, position, convolution, pooled or not, parameters, Fisher entries."""
    rows: list[tuple[str, ...]] = []
    for index, block in enumerate(release.architecture.blocks):
        shape = " x ".join(str(side) for side in block.tensors()["conv.weight"])
        count = f"{_count(release.architecture, index):,}"
        fisher = count if release.fisher is not None else "none"
        rows.append((str(index + 1), block.role, shape, "yes" if block.pool else "no", count, fisher))
    return rows


def _count(architecture: Architecture, index: int) -> int:
    tensors = architecture.tensors(fisher=False).items()
    own = f"block.{index}."
    return sum(math.prod(shape) for name, (role, shape) in tensors if name.startswith(own) and role == "weight")


def inspect_bundle(parts: BundleFile) -> Bundle:
    """Read a bundle file's parts.

    Raises:
        TooLargeError, MalformedError: a part of it is not valid.
    """
    release, grant = (_message(data) for data in (parts.release, parts.grant))
    for message, kind in ((release, Release), (grant, Grant)):
        if not isinstance(message.payload, kind):
            raise MalformedError(f"where the {kind.kind} belongs, the bundle file holds a {message.payload.kind}")
    return Bundle(release, grant, parts.blob)


def _message(data: bytes) -> Message:
    opened = envelope.parse(data)
    model = payloads.MODELS.get(opened.payload_type)
    if model is None:
        raise MalformedError("it is an envelope, but of no kind that this version knows")
    payload = payloads.decode(model, opened.payload)
    return Message(payload, digest_of(data), len(data), opened.keyid != payload.signer)


def _own_facts(payload: Payload) -> Facts:
    """The facts that only a message of this kind has."""
    if isinstance(payload, Release):
        return _release_facts(payload)
    if isinstance(payload, Grant):
        return [
            ("of release", payload.release),
            ("answers request", payload.request),
            *_audience(payload.audience),
            ("content key", f"sealed, {_sealed_with(payload)}"),
        ]
    if isinstance(payload, Request):
        return [
            *_audience(payload.audience),
            ("form", payload.form),
            ("nonce", payload.nonce),
            ("encryption key", f"{payload.hpke_kem}, {PUBLIC_BYTES[payload.hpke_kem]} bytes"),
        ]
    if isinstance(payload, Receipt):
        return [*_audience(payload.audience), ("release", payload.release), ("status", payload.status)]
    assert isinstance(payload, Abort)
    return [*_audience(payload.audience), ("code", payload.code), ("about", payload.subject or "nothing named")]


def _release_facts(release: Release) -> Facts:
    contract, fisher, dp = release.architecture.input, release.fisher, release.dp
    return [
        ("number", f"{release.seq}, with key {release.key_epoch} of its signer"),
        ("follows", "none" if release.seq == 1 else release.prev),
        ("withdraws", "\n".join(release.withdraws) or "none"),
        ("form", release.form),
        ("pictures", f"{contract.channels} x {contract.height} x {contract.width}"),
        ("parameters", f"{release.architecture.parameters:,} in {len(release.architecture.blocks)} blocks"),
        *([("sizes", _said_sizes(release.architecture))] if release.architecture.sizes else []),
        ("stored as", _dtypes(release)),
        (
            "Fisher",
            "none"
            if fisher is None
            else f"of the {fisher.source}, {fisher.estimator}, {fisher.samples:,} samples, "
            + (f"clipped at {fisher.clip_micro / 1e6:g}" if fisher.clip_micro else "not clipped"),
        ),
        ("privacy", "no guarantee" if dp is None else _guarantee(dp)),
        ("tensors", _tensors(release)),
        ("content", f"{release.plaintext.size:,} bytes, {release.plaintext.sha256}"),
        ("sealed", f"{release.ciphertext.size:,} bytes, {release.ciphertext.sha256}"),
        ("policy", release.policy_sha256),
    ]


def _said_sizes(architecture: Architecture) -> str:
    how = "each with weights of its own" if architecture.size_weights == "own" else "nested"
    return f"{sizes_in_words(architecture)}; {how}"


def _guarantee(stated: DifferentialPrivacy) -> str:
    words = (
        f"epsilon {stated.epsilon_micro / 1e6:g}, delta 1e-{stated.delta_exponent}, {stated.relation}, {stated.scope}"
    )
    if stated.scope == "weights-and-fisher":
        return words
    return (
        f"{words}\nof the Fisher diagonal alone, given the whole network, its unpublished classifier and front layers "
        "included, and the set of named images; the weights carry no guarantee"
    )


def _sizes(architecture: Architecture) -> list[Value]:
    """Every size with its number of weights, the smallest first; none if there is the whole alone."""
    sizes = (*architecture.sizes, FULL) if architecture.sizes else ()
    return [{"size": size, "parameters": architecture.of_size(size).parameters} for size in sizes]


def _dtypes(release: Release) -> str:
    dtype = release.architecture.dtype
    if dtype == "float32":
        return dtype
    weights = f"{dtype} with a scale for each channel" if dtype == "int8" else dtype
    fisher = "" if release.fisher is None else f", their Fisher diagonals {FISHER_DTYPES[dtype]}"
    return f"convolutions {weights}{fisher}, vectors float32"


def _tensors(release: Release) -> str:
    allowed = release.architecture.stored(fisher=release.fisher is not None)
    listed = {tensor.name: (tensor.role, tensor.dtype, tensor.shape) for tensor in release.tensors}
    agree = "those" if listed == allowed and len(listed) == len(release.tensors) else "NOT those"
    return f"{len(release.tensors)}, {agree} of the architecture"


def _audience(keyid: str) -> Facts:
    return [("for", keyid), ("", fingerprint_of(keyid))]


def _sealed_with(grant: Grant) -> str:
    size = len(grant.sealed_key) // 2
    return f"{size} bytes, {_SEALED_BYTES.get(size, 'which is no size of a sealed content key')}"
