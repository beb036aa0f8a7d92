"""The enclosure of a run: a small process that keeps all that the run starts in a network of its own, and ends it all.

``python -I -m sims.run.enclosure LIFELINE READY COMMAND...`` leaves the machine's network, becomes the parent of every
orphan below it (prctl(2), PR_SET_CHILD_SUBREAPER), starts the command and waits. When the lifeline closes, which it
does however the run's own command ends, or when the command has ended, it ends every process below it, also one that
left its parents and its session.
"""

import contextlib
import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from protocol.confinement import isolated_start, namespaces, privileges
from protocol.errors import RunFailedError
from sims.run.environment import REACH
from sims.run.reach import reach_of_run

_SET_CHILD_SUBREAPER, _SET_PARENT_DEATH_SIGNAL = 36, 1
# Loaded here: between fork and exec nothing may be loaded, only called.
_LIBC = ctypes.CDLL(None)
#: Seconds for the command to end by itself, then for what it started, then for what has to be killed.
_COMMAND_GRACE, _REST_GRACE, _KILL_SECONDS = 5.0, 3.0, 10.0
_POLL_SECONDS = 0.2


class Enclosure:
    """A command in an enclosure. ``close`` ends it with every process below it.

    Attributes:
        refused: why it has no network of its own; empty where it has.
        said: the one line that the command wrote to the descriptor ``READY``.
    """

    def __init__(
        self, command: Callable[[int], Sequence[str]], *, environment: Mapping[str, str], folder: Path, output: BinaryIO
    ) -> None:
        """Start the command, by the number of its descriptor ``READY``, in ``folder``.

        Raises:
            InputError: the project is installed where an isolated process does not look.
        """
        reader, self._lifeline = os.pipe()
        self._ready, ready = os.pipe()
        try:
            self._process = subprocess.Popen(
                isolated_start.command("sims.run.enclosure", [str(reader), str(ready), *command(ready)]),
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=folder,
                pass_fds=(reader, ready),
                start_new_session=True,  # Ctrl-C is for the run's own command, which then closes this one
            )
        finally:
            os.close(reader)
            os.close(ready)
        self.refused = ""
        self.said = ""

    @property
    def ended(self) -> bool:
        """Whether the command has ended, and with it the enclosure."""
        return self._process.poll() is not None

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait_until_ready(self, seconds: float) -> bool:
        """Return when the command has written its line; false where it ended without, or takes longer."""
        lines, deadline = b"", time.monotonic() + seconds
        while lines.count(b"\n") < 2 and (remaining := deadline - time.monotonic()) > 0:
            if not select.select([self._ready], [], [], remaining)[0] or not (part := os.read(self._ready, 4096)):
                return False
            lines += part
        if lines.count(b"\n") < 2:
            return False
        first, second, *_ = lines.decode("utf-8", errors="replace").split("\n")
        self.refused, self.said = str(json.loads(first)), second
        return True

    def enter(self) -> None:
        """Join the enclosure's network and end with the parent: for a child between fork and exec."""
        if not self.refused and sys.platform == "linux":
            namespaces.join(self._process.pid)
        end_with_parent()

    def close(self) -> None:
        """End the command and every process below it. May be called again.

        Raises:
            RunFailedError: one of them cannot be ended.
        """
        if self._lifeline < 0:
            return
        os.close(self._lifeline)
        os.close(self._ready)
        self._lifeline = -1
        try:
            code = self._process.wait(_COMMAND_GRACE + _REST_GRACE + _KILL_SECONDS + 5.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        # Where it was killed itself, nobody has ended the rest.
        if code == _NOT_ALL_ENDED or code < 0:
            raise RunFailedError("a process of the run cannot be ended; look for it with: ps -ef")


def end_with_parent() -> None:
    """This process ends when the one that started it does (Linux): for a child between fork and exec."""
    if sys.platform == "linux":
        _LIBC.prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGTERM)


# ----------------------------------------------------------------------------------------------------------------------
# The program


_NOT_ALL_ENDED = 3


def main() -> None:
    """The program: see the module."""
    lifeline, ready, command = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    told: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: told.append(number))
    refused = _leave_network()
    if sys.platform == "linux":
        _LIBC.prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    os.write(ready, f"{json.dumps(refused)}\n".encode())
    child = subprocess.Popen(
        command, env={**os.environ, REACH: reach_of_run(refused)}, pass_fds=(ready,), preexec_fn=_die_with_parent
    )
    os.close(ready)
    ended = _reap(child.pid)
    while not ended and not told and not select.select([lifeline], [], [], _POLL_SECONDS)[0]:
        ended = _reap(child.pid)
    if not ended:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child.pid, signal.SIGTERM)
        _until(lambda: _reap(child.pid), _COMMAND_GRACE)
    sys.exit(0 if end_children() else _NOT_ALL_ENDED)


def end_children(grace: float = _REST_GRACE, seconds: float = _KILL_SECONDS) -> bool:
    """End all that is below this process, which is the parent of every orphan there; whether none is left.

    Who forks and ends again and again is met sooner or later: each one of them becomes a child of this process.

    Args:
        grace: seconds for those that end by themselves.
        seconds: for those that have to be killed.
    """

    def kill() -> bool:
        for pid in _children():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        return _none_left()

    return _until(_none_left, grace) or _until(kill, seconds, pause=0.0)


def _leave_network() -> str:
    before = os.readlink("/proc/self/ns/user") if sys.platform == "linux" else ""
    refused = namespaces.enter_network(loopback=True)
    if not refused and os.readlink("/proc/self/ns/user") != before:
        privileges.drop_capabilities()
    return refused


def _die_with_parent() -> None:
    if sys.platform == "linux":
        _LIBC.prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)


def _children() -> Iterable[int]:
    """Children of this process, which has one thread; ended ones too."""
    own = os.getpid()
    try:
        return [int(pid) for pid in Path(f"/proc/{own}/task/{own}/children").read_text("ascii").split()]
    except OSError:  # a kernel without this file
        return [int(path.name) for path in Path("/proc").glob("[0-9]*") if _parent(path) == own]


def _parent(process: Path) -> int:
    with contextlib.suppress(OSError):
        # The command's name, in brackets, may hold anything.
        return int((process / "stat").read_text("utf-8", errors="replace").rpartition(")")[2].split()[1])
    return 0


def _reap(pid: int) -> bool:
    """Take the exit codes of all children that have ended; whether the one of this number is among them or gone."""
    found = False
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG)[0]) != 0:
            found = found or ended == pid
        return found
    return True


def _none_left() -> bool:
    try:
        while os.waitpid(-1, os.WNOHANG)[0] != 0:
            pass
    except ChildProcessError:
        return True
    return False


def _until(done: Callable[[], bool], seconds: float, pause: float = 0.02) -> bool:
    """Whether it came true in so many seconds."""
    deadline = time.monotonic() + seconds
    while not (answer := done()) and time.monotonic() < deadline:
        time.sleep(pause)
    return answer


if __name__ == "__main__":
    main()
