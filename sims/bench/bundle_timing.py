"""What the protocol costs: signing, sealing, opening and verifying a learngene beside SHA-256 of the same bytes."""

import hashlib
import itertools
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from protocol.digest import digest_of
from protocol.encoding import blob
from protocol.exchange import content_keys, verification
from protocol.exchange.collective_ledger import CollectiveLedger
from protocol.exchange.expectation import Expectation, Holder
from protocol.exchange.verification import SealedLearngene, VerifiedEnvelopes, VerifiedLearngene
from protocol.keys.encryption_key import EncryptionKey
from protocol.keys.kem import Kem
from protocol.keys.signing_key import SigningKey
from protocol.learngene.architecture import Architecture, Block, InputContract
from protocol.learngene.learngene import FisherDescription, Learngene
from protocol.messages import envelope, payloads, sealing
from protocol.messages.builders import make_grant, make_release, make_request, sign
from protocol.messages.payloads import NO_RELEASE, Content, Release
from protocol.node.events import Observer
from protocol.trust.policy import Policy
from protocol.trust.trust_store import TrustedKey, TrustStore

#: What "verify + parse" may take, in times of SHA-256 of the same bytes, for a learngene of this size or a larger one:
#: beside fewer bytes the envelopes, which are as long as ever, weigh more.
TARGET = 1.15
TARGET_BYTES = 56_000_000
#: Names of what is measured; the table shows them.
SHA256, COPY = "SHA-256", "memory copy"
VERIFY_AND_PARSE, OPEN, WHOLE = "verify + parse", "open", "whole verification"
#: Individuals that can be measured at once.
MOST_AUDIENCES = 8000
MEGABYTE = 1_000_000

_BLOCKS = 3
_WIDEST = 4096
_IMAGE = InputContract(height=32, width=32, channels=3)

# Everything happens at one moment of one run, between parties that exist only here: the keys are worth nothing.
_NOW = 1_800_000_000
_YEAR = 365 * 24 * 3600
_RUN = "be" * 16
_COLLECTIVE = SigningKey.from_seed(bytes(31) + b"c")
_INDIVIDUAL = SigningKey.from_seed(bytes(31) + b"i")
_CONTENT_KEY = bytes(31) + b"k"
_INDIVIDUAL_POLICY = Policy.for_role("individual")
_NONCE = bytes(16)
_TRUST = TrustStore(
    root=SigningKey.from_seed(bytes(31) + b"r").public_hex,
    expires_at=_NOW + _YEAR,
    keys=(
        TrustedKey(public=_COLLECTIVE.public_hex, role="collective", party="collective"),
        TrustedKey(public=_INDIVIDUAL.public_hex, role="individual", party="individual"),
    ),
)

Clock = Callable[[], float]


class Range(BaseModel):
    """Median, smallest and largest of what the repeats gave."""

    model_config = ConfigDict(frozen=True)

    median: float
    smallest: float
    largest: float


class Timing(BaseModel):
    """One piece of work: seconds, and ratios to what was measured in the same repeat on the same bytes."""

    model_config = ConfigDict(frozen=True)

    name: str
    seconds: Range
    megabytes_per_second: float
    to_sha256: Range
    to_copy: Range


class Memory(BaseModel):
    """How many bytes a process grew at most by a piece of work, beyond the bytes that it had received."""

    model_config = ConfigDict(frozen=True)

    name: str
    bytes: int


class Audiences(BaseModel):
    """One release, one blob, a grant for each of many individuals. Times in seconds for one grant.

    Attributes:
        verify, seal_and_sign, store: the request's verification, making the grant, its durable row in the ledger.
        seal: HPKE alone, which is part of ``seal_and_sign``.
        each: the three together, in the order in which the grants were made.
        grant_bytes: of one grant; those of the same key encapsulation are as long as one another, but for a digit.
    """

    model_config = ConfigDict(frozen=True)

    audiences: int
    verify: Range
    seal_and_sign: Range
    seal: Range
    store: Range
    each: tuple[float, ...]
    request_bytes: int
    grant_bytes: int
    release_bytes: int
    blob_bytes: int

    def shared_bytes(self, audiences: int) -> int:
        """What is sent to so many individuals where all share the one release and blob."""
        return self.release_bytes + self.blob_bytes + audiences * self.grant_bytes

    def separate_bytes(self, audiences: int) -> int:
        """What would be sent with a blob and a release for each of them."""
        return audiences * (self.release_bytes + self.blob_bytes + self.grant_bytes)


