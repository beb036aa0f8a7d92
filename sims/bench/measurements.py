"""The measurements of ``learngene bench bundle``, as they are written to a file."""

import statistics
from collections.abc import Mapping, Sequence

from pydantic import BaseModel, ConfigDict

from protocol.keys.kem import Kem

#: Largest ratio of "verify + parse" to SHA-256 of the same bytes, for a learngene of at least this size. In a smaller
#: one the envelopes, whose size is fixed, count more.
TARGET = 1.15
TARGET_BYTES = 56_000_000
#: Names of two measured pieces of work, as the table shows them.
SHA256, COPY = "SHA-256", "memory copy"
VERIFY_AND_PARSE, OPEN, WHOLE = "verify + parse", "open", "whole verification"
MEGABYTE = 1_000_000


class Range(BaseModel):
    """Median, smallest and largest value of the repeats."""

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
    """The most bytes that a process grew during a piece of work, beyond the received bytes."""

    model_config = ConfigDict(frozen=True)

    name: str
    bytes: int


class Audiences(BaseModel):
    """One release, one blob, a grant for each of many individuals. Times in seconds for one grant.

    Attributes:
        verify, seal_and_sign, store: the request's verification, making the grant, its durable row in the ledger.
        seal: HPKE alone, which is part of ``seal_and_sign``.
        each: the three together, in the order in which the grants were made.
        grant_bytes: of one grant; grants with the same key encapsulation differ in length by one digit at most.
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
        """Bytes sent to this number of individuals if all share one release and blob."""
        return self.release_bytes + self.blob_bytes + audiences * self.grant_bytes

    def separate_bytes(self, audiences: int) -> int:
        """Bytes that would be sent with a blob and a release for each of them."""
        return audiences * (self.release_bytes + self.blob_bytes + self.grant_bytes)


class BundleBenchmark(BaseModel):
    """Everything that ``learngene bench bundle`` measured.

    Attributes:
        within_target: whether the median ratio of "verify + parse" to SHA-256 is at most ``target``; None if the
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


def ratio(values: Sequence[float], others: Sequence[float]) -> Range:
    """The ratio of each value to the other one of the same repeat."""
    return spread([value / other for value, other in zip(values, others, strict=True)])


def spread(values: Sequence[float]) -> Range:
    """Median, smallest and largest."""
    return Range(median=statistics.median(values), smallest=min(values), largest=max(values))
