"""Reading pictures that come from outside: the parent opens them, confined children decode them, and no answer is
trusted.

A child (``protocol.pictures.decoder``) gets a file's bytes and answers with pixels of the requested shape, or with a
code from a list. A child that ends, hangs or gives any other answer is replaced.
"""

import contextlib
import math
import os
import select
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from protocol.errors import InputError
from protocol.files.user_files import read_given
from protocol.learngene.architecture import InputContract
from protocol.pictures.decoder_process import COMMAND, DecoderProcess, LostError, not_started
from protocol.pictures.formats import BITS, FORMATS, HEAD_BYTES, NAMES, kind_of
from protocol.pictures.wire import MAX_FILE_BYTES, MAX_PIXELS, REQUEST, Code
from protocol.visible_text import visible_name

#: Time limit in seconds for a picture, and for the start of a decoder.
SECONDS = 60.0
#: Most decoders: each may take some memory (``decoder.MEMORY_BYTES``).
_MOST = 8
#: Most things that are named in one error.
_MOST_NAMED = 10
#: Most pictures that may be finished while an earlier one is not.
_WINDOW = 4096

_CONVERT = "convert or remove it"
_REASONS: dict[Code, str] = {
    Code.DAMAGED: f"cannot be read as a picture: it is damaged, or not what its first bytes say; {_CONVERT}",
    Code.TOO_MANY_PIXELS: f"has too many pixels to be read safely (at most {MAX_PIXELS:,}); make it smaller",
    Code.CAMERA_RAW: "is a camera raw file (DNG), which is not read here; save it as JPEG or PNG",
    Code.FLOATING_POINT: "holds floating-point values; save it with 8 or 16 bits a channel",
    Code.BEYOND_16_BITS: "holds values beyond 16 bits; save it with 8 or 16 bits a channel",
    Code.OUT_OF_MEMORY: "takes too much memory to be read safely; make it smaller",
    Code.NOT_SUPPORTED: "is of a format that the installed Pillow lacks; save it as JPEG or PNG",
    Code.BITS_UNKNOWN: "has 16 bits for a grey value and uses 14 of them at most, as pictures of 10, 12 or 14 bits do; "
    'say how many count (--bits 12, or "bits": 12 in split.json; 16: it is so dark), or save it with 8',
    Code.BEYOND_BITS: "holds values beyond the bits that were said to count; say how many do, or save it with 8",
    Code.BITS_OF_COLOURS: "has 16 bits for each colour and leaves the upper ones empty, or fewer are said to count; "
    'save it with 8, or say that all count (--bits 16, or "bits": 16 in split.json)',
}
_LATE = f"cannot be read as a picture: that takes too long; {_CONVERT}"
_DEADLY = f"cannot be read as a picture: the program that decodes it ended, or answered nonsense; {_CONVERT}"


@dataclass
class _Job:
    """A picture to decode.

    ``lost_after``: number of started decoders when one was lost while decoding it, which need not be the picture's
    fault. Several may have died together, so only a decoder started later shows whether the picture kills.
    """

    number: int
    file: Path | str
    lost_after: int = 0


@dataclass
class _Work:
    """The requested pictures, and the finished ones, by number."""

    jobs: deque[_Job]
    contract: InputContract
    done: dict[int, NDArray[np.uint8] | InputError] = field(default_factory=dict)

    def refuse(self, job: _Job, reason: str) -> None:
        """Record that the picture cannot be read."""
        self.done[job.number] = InputError(f"{visible_name(job.file)} {reason}")


