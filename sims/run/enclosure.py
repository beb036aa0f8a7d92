"""The enclosure of a run: a small process that keeps everything that the run starts in a network of its own, and ends
it.

``python -I -m sims.run.enclosure LIFELINE READY ENDED RECORD COMMAND...`` leaves the machine's network, becomes the
parent of every orphan below it (prctl(2), PR_SET_CHILD_SUBREAPER), starts the command and waits. When the lifeline
closes, which happens however the run's own command ends, or when the command has ended, it kills every process below
it, also one that left its parents and its session. A run can be killed in this way at any moment without harm.

It is two processes, a guard and its child the keeper, which does the work. If the keeper is killed, the processes below
it become the guard's, and the guard ends them; if the guard is killed, the kernel tells the keeper. It protects against
accidents: a program of the same user that stops one of the two and kills the other leaves processes.
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
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, NoReturn

import psutil

from protocol.confinement import isolated_start, namespaces, privileges
from protocol.errors import LearngeneError, RunFailedError
from sims.run.environment import REACH
from sims.run.reach import reach_of_run

_SET_CHILD_SUBREAPER = 36
# Loaded here, because nothing may be loaded between fork and exec.
_LIBC = ctypes.CDLL(None)
#: Seconds for killed processes to end; a process that waits for a disk takes long.
_KILL_SECONDS = 10.0
_POLL_SECONDS = 0.2
#: What the run's own command writes to the lifeline before it closes it; a killed process writes nothing.
_FAREWELL = b"."
#: Reason in the record of a run whose own command was killed.
KILLED = "the command that started the run was killed"


class Enclosure:
    """A command in an enclosure. ``close`` ends it with every process below it.

    Attributes:
        refused: why it has no network of its own; empty if it has one.
        said: the one line that the command wrote to the descriptor ``READY``.
        end: how the command ended, in a few words for behind its name; empty if ``close`` ended it.
    """

    def __init__(
        self,
        command: Callable[[int], Sequence[str]],
        *,
        environment: Mapping[str, str],
        folder: Path,
        output: BinaryIO,
        record: Path | None = None,
    ) -> None:
        """Start the command, by the number of its descriptor ``READY``, in ``folder``.

        Args:
            record: run folder in whose record the enclosure writes why the run ended, if this process is killed.

        Raises:
            InputError: an isolated process cannot find the installed project.
        """
        reader, self._lifeline = os.pipe()
        self._ready, ready = os.pipe()
        self._ended, ended = os.pipe()
        given = [str(reader), str(ready), str(ended), str(record or "")]
        try:
            self._process = subprocess.Popen(
                isolated_start.command("sims.run.enclosure", [*given, *command(ready)]),
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=folder,
                pass_fds=(reader, ready, ended),
                start_new_session=True,  # Ctrl-C is for the run's own command, which then closes this one
            )
        finally:
            for descriptor in (reader, ready, ended):
                os.close(descriptor)
        self.refused = ""
        self.said = ""
        self.end = ""

    @property
    def ended(self) -> bool:
        """Whether the command has ended, and with it the enclosure."""
        return self._process.poll() is not None

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait_until_ready(self, seconds: float) -> bool:
        """Return when the command has written its line; false if it ended without one, or takes longer."""
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
        _end_with_parent()

    def close(self) -> None:
        """End the command and every process below it. May be called again.

        Raises:
            RunFailedError: one of them cannot be ended.
        """
        if self._lifeline < 0:
            return
        with contextlib.suppress(BrokenPipeError):  # it has ended
            os.write(self._lifeline, _FAREWELL)
        os.close(self._lifeline)
        os.close(self._ready)
        self._lifeline = -1
        # Both of its processes hold the other end: the remaining one reports the result.
        told, deadline = b"", time.monotonic() + _KILL_SECONDS + 5.0
        while (remaining := deadline - time.monotonic()) > 0 and select.select([self._ended], [], [], remaining)[0]:
            if not (part := os.read(self._ended, 4096)):
                break
            told += part
        os.close(self._ended)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_KILL_SECONDS)
        all_ended, self.end = json.loads(told) if told.endswith(b"\n") else (False, "")
        if not all_ended:
            raise RunFailedError("a process of the run cannot be ended; look for it with: ps -ef")


def _end_with_parent(by: signal.Signals = signal.SIGKILL) -> None:
    if sys.platform == "linux":
        privileges.end_with_parent(by)


# ----------------------------------------------------------------------------------------------------------------------
# The program


def main() -> None:
    """Run the program that the module describes."""
    lifeline, ready, ended = map(int, sys.argv[1:4])
    record, command = sys.argv[4], sys.argv[5:]
    refused = _leave_network()
    os.write(ready, f"{json.dumps(refused)}\n".encode())
    environment = {**os.environ, REACH: reach_of_run(refused)}
    _adopt_orphans()
    guard, keeper = os.getpid(), os.fork()
    if keeper == 0:
        _keep(guard, lifeline, ready, lambda how: _finish(lifeline, ended, record, how), command, environment)
    os.close(ready)
    signal.signal(signal.SIGTERM, lambda number, frame: _pass_on(keeper))
    code = _wait_for(keeper)
    # It has ended, and another process may have its number by now.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if code != 0:
        # It did not finish its work. The processes below it are now below this process.
        _finish(lifeline, ended, record, f"lost the process that kept it: it {_how(code)}")


def _pass_on(keeper: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(keeper, signal.SIGTERM)


def _keep(
    guard: int,
    lifeline: int,
    ready: int,
    finish: Callable[[str], None],
    command: Sequence[str],
    environment: Mapping[str, str],
) -> NoReturn:
    """The keeper: it starts the command, waits for its end or for a reason to end it, and ends everything."""
    code = 1
    try:
        told: list[int] = []
        signal.signal(signal.SIGTERM, lambda number, frame: told.append(number))
        _end_with_parent(signal.SIGTERM)
        _adopt_orphans()
        child = subprocess.Popen(command, env=environment, pass_fds=(ready,), preexec_fn=_end_with_parent)
        os.close(ready)
        end, closed = None, False
        while end is None and not closed:
            if told or os.getppid() != guard:
                finish("was ended from outside")
                break
            closed = bool(select.select([lifeline], [], [], _POLL_SECONDS)[0])
            end = _end_of(child.pid)
        else:
            finish("" if end is None else _how(end))
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _finish(lifeline: int, ended: int, record: str, how: str) -> None:
    """End all processes below this one, and report the result."""
    all_ended = end_children()
    with contextlib.suppress(BrokenPipeError):
        os.write(ended, f"{json.dumps([all_ended, how])}\n".encode())
    os.close(ended)
    # Readable and empty: the run's own command has gone without a farewell, so no other process will say what happened.
    if record and select.select([lifeline], [], [], 0)[0] and os.read(lifeline, 1) == b"":
        from sims.run.run_folder import OpenRun  # takes most of a second, and is seldom needed

        with contextlib.suppress(LearngeneError):
            OpenRun.end_abandoned(Path(record), KILLED)


def end_children(seconds: float = _KILL_SECONDS) -> bool:
    """Kill all processes below this one, which is the parent of every orphan there. Returns whether none is left.

    A process that forks and ends again and again is caught in time: each of its children becomes a child of this
    process.

    Args:
        seconds: after which it gives up.
    """
    deadline = time.monotonic() + seconds
    while not _none_left() and time.monotonic() < deadline:
        for pid in _children():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
    return _none_left()


def _leave_network() -> str:
    before = os.readlink("/proc/self/ns/user") if sys.platform == "linux" else ""
    refused = namespaces.enter_network(loopback=True)
    if not refused and os.readlink("/proc/self/ns/user") != before:
        privileges.drop_capabilities()
    return refused


def _adopt_orphans() -> None:
    if sys.platform == "linux":
        _LIBC.prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _children() -> Iterable[int]:
    """Children of this process, which has one thread; ended ones too."""
    own = os.getpid()
    try:
        # Not psutil, which looks at every process of the machine: a process that forks quickly would escape.
        return [int(pid) for pid in Path(f"/proc/{own}/task/{own}/children").read_text("ascii").split()]
    except OSError:  # a kernel without this file
        return [child.pid for child in psutil.Process().children()]


def _end_of(pid: int) -> int | None:
    """Take the exit codes of all children that have ended; return that of this number, if it is among them."""
    found = None
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0] != 0:
            if ended[0] == pid:
                found = os.waitstatus_to_exitcode(ended[1])
    return found


def _wait_for(pid: int) -> int:
    """Exit code of this child, once it has ended."""
    while True:
        ended, status = os.waitpid(-1, 0)
        if ended == pid:
            return os.waitstatus_to_exitcode(status)


def _how(code: int) -> str:
    return f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"


def _none_left() -> bool:
    try:
        while os.waitpid(-1, os.WNOHANG)[0] != 0:
            pass
    except ChildProcessError:
        return True
    return False


if __name__ == "__main__":
    main()
