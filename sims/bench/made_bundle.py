"""A random learngene of a wanted size on its way between two parties that exist only for the benchmark."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from protocol.digest import digest_of
from protocol.encoding import blob
from protocol.keys.encryption_key import EncryptionKey
from protocol.keys.kem import Kem
from protocol.keys.signing_key import SigningKey
from protocol.learngene.architecture import Architecture, Block, InputContract
from protocol.learngene.learngene import FisherDescription, Learngene
from protocol.messages import envelope, payloads
from protocol.messages.builders import make_grant, make_release, make_request
from protocol.messages.payloads import NO_RELEASE, Release
from protocol.trust.policy import Policy
from protocol.trust.trust_store import TrustedKey, TrustStore

_BLOCKS = 3
_WIDEST = 4096
_IMAGE = InputContract(height=32, width=32, channels=3)

# Everything happens at one moment of one run, between parties that exist only here: the keys are worth nothing.
NOW = 1_800_000_000
_YEAR = 365 * 24 * 3600
RUN = "be" * 16
COLLECTIVE = SigningKey.from_seed(bytes(31) + b"c")
INDIVIDUAL = SigningKey.from_seed(bytes(31) + b"i")
CONTENT_KEY = bytes(31) + b"k"
INDIVIDUAL_POLICY = Policy.for_role("individual")
_NONCE = bytes(16)
TRUST = TrustStore(
    root=SigningKey.from_seed(bytes(31) + b"r").public_hex,
    expires_at=NOW + _YEAR,
    keys=(
        TrustedKey(public=COLLECTIVE.public_hex, role="collective", party="collective"),
        TrustedKey(public=INDIVIDUAL.public_hex, role="individual", party="individual"),
    ),
)


class Bundle(NamedTuple):
    """A learngene on its way, and the request that it answers; ``plaintext`` is what the ciphertext holds."""

    kem: Kem
    request: bytes
    release: bytes
    grant: bytes
    ciphertext: bytes
    plaintext: bytes


def architecture_of(size: int) -> Architecture:
    """The architecture whose blob, Fisher diagonal included, is as close to ``size`` bytes as its widths allow.

    It is the paper's form: three of the collective's last convolutions; 512 channels, as in a VGG, make 57 MB.
    """

    def blocks(width: int, last: int) -> tuple[Block, ...]:
        widths = [width] * _BLOCKS + [last]
        return tuple(
            Block(role="top", in_channels=before, out_channels=after, pool=False)
            for before, after in itertools.pairwise(widths)
        )

    def distance(width: int, last: int) -> int:
        architecture = Architecture(form="paper", input=_IMAGE, blocks=blocks(width, last))
        shapes = {name: shape for name, (_, shape) in architecture.tensors(fisher=True).items()}
        return abs(blob.encoded_size(shapes) - size)

    width = min(range(1, _WIDEST + 1), key=lambda width: distance(width, width))
    last = min(range(1, min(2 * width, _WIDEST) + 1), key=lambda last: distance(width, last))
    return Architecture(form="paper", input=_IMAGE, blocks=blocks(width, last))


def random_learngene(architecture: Architecture, rng: np.random.Generator) -> Learngene:
    """A learngene of this architecture with random weights, and a random Fisher diagonal that may leave a site."""

    def values(name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
        drawn = rng.standard_normal(shape, dtype=np.float32)
        positive = name.startswith("fisher.") or name.endswith((".running_var", "input.std"))
        return drawn * drawn + np.float32(1e-6) if positive else drawn * np.float32(0.05)

    tensors = {name: values(name, shape) for name, (_, shape) in architecture.tensors(fisher=True).items()}
    return Learngene(
        architecture, tensors, FisherDescription(source="collective", estimator="sampled", samples=1024, clip_micro=0)
    )


def make_bundle(learngene: Learngene, kem: Kem) -> Bundle:
    """An individual's request for this learngene, and the bundle that answers it."""
    request = request_of(INDIVIDUAL, encryption_key(kem))
    release, ciphertext = make_release(
        learngene,
        run_id=RUN,
        seq=1,
        prev=NO_RELEASE,
        key=COLLECTIVE,
        key_epoch=1,
        policy_sha256=Policy.for_role("collective").sha256,
        now=NOW,
        content_key=CONTENT_KEY,
    )
    grant = make_grant(
        payloads.decode(payloads.Request, envelope.parse(request).payload),
        digest_of(request),
        payloads.decode(Release, envelope.parse(release).payload),
        digest_of(release),
        key=COLLECTIVE,
        now=NOW,
        content_key=CONTENT_KEY,
    )
    return Bundle(kem, request, release, grant, ciphertext, blob.encode(learngene.tensors))


def trust_with(individuals: Sequence[SigningKey]) -> TrustStore:
    """The benchmark's trust store, which pins these individuals, too."""
    pinned = [
        TrustedKey(public=key.public_hex, role="individual", party=f"audience-{number}")
        for number, key in enumerate(individuals)
    ]
    return TrustStore(root=TRUST.root, expires_at=TRUST.expires_at, keys=(*TRUST.keys, *pinned))


def encryption_key(kem: Kem) -> EncryptionKey:
    return EncryptionKey.from_raw(kem, (b"e" * 32) if kem == "x25519" else (b"e" * 96))


def request_of(individual: SigningKey, encryption: EncryptionKey) -> bytes:
    return make_request(
        run_id=RUN,
        audience=COLLECTIVE.keyid,
        form="paper",
        key=individual,
        encryption=encryption,
        now=NOW,
        nonce=_NONCE,
    )