class PictureReader:
    """Reader of pictures, a few at a time; its decoders start when they are needed and end with this context.

    Args:
        processes: most decoders; None: one for each core, up to 8.
        bits: of a grey value that count, 8 to 16, for files with 16 or 32 bits that do not say it themselves; None: a
            picture that may have fewer than 16 is refused.
        seconds: for one picture.
        command: the decoder's program.

    Attributes:
        confined: whether the operating system confines every decoder that was started so far. Without confinement, the
            limits on memory, time and formats still hold.
    """

    def __init__(
        self,
        processes: int | None = None,
        *,
        bits: int | None = None,
        seconds: float = SECONDS,
        command: Sequence[str] = COMMAND,
    ) -> None:
        if bits is not None and bits not in BITS:
            raise InputError(f"a grey value has {BITS[0]} to {BITS[-1]} bits, not {bits}")
        self._most = processes or min(_MOST, len(os.sched_getaffinity(0)))
        self._bits, self._seconds, self._command = bits or 0, seconds, command
        self._decoders: list[DecoderProcess[_Job]] = []
        self._started = 0
        self.confined = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._decoders:
            self._decoders.pop().end()

    def read(self, file: Path, contract: InputContract) -> NDArray[np.uint8]:
        """One picture, as :meth:`read_all`."""
        (picture,) = self.read_all([file], contract)
        return picture

    def read_all(self, files: Sequence[Path | str], contract: InputContract) -> Iterator[NDArray[np.uint8]]:
        """Pictures as uint8 ``[H, W, C]`` in the order of their files: turned upright, the shorter side resized, the
        middle cut out. One call at a time.

        The first frame of a moving picture counts; transparent parts become white.

        Raises:
            InputError: the contract is not for pictures, or files cannot be read: after the last file, the error names
                all of them.
            RunFailedError: a decoder does not start.
        """
        refused: list[InputError] = []
        for found in self.read_each(files, contract):
            if isinstance(found, InputError):
                refused.append(found)
            elif not refused:
                yield found
        refuse_all(refused, f"{len(refused)} of {len(files)} pictures cannot be read")

    def read_each(
        self, files: Sequence[Path | str], contract: InputContract
    ) -> Iterator[NDArray[np.uint8] | InputError]:
        """As :meth:`read_all`, but in the place of a picture that cannot be read comes the error that names it."""
        if contract.channels not in (1, 3):
            raise InputError(f"the learngene takes images of {contract.channels} channels; pictures have 1 or 3")
        work = _Work(deque(_Job(number, file) for number, file in enumerate(files)), contract)
        try:
            for number in range(len(files)):
                while number not in work.done:
                    self._hand_out(work, number)
                    self._wait(work)
                yield work.done.pop(number)
        finally:
            # The pictures that these still decode are no longer needed.
            for decoder in [one for one in self._decoders if one.waiting]:
                self._end(decoder)

    def _hand_out(self, work: _Work, wanted: int) -> None:
        """Send pictures to decoders with room, until either is used up."""
        contract = work.contract
        shape = (contract.channels, contract.height, contract.width)
        asked = (contract.channels, self._bits, contract.height, contract.width)
        while work.jobs and work.jobs[0].number < wanted + _WINDOW:
            decoder = self._free_decoder(work.jobs[0].lost_after)
            if decoder is None:
                return
            job = work.jobs.popleft()
            try:
                number, data = _opened(job.file)
            except InputError as error:
                work.done[job.number] = error
            else:
                decoder.send(job, math.prod(shape), REQUEST.pack(number, *asked, len(data)), data)

    def _free_decoder(self, after: int) -> DecoderProcess[_Job] | None:
        """The decoder with the least to do among those started after this number, or a new one; None: all are busy."""
        later = [decoder for decoder in self._decoders if decoder.number > after]
        least = min(later, key=lambda decoder: len(decoder.waiting), default=None)
        if least is not None and least.has_room:
            return least
        if len(self._decoders) >= self._most:
            return None
        self._started += 1
        self._decoders.append(DecoderProcess(self._command, self._seconds, self._started))
        return self._decoders[-1]

    def _wait(self, work: _Work) -> None:
        """Take answers as they arrive, and give up decoders that are late."""
        busy = [decoder for decoder in self._decoders if decoder.waiting]
        if not busy:
            return
        poll = select.poll()
        for decoder in busy:
            poll.register(decoder.answers, select.POLLIN)
            if decoder.sends:
                poll.register(decoder.requests, select.POLLOUT)
        soonest = min(decoder.deadline for decoder in busy) - time.monotonic()
        ready = {descriptor for descriptor, _ in poll.poll(max(0, soonest) * 1000 + 1)}
        for decoder in busy:
            try:
                if decoder.answers in ready:
                    self._take(decoder, work)
                if decoder.requests in ready:
                    decoder.send_on()
            except LostError:
                self._give_up(decoder, work)
            else:
                if decoder.waiting and time.monotonic() > decoder.deadline:
                    self._give_up(decoder, work, _LATE)

    def _take(self, decoder: DecoderProcess[_Job], work: _Work) -> None:
        contract = work.contract
        for job, code, pixels in decoder.take():
            if code is Code.PIXELS:
                shape = (contract.height, contract.width, contract.channels)
                work.done[job.number] = np.frombuffer(pixels, np.uint8).reshape(shape)
            elif code is Code.OUT_OF_MEMORY and not job.lost_after:
                # Earlier pictures may have fragmented the memory.
                decoder.waiting.appendleft((job, 0))
                raise LostError
            else:
                work.refuse(job, _REASONS[code])
        self.confined = self.confined and decoder.confined is not False

    def _give_up(self, decoder: DecoderProcess[_Job], work: _Work, late: str | None = None) -> None:
        """Replace a decoder. Its present picture is refused if it was late or has lost a decoder twice; the others go
        to other decoders.

        Raises:
            RunFailedError: it had not even started.
        """
        if decoder.confined is None:
            # It may have started and died before this check.
            with contextlib.suppress(LostError):
                self._take(decoder, work)
        started = decoder.confined is not None
        said = self._end(decoder)
        if not started:
            raise not_started(said)
        jobs = [job for job, _ in decoder.waiting]
        if jobs and (late or jobs[0].lost_after):
            work.refuse(jobs.pop(0), late or _DEADLY)
        elif jobs:
            jobs[0].lost_after = self._started
        work.jobs.extendleft(reversed(jobs))

    def _end(self, decoder: DecoderProcess[_Job]) -> str:
        self._decoders.remove(decoder)
        return decoder.end()


def refuse_all(wrong: Sequence[InputError], what: str) -> None:
    """Refuse everything that is wrong at once, in one line.

    Args:
        wrong: an error for each, which names it.
        what: the line's beginning if they are several: how many of what.

    Raises:
        InputError: there is one; it says all of them, or the first if they are many.
    """
    if len(wrong) == 1:
        raise wrong[0]
    if wrong:
        shown = " | ".join(str(error) for error in wrong[:_MOST_NAMED])
        more = f" | and {len(wrong) - _MOST_NAMED} more" if len(wrong) > _MOST_NAMED else ""
        raise InputError(f"{what}: {shown}{more}")


def _opened(file: Path | str) -> tuple[int, bytes]:
    """Format (its position in ``FORMATS``) and content of a picture.

    Raises:
        InputError: it is no regular file, too large, or of a kind that is not read.
    """
    data = read_given(file, "a picture", max_bytes=MAX_FILE_BYTES)
    kind = kind_of(data[:HEAD_BYTES])
    if kind is None:
        found = f"it is none of {NAMES}" if data else "it is empty"
        raise InputError(f"{visible_name(file)} cannot be read as a picture: {found}; {_CONVERT}")
    if kind.format is None:
        raise InputError(f"{visible_name(file)} is a {kind.name}, which is not read here; {kind.advice}")
    return FORMATS.index(kind.format), data
