"""The printer of a confined process: a small process that passes on what it prints, line by line.

So the confined process holds one end of a pipe and nothing else: not the terminal, connection or file that it was
started with, which it could read, cut short or open wider. The printer holds nothing of the node's, so one that waits
for a slow reader holds up only the process that prints.
"""

import atexit
import codecs
import contextlib
import os
import select
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NoReturn

from protocol.confinement.helper_process import become_helper
from protocol.confinement.privileges import User

_READ_BYTES = 64 * 1024
#: Longest line that is kept until it is whole.
_MOST_CHARACTERS = 1 << 20
#: To wait at the end of a process until its last lines are passed on.
_LAST_SECONDS = 5.0


@dataclass(frozen=True)
class Printer:
    """A process's side of its printer.

    Attributes:
        pid: of the printer.
        outputs: descriptor to print to, by the number of the standard stream.
        done: reading end of a pipe that closes when everything is passed on.
    """

    pid: int
    outputs: Mapping[int, int]
    done: int

    def take_streams(self) -> None:
        """Leave this process's standard input empty, and print to the printer from now on. At its end the process waits
        a moment for its last lines."""
        with open(os.devnull, "rb") as nothing:
            os.dup2(nothing.fileno(), 0)
        sys.stdout.flush()
        sys.stderr.flush()
        for number, writing in self.outputs.items():
            os.dup2(writing, number)
        for writing in set(self.outputs.values()):
            os.close(writing)
        atexit.register(self._finish)

    def _finish(self) -> None:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        with contextlib.suppress(OSError):
            # Standard input is empty; so are the others from here on.
            for number in self.outputs:
                os.dup2(0, number)
            select.select([self.done], [], [], _LAST_SECONDS)


def start(user: User | None, clean: Callable[[str], str]) -> Printer:
    """Fork the printer, before the process opens its keys; it confines itself, and ends when nobody can print any more.

    Args:
        user: that it becomes.
        clean: makes a line safe for a terminal.
    """
    streams = _streams()
    pipes = {target: os.pipe() for target in dict.fromkeys(streams.values())}
    done, ended = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            _print({reading: target for target, (reading, _) in pipes.items()}, ended, user, clean)
        finally:
            os._exit(1)
    os.close(ended)
    for reading, _ in pipes.values():
        os.close(reading)
    return Printer(pid, {number: pipes[target][1] for number, target in streams.items()}, done)


def _streams() -> dict[int, int]:
    """Standard output and error by number, and the descriptor that each goes to: the same for both where both are one
    file, so that their lines keep their order. One that is closed is left out."""
    found: dict[int, int] = {}
    for number in (1, 2):
        with contextlib.suppress(OSError):
            status = os.fstat(number)
            same = (target for target in found.values() if os.path.samestat(os.fstat(target), status))
            found[number] = next(same, number)
    return found


def _print(printed: Mapping[int, int], ended: int, user: User | None, clean: Callable[[str], str]) -> NoReturn:
    become_helper({*printed, *printed.values(), ended}, user, {})
    decoders = {reading: codecs.getincrementaldecoder("utf-8")(errors="replace") for reading in printed}
    kept = dict.fromkeys(printed, "")
    poll = select.poll()
    for reading in printed:
        poll.register(reading, select.POLLIN)
    while decoders:
        for reading, _ in poll.poll():
            data = os.read(reading, _READ_BYTES)
            text = kept[reading] + decoders[reading].decode(data, not data)
            # Up to the last whole line, and everything at the end or where a line does not end.
            end = text.rfind("\n") + 1 if data and len(text) < _MOST_CHARACTERS else len(text)
            _pass_on(text[:end], printed[reading], clean)
            kept[reading] = text[end:]
            if not data:
                poll.unregister(reading)
                del decoders[reading]
    os._exit(0)


def _pass_on(text: str, target: int, clean: Callable[[str], str]) -> None:
    data = "\n".join(map(clean, text.split("\n"))).encode("utf-8", errors="replace")
    # Nobody may read there any more.
    with contextlib.suppress(OSError):
        while data:
            data = data[os.write(target, data) :]
