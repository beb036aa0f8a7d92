"""Rehearsal: work that a process tries in a child before it makes or changes anything itself."""

import contextlib
import os
import select
import signal
import time
from collections.abc import Callable
from io import FileIO
from typing import NoReturn

from protocol.encoding.log_format import traceback_lines
from protocol.errors import InputError, LearngeneError, RunFailedError
from protocol.output import say

_WELL, _WRONG, _FAILED, _INTERRUPTED = b"w", b"i", b"f", b"c"
#: Bytes that a pipe on Linux holds without a reader (pipe(7)).
_MOST_BYTES = 64 * 1024


def rehearse(work: Callable[[], bytes], *, seconds: float | None = None) -> int:
    """Do ``work`` in a forked child of this process: no module that it imports and no byte that it reads is in this
    process afterwards.

    Args:
        work: returns bytes for the caller, at most 64 KiB.
        seconds: time after which the child is killed; None: no limit.

    Returns:
        The reading end of a pipe that holds these bytes.

    Raises:
        InputError, RunFailedError: the error that ``work`` raised, in one line; or the child was killed.
            KeyboardInterrupt: it was interrupted.
    """
    (said, says), (held, holds) = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        _work(work, says, holds)
    os.close(says)
    os.close(holds)
    try:
        with open(said, "rb", buffering=0) as told:
            word = _read_all(told, seconds)
    except BaseException:
        os.close(held)
        # The child may wait for a passphrase.
        os.kill(child, signal.SIGKILL)
        raise
    finally:
        os.waitpid(child, 0)
    if word[:1] == _WELL:
        return held
    os.close(held)
    line = word[1:].decode("utf-8", errors="surrogateescape")
    if word[:1] == _INTERRUPTED:
        raise KeyboardInterrupt
    if word[:1] == _WRONG:
        raise InputError(line)
    raise RunFailedError(line or "the process that was to try it ended and said nothing")


def taken(pipe: int) -> bytes:
    """The bytes that :func:`rehearse` left in its pipe, which is closed."""
    with open(pipe, "rb") as held:
        return held.read()


def _read_all(told: FileIO, seconds: float | None) -> bytes:
    deadline = None if seconds is None else time.monotonic() + seconds
    data = b""
    while select.select([told], [], [], None if deadline is None else max(0.0, deadline - time.monotonic()))[0]:
        piece = told.read(_MOST_BYTES)
        if not piece:
            return data
        data += piece
    raise RunFailedError(f"the process that was to try it has not ended after {seconds:.0f} s")


def _work(work: Callable[[], bytes], says: int, holds: int) -> NoReturn:
    word = _FAILED
    try:
        data = work()
        if len(data) > _MOST_BYTES:
            raise RunFailedError(f"{len(data)} bytes are more than a pipe holds")
        os.write(holds, data)
        word = _WELL
    except LearngeneError as error:
        kind = _WRONG if isinstance(error, InputError) else _FAILED
        word = kind + str(error).encode("utf-8", errors="surrogateescape")
    except KeyboardInterrupt:
        word = _INTERRUPTED
    except BaseException as error:  # whatever it is, the parent must not go on
        word = _FAILED + f"{type(error).__name__}: {error}".encode("utf-8", errors="surrogateescape")
        for line in traceback_lines(type(error), error, error.__traceback__):
            say(line, error=True)
    finally:
        with contextlib.suppress(OSError):
            os.write(says, word)
        os._exit(0)
