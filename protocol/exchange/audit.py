"""The log of crossings: one line for everything that left or entered a site, on disk before it is sent, in one chain.

Each line is canonical JSON and names the SHA-256 of the line before it, so a changed, removed, inserted or moved line
is detected. Lines missing at the end are detected only by a reader who kept the last digest.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from protocol.digest import digest_of
from protocol.encoding import canonical_json
from protocol.errors import InputError, MalformedError, StorageFailedError, TooLargeError
from protocol.files import state_files

Direction = Literal["out", "in"]

#: The decision on what was allowed to cross; otherwise the decision is a refusal's code.
ALLOWED = "allowed"
#: Stands in the first line for the digest of the line before.
NO_LINE = "0" * 64
#: Stands for the digest of what was refused for its size alone.
TOO_LARGE = ""
_MAX_LINE_BYTES = 2048
#: Largest log, in bytes, whose lines are all kept in memory: about 200,000 lines.
_MOST_KEPT_BYTES = 64 << 20
_WHAT = "the log of crossings"
_PATIENCE = 30.0


class Crossing(BaseModel):
    """One line: its number from 1, when (unix s), which way, between whom, what kind, how many bytes and their SHA-256
    (``TOO_LARGE`` if they were too many to read), the decision, and the SHA-256 of the line before."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, populate_by_name=True)

    number: int = Field(ge=1)
    time: int
    direction: Direction
    sender: str = Field(alias="from")
    receiver: str = Field(alias="to")
    kind: str
    bytes: int
    digest: str
    decision: str
    previous: str


class Chain(NamedTuple):
    """A verified log: its lines, and the digest of the last one (``NO_LINE`` if there is none)."""

    crossings: tuple[Crossing, ...]
    head: str


class Crossings:
    """The writer of a party's ``crossings.jsonl``; several processes of that party may write at once.

    Args:
        path: the log; its folder exists.
        party: the party whose log it is.
        clock: unix seconds.
    """

    def __init__(self, path: Path, party: str, clock: Callable[[], int]) -> None:
        self._path = path
        self._party = party
        self._clock = clock

    def append(
        self,
        direction: Direction,
        peer: str,
        kind: str,
        data: bytes,
        decision: str = ALLOWED,
        *,
        sha256: str | None = None,
    ) -> None:
        """Record that ``data`` goes ``out`` to, or came ``in`` from, ``peer``, and what was decided. Durable when it
        returns.

        Args:
            sha256: of ``data``, if it is known.

        Raises:
            StorageFailedError: the line could not be stored, so nothing may be sent.
        """
        sender, receiver = (self._party, peer) if direction == "out" else (peer, self._party)
        try:
            descriptor = state_files.open_to_write(self._path.parent, self._path.name, _WHAT, os.O_RDWR)
            with os.fdopen(descriptor, "r+b", buffering=0) as file:
                state_files.lock_within(descriptor, _PATIENCE)
                size, last = _last_line(descriptor)
                number, previous = (_read(last).number + 1, digest_of(last)) if size else (1, NO_LINE)
                crossing = Crossing(
                    number=number,
                    time=self._clock(),
                    direction=direction,
                    sender=sender,
                    receiver=receiver,
                    kind=kind,
                    bytes=len(data),
                    digest=digest_of(data) if sha256 is None else sha256,
                    decision=decision,
                    previous=previous,
                )
                line = canonical_json.encode(crossing.model_dump(by_alias=True)) + b"\n"
                # Cut off a half line that a crash left: its message was never sent.
                file.truncate(size)
                if os.pwrite(descriptor, line, size) != len(line):
                    raise OSError("the line was cut short")
                os.fsync(descriptor)
        except (OSError, InputError, MalformedError, TooLargeError) as error:
            raise StorageFailedError(
                f"cannot write the log of crossings {self._path}: {error}, so nothing is sent"
            ) from error


class Summary(NamedTuple):
    """What a verified log holds in short: how many lines, how many of them refused, the digest of the
    last one, and whether one line has the digest that was asked for."""

    lines: int
    refused: int
    head: str
    holds: bool


def verify_chain(file: BinaryIO) -> Chain:
    """Verify a log: every line canonical, numbered on, and chained to the one before. Half a line at the end, as a
    crash leaves it, is not counted; more bytes than the longest line are no half line.

    Raises:
        MalformedError: it is broken; the text names the line. InputError: it cannot be read.
    """
    lines = [*_walk(file)]
    return Chain(tuple(crossing for crossing, _ in lines), lines[-1][1] if lines else NO_LINE)