class BundleBenchmark(BaseModel):
    """Everything that ``learngene bench bundle`` measured.

    Attributes:
        within_target: whether the median ratio of "verify + parse" to SHA-256 is at most ``target``; None where the
            learngene is smaller than ``TARGET_BYTES``.
        opening_share: opening's part in the time of the whole verification.
    """

    model_config = ConfigDict(frozen=True)

    format: int = 1
    machine: Mapping[str, str]
    kem: Kem
    repeats: int
    tensors: int
    plaintext_bytes: int
    release_bytes: int
    target: float = TARGET
    within_target: bool | None
    opening_share: Range
    timings: tuple[Timing, ...]
    memory: tuple[Memory, ...]
    audiences: Audiences | None

    def timing(self, name: str) -> Timing:
        """The timing of that name."""
        return next(timing for timing in self.timings if timing.name == name)


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
    """An individual's request for this learngene, and what answers it."""
    request = _request(_INDIVIDUAL, _encryption(kem))
    release, ciphertext = make_release(
        learngene,
        run_id=_RUN,
        seq=1,
        prev=NO_RELEASE,
        key=_COLLECTIVE,
        key_epoch=1,
        policy_sha256=Policy.for_role("collective").sha256,
        now=_NOW,
        content_key=_CONTENT_KEY,
    )
    grant = make_grant(
        payloads.decode(payloads.Request, envelope.parse(request).payload),
        digest_of(request),
        payloads.decode(Release, envelope.parse(release).payload),
        digest_of(release),
        key=_COLLECTIVE,
        now=_NOW,
        content_key=_CONTENT_KEY,
    )
    return Bundle(kem, request, release, grant, ciphertext, blob.encode(learngene.tensors))


@dataclass(frozen=True)
class Work:
    """The pieces of work on one bundle. ``learngene``: what it was made of, None where nothing is to be signed."""

    bundle: Bundle
    learngene: Learngene | None = None

    def sign(self) -> bytes:
        """Canonical encoding, both digests, the release's signature. The ciphertext is at hand."""
        assert self.learngene is not None
        plaintext = blob.encode(self.learngene.tensors)
        contents = {
            "plaintext": Content(size=len(plaintext), sha256=digest_of(plaintext)),
            "ciphertext": Content(size=len(self.bundle.ciphertext), sha256=digest_of(self.bundle.ciphertext)),
        }
        return sign(self._sealed.release.model_copy(update=contents), _COLLECTIVE)

    def seal(self) -> tuple[bytes, str]:
        """AES-GCM over the blob, and HPKE of the content key for one audience."""
        ciphertext = sealing.encrypt(_CONTENT_KEY, self.bundle.plaintext)
        request = payloads.decode(payloads.Request, envelope.parse(self.bundle.request).payload)
        return ciphertext, sealing.seal_content_key(_CONTENT_KEY, request, self._info)

    def open(self) -> bytes:
        """HPKE and AES-GCM backwards."""
        return verification.decrypt(self._sealed, self._key)

    def verify_and_parse(self) -> VerifiedLearngene:
        """The envelopes and the plaintext, where nothing is to be decrypted: signatures to values."""
        self._envelopes()
        return verification.verify_plaintext(self._sealed, self.bundle.plaintext)

    def verify_ciphertext(self) -> SealedLearngene:
        """What `learngene verify` does without a key: signatures, and the ciphertext's digest."""
        return verification.verify_file(
            self.bundle.release,
            self.bundle.grant,
            self.bundle.ciphertext,
            holder=Holder(),
            trust=_TRUST,
            policy=_INDIVIDUAL_POLICY,
            now=_NOW,
        )

    def verify_whole(self) -> VerifiedLearngene:
        """Everything that an individual does with a bundle that arrives."""
        return verification.verify_bundle(
            self.bundle.release,
            self.bundle.grant,
            self.bundle.ciphertext,
            expectation=self._expectation,
            seen=(),
            trust=_TRUST,
            policy=_INDIVIDUAL_POLICY,
            key=self._key,
            now=_NOW,
        )

    def prepare(self) -> None:
        """Do beforehand what no piece of work is meant to hold."""
        _ = self._sealed, self._key, self._info

    @cached_property
    def _expectation(self) -> Expectation:
        return Expectation(_RUN, _INDIVIDUAL.keyid, {digest_of(self.bundle.request): "paper"})

    @cached_property
    def _key(self) -> EncryptionKey:
        return _encryption(self.bundle.kem)

    @cached_property
    def _sealed(self) -> SealedLearngene:
        return verification.verify_ciphertext(self._envelopes(), self.bundle.ciphertext)

    @cached_property
    def _info(self) -> bytes:
        return sealing.binding(
            run_id=_RUN,
            request=self._sealed.grant.request,
            audience=_INDIVIDUAL.keyid,
            ciphertext=self._sealed.release.ciphertext.sha256,
        )

    def _envelopes(self) -> VerifiedEnvelopes:
        return verification.verify_envelopes(
            self.bundle.release,
            self.bundle.grant,
            expectation=self._expectation,
            seen=(),
            trust=_TRUST,
            policy=_INDIVIDUAL_POLICY,
            now=_NOW,
        )


def works(bundle: Bundle, learngene: Learngene) -> dict[str, Callable[[], object]]:
    """Everything that is timed, by name: two measures of the machine, then the protocol's steps."""
    work = Work(bundle, learngene)
    work.prepare()
    source = np.frombuffer(bundle.plaintext, np.uint8)
    # Into memory that is there already: otherwise it is the kernel's clearing of fresh pages that is measured.
    target = np.empty_like(source)
    return {
        SHA256: lambda: hashlib.sha256(bundle.plaintext).digest(),
        COPY: lambda: np.copyto(target, source),
        "sign": work.sign,
        "seal": work.seal,
        OPEN: work.open,
        VERIFY_AND_PARSE: work.verify_and_parse,
        "verify the ciphertext": work.verify_ciphertext,
        WHOLE: work.verify_whole,
    }


