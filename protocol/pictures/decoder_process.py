"""The parent's view of a decoder of pictures: its process, the requests being sent, and the answers still expected."""

import contextlib
import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Generic, TypeVar

from protocol.errors import RunFailedError
from protocol.pictures.wire import ANSWER, Code

#: The decoder's program, isolated from the user's settings and folders.
COMMAND = (sys.executable, "-I", "-m", "protocol.pictures.decoder")

#: Most pictures, and most of their bytes, that are sent ahead to a decoder so that it need not wait.
_AHEAD, _BYTES_AHEAD = 16, 1 << 18
#: Bytes that are read, and parts that are written, at once.
_AT_ONCE, _PARTS = 1 << 20, 64

_Job = TypeVar("_Job")


class LostError(Exception):
    """The decoder ended, or answered something that is no answer."""


class DecoderProcess(Generic[_Job]):
    """A running decoder; :meth:`end` ends it.

    Args:
        command: its program.
        seconds: time limit for its start, and for each picture.
        number: which of its reader's decoders it is, in the order of their starts.

    Attributes:
        waiting: the jobs without an answer, each with the expected size of the pixels.
        confined: its own report on its confinement, sent before it read anything; None: not yet received.
    """

    def __init__(self, command: Sequence[str], seconds: float, number: int) -> None:
        self._seconds, self.number = seconds, number
        # Give it nothing of the user's environment, folder or terminal.
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            cwd="/",
            env={},
            start_new_session=True,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self.requests, self.answers = self._process.stdin.fileno(), self._process.stdout.fileno()
        for descriptor in (self.requests, self.answers):
            os.set_blocking(descriptor, False)
        self.waiting: deque[tuple[_Job, int]] = deque()
        self.confined: bool | None = None
        self._unsent: deque[memoryview] = deque()
        self._unsent_bytes = 0
        self._received = bytearray()
        self._since = time.monotonic()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def has_room(self) -> bool:
        """Whether another picture may be sent now."""
        return len(self.waiting) < _AHEAD and self._unsent_bytes < _BYTES_AHEAD

    @property
    def sends(self) -> bool:
        """Whether something is left to send."""
        return bool(self._unsent)

    @property
    def deadline(self) -> float:
        """The time on the monotonic clock after which the reader gives it up."""
        return self._since + self._seconds

    def send(self, job: _Job, expected: int, *parts: bytes) -> None:
        """Queue a request, which :meth:`send_on` sends; ``expected``: bytes of the pixels."""
        if not self.waiting and self.confined is not None:
            self._since = time.monotonic()
        self.waiting.append((job, expected))
        for part in parts:
            if part:
                self._unsent.append(memoryview(part))
                self._unsent_bytes += len(part)

    def send_on(self) -> None:
        """Send as much as it accepts now.

        Raises:
            LostError: it no longer accepts anything.
        """
        try:
            while self._unsent:
                written = os.writev(self.requests, list(islice(self._unsent, _PARTS)))
                self._unsent_bytes -= written
                while written and written >= len(self._unsent[0]):
                    written -= len(self._unsent.popleft())
                if written:
                    self._unsent[0] = self._unsent[0][written:]
        except BlockingIOError:
            return
        except OSError:
            raise LostError from None

    def take(self) -> Iterator[tuple[_Job, Code, bytes]]:
        """The answers that have come; pixels are empty if the code is another.

        Raises:
            LostError: it ended, or sent something that is no answer.
        """
        try:
            data = os.read(self.answers, _AT_ONCE)
        except BlockingIOError:
            return
        except OSError:
            raise LostError from None
        if not data:
            raise LostError
        self._received += data
        while len(self._received) >= ANSWER.size:
            code, length = self._head()
            end = ANSWER.size + length
            if len(self._received) < end:
                return
            pixels = bytes(memoryview(self._received)[ANSWER.size : end])
            del self._received[:end]
            self._since = time.monotonic()
            if self.confined is None:
                self.confined = code is Code.CONFINED
            else:
                job, _ = self.waiting.popleft()
                yield job, code, pixels

    def _head(self) -> tuple[Code, int]:
        """Code and size of the next answer; an answer of another size than the requested one is refused."""
        number, length = ANSWER.unpack_from(self._received)
        starting = self.confined is None
        if not starting and not self.waiting:
            raise LostError
        expected = 0 if starting or number != Code.PIXELS else self.waiting[0][1]
        if length != expected or number not in iter(Code):
            raise LostError
        code = Code(number)
        if starting is not (code in (Code.CONFINED, Code.UNCONFINED)):
            raise LostError
        return code, length

    def end(self) -> str:
        """End the process; returns the last line that it said before it was confined."""
        self._process.kill()
        self._process.wait()
        assert self._process.stderr is not None
        os.set_blocking(self._process.stderr.fileno(), False)
        said = b""
        with contextlib.suppress(BlockingIOError):
            said = os.read(self._process.stderr.fileno(), _AT_ONCE)
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            assert pipe is not None
            with contextlib.suppress(OSError):
                pipe.close()
        lines = said.decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"


def not_started(said: str) -> RunFailedError:
    """The error of a decoder that ended before it was ready."""
    return RunFailedError(f"the program that decodes pictures does not start: {said}; install Pillow anew")
