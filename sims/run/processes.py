"""Operating-system processes of a simulation: node processes on a lifeline, and the ending of whole process trees."""

import contextlib
import os
import re
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import psutil

from protocol.commands.terminal import EXIT_USAGE
from protocol.confinement import isolated_start
from protocol.errors import InputError, RunFailedError
from protocol.files import state_files
from protocol.files.atomic import make_folder
from protocol.node.launcher import LOG
from protocol.trust.role import Role
from protocol.visible_text import visible_line

#: Most characters of a reason from a log.
_REASON_CHARACTERS = 400
#: Most bytes of a log that are read.
_LOG_BYTES = 256 * 1024
#: An error or a refusal in a node's log, as ``protocol.node.launcher`` and ``protocol.node.server`` write it.
_LOG_RECORD = re.compile(r"[-0-9]{10} [:0-9]{8},\d{3} (?:ERROR |WARNING (?=refused ))(.*)")


@dataclass(frozen=True)
class NodeProcess:
    """A node process that this process started, with its party, its log and its socket.

    Attributes:
        log_start: position in bytes at which this process's log begins; the lines before it are of an earlier one.
    """

    party: str
    log: Path
    socket: Path
    process: "subprocess.Popen[bytes]"
    log_start: int = 0

    @property
    def last_error(self) -> str:
        """The last error or refusal in the log of this process, in one line; empty if there is none."""
        lines = _end_of(self.log, self.log_start)
        found, traceback = "", False
        for line in lines:
            if match := _LOG_RECORD.match(line):
                found, traceback = match[1], False
            elif line.startswith("Traceback "):
                traceback = True
            elif traceback and line[:1].strip():
                found, traceback = line.strip(), False  # the line that names the exception
        return visible_line(found, length=_REASON_CHARACTERS)


def peak_memory(pid: int | str = "self") -> int | None:
    """The most bytes that a process has had in memory (proc(5), VmHWM; psutil does not tell it); None if the system
    does not say."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    return None


class NodeProcesses:
    """The node processes of a run. They end when this process does, however it ends: then their lifeline closes.

    Used as a context manager: leaving it ends them.
    """

    def __init__(self) -> None:
        # Neither end is inherited by any other child: only this process keeps the writing end open.
        self._reader, self._writer = os.pipe()
        self.nodes: list[NodeProcess] = []

    def start(
        self,
        role: Role,
        party: str,
        configuration: Path,
        *,
        socket: Path,
        state: Path,
        module: str | None = None,
        options: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        stdin: int = subprocess.DEVNULL,
        inherited: Sequence[int] = (),
    ) -> NodeProcess:
        """Start ``<role>_node start``, isolated; its output goes to ``node.log`` in its state folder (0700).

        Args:
            module: another program that takes the same options.
            options: further ones.
            environment: variables beside those that an isolated process is told.
            stdin: descriptor of its standard input.
            inherited: descriptors that stay open in it.
        """
        make_folder(state)
        log = state / LOG
        name, given = (f"{role}_node", ["start"]) if module is None else (module, [])
        arguments = [*given, "--config", str(configuration), *options, "--lifeline", str(self._reader)]
        # An earlier process of the node may have put anything there.
        output = state_files.open_to_write(state, LOG, "the log", os.O_WRONLY | os.O_APPEND)
        try:
            log_start = os.fstat(output).st_size
            process = subprocess.Popen(
                isolated_start.command(name, arguments),
                env={**isolated_start.environment(os.environ), **(environment or {})},
                stdin=stdin,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=isolated_start.WORKING_FOLDER,
                pass_fds=(self._reader, *inherited),
                start_new_session=True,  # Ctrl-C is for the command, which then ends its nodes in order
            )
        finally:
            os.close(output)
        node = NodeProcess(party, log, socket, process, log_start)
        self.nodes.append(node)
        return node

    def peak_memory(self) -> dict[str, int]:
        """The most bytes that each node process has had in memory, by party, where the system says it."""
        peaks = {node.party: peak_memory(node.process.pid) for node in self.nodes}
        return {party: peak for party, peak in peaks.items() if peak is not None}

    def check_alive(self) -> None:
        """Raise an error if a node process has ended.

        Raises:
            RunFailedError: names the party, the process, how it ended and its log. InputError: it says that it was
                given wrong input.
        """
        for node in self.nodes:
            code = node.process.poll()
            if code is not None:
                # What a program says last before it gives up is the reason; a killed one has nothing to say.
                ending = f"{_ending(code)}{_last_line(node.log) if code > 0 else ''}"
                # Wrong input: a second run would end in the same way.
                raise (InputError if code == EXIT_USAGE else RunFailedError)(
                    f"the node process of the {node.party} (pid {node.process.pid}) {ending}; its log is {node.log}"
                )

    def wait_until_listening(self, seconds: float = 120.0) -> None:
        """Return when every node has bound its socket.

        Raises:
            RunFailedError: one ended, or takes longer than ``seconds``.
        """
        deadline = time.monotonic() + seconds
        for node in self.nodes:
            while not node.socket.exists():
                self.check_alive()
                if time.monotonic() > deadline:
                    raise RunFailedError(f"the node process of the {node.party} does not start; its log is {node.log}")
                time.sleep(0.1)

    def end(self, grace: float = 5.0) -> None:
        """Close the lifeline, then kill processes that still run after ``grace`` seconds. May be called again."""
        for descriptor in (self._writer, self._reader):
            with contextlib.suppress(OSError):
                os.close(descriptor)
        self._writer = self._reader = -1
        deadline = time.monotonic() + grace
        for node in self.nodes:
            try:
                node.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                node.process.kill()
                node.process.wait()
            node.socket.unlink(missing_ok=True)

    def __enter__(self) -> "NodeProcesses":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()


def descendants(pid: int) -> list[psutil.Process]:
    """Children, grandchildren and so on of a process, also those in other sessions; empty if it has ended."""
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def alive(process: psutil.Process) -> bool:
    """Whether exactly this process still runs, and no later one of its number (a zombie does not)."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def end_all(processes: Iterable[psutil.Process], grace: float = 3.0) -> None:
    """Wait ``grace`` seconds for processes that are about to end, then kill those that remain and wait for that."""
    remaining = _wait_for(list(processes), grace)
    for process in remaining:
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            process.kill()
    _wait_for(remaining, 5.0)


def _wait_for(processes: Sequence[psutil.Process], seconds: float) -> Sequence[psutil.Process]:
    """The processes that are still alive after the given seconds."""
    # Not psutil.wait_procs, which takes the exit code of a child away from the code that started it.
    deadline = time.monotonic() + seconds
    while (processes := [process for process in processes if alive(process)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    return processes


def _ending(code: int) -> str:
    return f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"


def _last_line(log: Path) -> str:
    """The last line of a log in brackets, if there is one: it usually says why."""
    lines = [line for line in _end_of(log) if line.strip()]
    return f" ({visible_line(lines[-1].strip(), length=200)})" if lines else ""


def _end_of(log: Path, start: int = 0) -> list[str]:
    """The last lines of a log, which the node writes: it may be of any size, and no file at all."""
    try:
        opened = state_files.open_to_read(log.parent, log.name, "the log")
        if opened is None:
            return []
        with opened as file:
            file.seek(max(start, file.seek(0, os.SEEK_END) - _LOG_BYTES))
            return file.read(_LOG_BYTES).decode("utf-8", errors="replace").split("\n")
    except (OSError, InputError):
        return []