def measure(
    pieces: Mapping[str, Callable[[], object]], repeats: int, clock: Clock, observe: Observer
) -> dict[str, list[float]]:
    """Seconds of every piece in every repeat. All pieces follow one another within each repeat, each time beginning
    with another one, so that what else the machine does hits all of them alike."""
    names = list(pieces)
    for name in names:
        pieces[name]()
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for repeat in range(repeats):
        observe(repeat, repeats, "measuring the bundle")
        first = repeat % len(names)
        for name in names[first:] + names[:first]:
            start = clock()
            result = pieces[name]()
            seconds[name].append(clock() - start)
            del result
    observe(repeats, repeats, "measuring the bundle")
    return seconds


def timings(seconds: Mapping[str, Sequence[float]], size: int) -> tuple[Timing, ...]:
    """The table of what ``measure`` measured on ``size`` bytes; ratios are taken within each repeat."""
    return tuple(
        Timing(
            name=name,
            seconds=spread(values),
            megabytes_per_second=size / MEGABYTE / statistics.median(values),
            to_sha256=ratio(values, seconds[SHA256]),
            to_copy=ratio(values, seconds[COPY]),
        )
        for name, values in seconds.items()
    )


def ratio(values: Sequence[float], others: Sequence[float]) -> Range:
    """Of each value to the other one of the same repeat."""
    return spread([value / other for value, other in zip(values, others, strict=True)])


def spread(values: Sequence[float]) -> Range:
    """Median, smallest and largest."""
    return Range(median=statistics.median(values), smallest=min(values), largest=max(values))


def measure_audiences(
    bundle: Bundle, count: int, folder: Path, clock: Clock, observe: Observer, step: int = 50
) -> Audiences:
    """Grant the one release of a bundle to ``count`` individuals, from a ledger on the disk of ``folder``."""
    individuals = [SigningKey.from_seed(hashlib.sha256(b"audience %d" % number).digest()) for number in range(count)]
    pinned = [
        TrustedKey(public=key.public_hex, role="individual", party=f"audience-{number}")
        for number, key in enumerate(individuals)
    ]
    trust = TrustStore(root=_TRUST.root, expires_at=_TRUST.expires_at, keys=(*_TRUST.keys, *pinned))
    parts: dict[str, list[float]] = {"verify": [], "seal_and_sign": [], "store": [], "seal": []}
    sizes: set[int] = set()
    request = b""
    with tempfile.TemporaryDirectory(prefix="learngene-bench-", dir=folder) as temporary:
        ledger = CollectiveLedger(Path(temporary))
        closed = content_keys.close(_COLLECTIVE, _CONTENT_KEY, digest_of(bundle.release))
        release = ledger.add_release(bundle.release, closed, bundle.ciphertext)
        for number, individual in enumerate(individuals):
            if number % step == 0:
                observe(number, count, "granting")
            request = _request(individual, EncryptionKey.generate(bundle.kem))
            start = clock()
            verified = verification.verify_request(
                request,
                trust=trust,
                run_id=_RUN,
                audience=_COLLECTIVE.keyid,
                known=lambda keyid, nonce: ledger.request_with_nonce(_RUN, keyid, nonce),
                now=_NOW,
            )
            read = clock()
            grant = make_grant(
                verified.payload,
                verified.digest,
                release.payload,
                release.digest,
                key=_COLLECTIVE,
                now=_NOW,
                content_key=_CONTENT_KEY,
            )
            made = clock()
            ledger.add_grant(verified, release, grant)
            stored = clock()
            # Once more by itself, as nothing less than a whole grant can be asked for.
            sealing.seal_content_key(_CONTENT_KEY, verified.payload, b"")
            sealed = clock()
            steps = (read - start, made - read, stored - made, sealed - stored)
            for values, value in zip(parts.values(), steps, strict=True):
                values.append(value)
            sizes.add(len(grant))
        ledger.close()
    observe(count, count, "granting")
    each = [sum(steps) for steps in zip(parts["verify"], parts["seal_and_sign"], parts["store"], strict=True)]
    return Audiences(
        audiences=count,
        verify=spread(parts["verify"]),
        seal_and_sign=spread(parts["seal_and_sign"]),
        seal=spread(parts["seal"]),
        store=spread(parts["store"]),
        each=tuple(each),
        request_bytes=len(request),
        grant_bytes=max(sizes),
        release_bytes=len(bundle.release),
        blob_bytes=len(bundle.ciphertext),
    )


def _encryption(kem: Kem) -> EncryptionKey:
    return EncryptionKey.from_raw(kem, (b"e" * 32) if kem == "x25519" else (b"e" * 96))


def _request(individual: SigningKey, encryption: EncryptionKey) -> bytes:
    return make_request(
        run_id=_RUN,
        audience=_COLLECTIVE.keyid,
        form="paper",
        key=individual,
        encryption=encryption,
        now=_NOW,
        nonce=_NONCE,
    )
