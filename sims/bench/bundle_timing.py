"""Times signing, sealing, opening and verifying a learngene beside SHA-256 of the same bytes."""

import hashlib
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from protocol.digest import digest_of
from protocol.encoding import blob
from protocol.exchange import verification
from protocol.exchange.expectation import Expectation, Holder
from protocol.exchange.verification import SealedLearngene, VerifiedEnvelopes, VerifiedLearngene
from protocol.keys.encryption_key import EncryptionKey
from protocol.learngene.learngene import Learngene
from protocol.messages import envelope, payloads, sealing
from protocol.messages.builders import sign
from protocol.messages.payloads import Content
from protocol.node.events import Observer
from sims.bench.made_bundle import (
    COLLECTIVE,
    CONTENT_KEY,
    INDIVIDUAL,
    INDIVIDUAL_POLICY,
    NOW,
    RUN,
    TRUST,
    Bundle,
    architecture_of,
    encryption_key,
    make_bundle,
    random_learngene,
)
from sims.bench.measurements import (
    COPY,
    MEGABYTE,
    OPEN,
    SHA256,
    TARGET,
    TARGET_BYTES,
    VERIFY_AND_PARSE,
    WHOLE,
    Timing,
    ratio,
    spread,
)
from sims.bench.rows import Clock, Row, row


@dataclass(frozen=True)
class Work:
    """The pieces of work on one bundle. ``learngene``: its content; None if nothing must be signed."""

    bundle: Bundle
    learngene: Learngene | None = None

    def sign(self) -> bytes:
        """Canonical encoding, both digests, the release's signature. The ciphertext exists before."""
        assert self.learngene is not None
        plaintext = blob.encode(self.learngene.tensors)
        contents = {
            "plaintext": Content(size=len(plaintext), sha256=digest_of(plaintext)),
            "ciphertext": Content(size=len(self.bundle.ciphertext), sha256=digest_of(self.bundle.ciphertext)),
        }
        return sign(self._sealed.release.model_copy(update=contents), COLLECTIVE)

    def seal(self) -> tuple[bytes, str]:
        """AES-GCM over the blob, and HPKE of the content key for one audience."""
        ciphertext = sealing.encrypt(CONTENT_KEY, self.bundle.plaintext)
        request = payloads.decode(payloads.Request, envelope.parse(self.bundle.request).payload)
        return ciphertext, sealing.seal_content_key(CONTENT_KEY, request, self._info)

    def open(self) -> bytes:
        """Open the content key (HPKE) and the blob (AES-GCM)."""
        return verification.decrypt(self._sealed, self._key)

    def verify_and_parse(self) -> VerifiedLearngene:
        """Verify the envelopes and a plaintext, from signatures to values, without decryption."""
        self._envelopes()
        return verification.verify_plaintext(self._sealed, self.bundle.plaintext)

    def verify_ciphertext(self) -> SealedLearngene:
        """Verify as `learngene verify` does without a key: signatures, and the ciphertext's digest."""
        return verification.verify_file(
            self.bundle.release,
            self.bundle.grant,
            self.bundle.ciphertext,
            holder=Holder(),
            trust=TRUST,
            policy=INDIVIDUAL_POLICY,
            now=NOW,
        )

    def verify_whole(self) -> VerifiedLearngene:
        """Do everything that an individual does with a bundle that arrives."""
        return verification.verify_bundle(
            self.bundle.release,
            self.bundle.grant,
            self.bundle.ciphertext,
            expectation=self._expectation,
            seen=(),
            trust=TRUST,
            policy=INDIVIDUAL_POLICY,
            key=self._key,
            now=NOW,
        )

    def prepare(self) -> None:
        """Prepare what no piece of work should include."""
        _ = self._sealed, self._key, self._info

    @cached_property
    def _expectation(self) -> Expectation:
        return Expectation(RUN, INDIVIDUAL.keyid, {digest_of(self.bundle.request): "paper"})

    @cached_property
    def _key(self) -> EncryptionKey:
        return encryption_key(self.bundle.kem)

    @cached_property
    def _sealed(self) -> SealedLearngene:
        return verification.verify_ciphertext(self._envelopes(), self.bundle.ciphertext)

    @cached_property
    def _info(self) -> bytes:
        return sealing.binding(
            run_id=RUN,
            request=self._sealed.grant.request,
            audience=INDIVIDUAL.keyid,
            ciphertext=self._sealed.release.ciphertext.sha256,
        )

    def _envelopes(self) -> VerifiedEnvelopes:
        return verification.verify_envelopes(
            self.bundle.release,
            self.bundle.grant,
            expectation=self._expectation,
            seen=(),
            trust=TRUST,
            policy=INDIVIDUAL_POLICY,
            now=NOW,
        )


def works(bundle: Bundle, learngene: Learngene) -> dict[str, Callable[[], object]]:
    """Everything that is timed, by name: two measures of the machine, then the protocol's steps."""
    work = Work(bundle, learngene)
    work.prepare()
    source = np.frombuffer(bundle.plaintext, np.uint8)
    # Copy into existing memory: otherwise the kernel's clearing of fresh pages would be measured.
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


def measure_pieces(
    pieces: Mapping[str, Callable[[], object]], repeats: int, clock: Clock, observe: Observer
) -> dict[str, list[float]]:
    """Seconds of every piece in every repeat. All pieces follow one another within each repeat, each time starting with
    another one, so that other load on the machine affects all of them alike.
    """
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
    """The table of the times that ``measure_pieces`` took on ``size`` bytes; ratios are taken within each repeat."""
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


def measure(repeats: int, clock: Clock, observe: Observer) -> list[Row]:
    """The row of ``learngene bench`` about bundles; ``learngene bench bundle`` says much more."""
    learngene = random_learngene(architecture_of(TARGET_BYTES + MEGABYTE), np.random.default_rng(0))
    pieces = works(make_bundle(learngene, "x25519"), learngene)
    seconds = measure_pieces({name: pieces[name] for name in (SHA256, VERIFY_AND_PARSE)}, repeats, clock, observe)
    name = f"verify + parse {round(TARGET_BYTES / MEGABYTE) + 1} MB, beside SHA-256 of the same bytes"
    return [row(name, seconds[VERIFY_AND_PARSE], seconds[SHA256], "s", f"at most {TARGET}")]