def read_chain(path: Path) -> Chain:
    """Read and verify a log. No log: no crossings.

    Raises:
        InputError: it cannot be read, or is too long to be kept in memory. MalformedError: it is broken.
    """
    file = state_files.open_to_read(path.parent, path.name, _WHAT)
    if file is None:
        return Chain((), NO_LINE)
    with file:
        if os.fstat(file.fileno()).st_size > _MOST_KEPT_BYTES:
            raise InputError(
                f"the log of crossings {path} has more than {_MOST_KEPT_BYTES} bytes, too many to show; note its head "
                "(learngene audit verify), stop the node and move it away"
            )
        return verify_chain(file)


def summarise(path: Path, head: str = NO_LINE) -> Summary:
    """Verify a log of any length, in little memory. No log: no crossings.

    Args:
        head: a digest that a line of it may have.

    Raises:
        InputError: it cannot be read. MalformedError: it is broken.
    """
    lines, refused, last, holds = 0, 0, NO_LINE, head == NO_LINE
    file = state_files.open_to_read(path.parent, path.name, _WHAT)
    if file is not None:
        with file:
            for crossing, last in _walk(file):
                lines += 1
                refused += crossing.decision != ALLOWED
                holds = holds or last == head
    return Summary(lines, refused, last, holds)


def broken_log(text: str) -> MalformedError:
    """The error of a log of crossings that is not as it was written: it has no sender who could make it anew."""
    return MalformedError(f"{text}; compare it with a copy that is kept elsewhere: somebody or something changed it")


def _walk(file: BinaryIO) -> Iterator[tuple[Crossing, str]]:
    """Every line and its digest, verified; no more than one line is held."""
    number, previous = 0, NO_LINE
    while True:
        try:
            line = file.readline(_MAX_LINE_BYTES + 2)
        except OSError as error:
            raise InputError(f"cannot read the log of crossings: {error.strerror}") from None
        number += 1
        if not line.endswith(b"\n"):
            if len(line) > _MAX_LINE_BYTES:
                raise broken_log(f"line {number} of the log of crossings has no end: what stands there is no line")
            if number == 1 and line and not _may_be_half(line):
                raise broken_log("the file is no log of crossings: what stands there is no part of a line")
            return
        place = f"line {number} of the log of crossings"
        try:
            crossing = _read(line[:-1])
        except (MalformedError, TooLargeError) as error:
            why = str(error).partition("; ")[0]
            raise broken_log(f"{place} is not one that was written: {why}") from None
        if crossing.number != number or crossing.previous != previous:
            raise broken_log(f"{place} does not follow the one before: a line was changed, put in or taken out")
        previous = digest_of(line[:-1])
        yield crossing, previous


def _may_be_half(line: bytes) -> bool:
    """Whether a crash can have left this of a line: its beginning, or all of it but the end."""
    try:
        _read(line)
    except (MalformedError, TooLargeError):
        return line.startswith(b'{"'[: len(line)]) and not line.endswith(b"}")
    return True


def read_crossings(path: Path) -> Sequence[Crossing]:
    """The lines of a log, in order. Raises as ``read_chain``."""
    return read_chain(path).crossings


def _read(line: bytes) -> Crossing:
    canonical_json.decode(line, max_bytes=_MAX_LINE_BYTES)
    try:
        return Crossing.model_validate_json(line)
    except ValidationError:
        raise MalformedError("it has not the fields of a crossing") from None


def _last_line(descriptor: int) -> tuple[int, bytes]:
    """Where the last whole line ends, and that line without its end; (0, nothing) if there is none.

    Raises:
        MalformedError: the rest behind it is longer than a half line that a crash leaves, so it must not be cut off.
    """
    size = os.fstat(descriptor).st_size
    # Two lines and both their ends: the last whole one, and what a crash left of the next.
    start = max(0, size - 2 * (_MAX_LINE_BYTES + 1))
    tail = os.pread(descriptor, size - start, start)
    end = tail.rfind(b"\n")
    if len(tail) - (end + 1) > _MAX_LINE_BYTES:
        raise MalformedError(
            "what stands at its end is no line that was written; check what wrote it, and move the file away"
        )
    return (start + end + 1, tail[:end].rsplit(b"\n", 1)[-1]) if end >= 0 else (0, b"")
