"""The warden of a node: a small process beside it that answers and logs the node's refused system calls.

The kernel passes calls that a node's filter does not allow to a listener (Linux kernel documentation,
``userspace-api/seccomp_filter``, user space notification). The warden holds it: it writes a line and always answers
EPERM. It also passes on what the node prints, so that the node itself holds one end of a pipe and nothing else: not
the terminal, connection or file that it was started with, which it could read, cut short or open wider.
"""

import contextlib
import errno
import fcntl
import os
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from protocol.confinement import landlock, privileges, seccomp, system_calls
from protocol.confinement.allowed_calls import WARDEN
from protocol.confinement.privileges import User
from protocol.errors import RunFailedError

# linux/seccomp.h: struct seccomp_notif (id, pid, flags, then number, architecture, address and six arguments of the
# call) and struct seccomp_notif_resp (id, value, error, flags).
_RECEIVE, _SEND = 0xC0502100, 0xC0182101
_NOTIFICATION_BYTES, _NUMBER, _ARGUMENTS = 80, 16, 32
_BEGIN, _BOUND, _STREAMS = b"1", b"2", b"3"
#: Most different refusals that are logged; a node with more is not simply mistaken.
_MOST_LINES = 200
_LINE_BYTES = 4096


@dataclass(frozen=True)
class Warden:
    """A node's side of its warden.

    Attributes:
        pid: of the warden.
        channel: the connection to it; the other end closes when the warden ends, and the node must then end.
        outputs: descriptor to which a node writes what it prints, by the number of the standard stream.
    """

    pid: int
    channel: socket.socket
    outputs: Mapping[int, int]

    def begin(self) -> None:
        """Log refusals from now on. Before this, a node tests its guards.

        Raises:
            RunFailedError: the warden has ended.
        """
        self._tell(_BEGIN)

    def bound(self) -> None:
        """Tell the warden that the node's socket is bound: it removes the socket when the node has ended."""
        # If the warden has ended, the next start replaces the socket that is left.
        with contextlib.suppress(OSError):
            self.channel.send(_BOUND)

    def take_streams(self) -> None:
        """Leave this process's standard input empty, and print to the warden from now on.

        Raises:
            RunFailedError: the warden has ended; then nothing is changed.
        """
        self._tell(_STREAMS)
        with open(os.devnull, "rb") as nothing:
            os.dup2(nothing.fileno(), 0)
        sys.stdout.flush()
        sys.stderr.flush()
        for number, writing in self.outputs.items():
            os.dup2(writing, number)
        for writing in set(self.outputs.values()):
            os.close(writing)

    def _tell(self, word: bytes) -> None:
        try:
            self.channel.send(word)
        except OSError as error:
            raise RunFailedError("the warden of this node has ended; start the node again") from error


def start(
    log: int,
    user: User | None,
    *,
    keeps: int | None = None,
    door: Path | None = None,
    clean: Callable[[str], str] = str,
) -> Warden:
    """Fork the warden, before the node opens its keys; it confines itself, and ends with the node.

    Args:
        keeps: a descriptor that stays open until the node has ended, whatever the node does: its lock.
        door: the node's socket, in a folder that is there; a confined node cannot remove it.
        log: descriptor to which its lines are appended.
        user: user that it becomes.
        clean: makes a line safe for a terminal.
    """
    ours, theirs = socket.socketpair()
    streams = _streams()
    pipes = {target: os.pipe() for target in dict.fromkeys(streams.values())}
    printed = {reading: target for target, (reading, _) in pipes.items()}
    node, pid = os.getpid(), os.fork()
    if pid == 0:
        try:
            ours.close()
            _guard(os.pidfd_open(node), theirs, log, printed, user, clean, keeps, door)
        finally:
            os._exit(1)
    theirs.close()
    for reading in printed:
        os.close(reading)
    return Warden(pid, ours, {number: pipes[target][1] for number, target in streams.items()})


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


def _guard(
    node: int,
    channel: socket.socket,
    log: int,
    printed: Mapping[int, int],
    user: User | None,
    clean: Callable[[str], str],
    keeps: int | None,
    door: Path | None,
) -> NoReturn:
    # Ctrl-C and the end of a service are for the node, and the warden ends with it.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGTTOU, signal.SIGTSTP):
        signal.signal(number, signal.SIG_IGN)
    # The node's end of the channel is not trusted: the node may have been taken over.
    keep = {channel.fileno(), log, node, *printed, *printed.values(), *(() if keeps is None else (keeps,))}
    _close_all_but(keep)
    # Nothing that other processes of its user must not see is open any more, and it needs its own ``/proc``.
    privileges.let_others_look(True)
    time.tzset()
    os.chdir("/")
    privileges.give_up(user, capabilities=True)
    landlock.restrict({} if door is None else {door.parent: landlock.Access.REMOVE_FILE}, tcp=False)
    seccomp.restrict(WARDEN)
    bound = _serve(node, channel, log, printed, clean)
    if bound and door is not None:
        # Remove the socket while the lock is held, so that no later node has bound it again.
        with contextlib.suppress(OSError):
            os.unlink(door)
    os._exit(0)


def _serve(
    node: int, channel: socket.socket, log: int, printed: Mapping[int, int], clean: Callable[[str], str]
) -> bool:
    """Serve until the node has ended and all that it printed is passed on, from the keys of ``printed`` to its values;
    return whether its socket was bound."""
    poll = select.poll()
    poll.register(node, select.POLLIN)
    poll.register(channel, select.POLLIN)
    for descriptor in printed:
        poll.register(descriptor, select.POLLIN)
    open_ends = {node, *printed}
    listener: int | None = None
    noted: set[str] | None = None
    bound = False
    while open_ends:
        for descriptor, _ in poll.poll():
            if descriptor == channel.fileno():
                data, descriptors, _, _ = socket.recv_fds(channel, 1, 1)
                if descriptors:
                    listener = descriptors[0]
                    poll.register(listener, select.POLLIN)
                elif data == _BEGIN and noted is None:
                    noted = set()
                elif data == _BOUND:
                    bound = True
                elif not data:
                    poll.unregister(descriptor)
            elif descriptor == node:
                poll.unregister(descriptor)
                open_ends.discard(descriptor)
            elif descriptor in printed:
                data = os.read(descriptor, _LINE_BYTES)
                if data:
                    _pass_on(data, printed[descriptor], clean)
                else:
                    poll.unregister(descriptor)
                    open_ends.discard(descriptor)
            elif descriptor == listener and not _answer(listener, log, noted):
                poll.unregister(listener)
                os.close(listener)
                listener = None
    return bound


def _answer(listener: int, log: int, noted: set[str] | None) -> bool:
    """Answer one refused call, and log it if no similar one is logged; False if no process is left."""
    notification = bytearray(_NOTIFICATION_BYTES)
    try:
        fcntl.ioctl(listener, _RECEIVE, notification, True)
    except OSError as error:
        # EINTR, or the caller was killed meanwhile; a listener without processes ends.
        return error.errno in (errno.EINTR, errno.ENOENT) and not _hung_up(listener)
    (identity,) = struct.unpack_from("=Q", notification)
    (number,) = struct.unpack_from("=i", notification, _NUMBER)
    arguments = struct.unpack_from("=6Q", notification, _ARGUMENTS)
    if noted is not None and len(noted) < _MOST_LINES:
        line = refusal_line(number, arguments)
        if line not in noted:
            noted.add(line)
            moment = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime())
            with contextlib.suppress(OSError):
                os.write(log, f"{moment},000 WARNING {line}\n".encode())
    with contextlib.suppress(OSError):
        fcntl.ioctl(listener, _SEND, struct.pack("=QqiI", identity, 0, -errno.EPERM, 0))
    return True


#: Number of the argument that holds the kind of a call.
_KINDS = {"ioctl": 1, "fcntl": 1, "prctl": 0, "socket": 0, "clone": 0}
_START = "the kernel refused the system call "


def refusal_line(number: int, arguments: tuple[int, ...]) -> str:
    """The log line of a refused call: its name, and the argument with its kind."""
    name = system_calls.name_of(number)
    kind = f" ({arguments[_KINDS[name]] & 0xFFFFFFFF:#x})" if name in _KINDS else ""
    return f"{_START}{name}{kind}: a node needs none of the kind"


def refused_calls(log: str) -> list[str]:
    """The refused calls in a node's log, each with its kind."""
    return [line.partition(_START)[2].partition(": ")[0] for line in log.splitlines() if _START in line]


def _pass_on(data: bytes, target: int, clean: Callable[[str], str]) -> None:
    lines = data.decode("utf-8", errors="replace").split("\n")
    # Nobody may read there any more.
    with contextlib.suppress(OSError):
        os.write(target, "\n".join(map(clean, lines)).encode("utf-8", errors="replace"))


def _hung_up(listener: int) -> bool:
    poll = select.poll()
    poll.register(listener, 0)
    return any(event & select.POLLHUP for _, event in poll.poll(0))


def _close_all_but(keep: set[int]) -> None:
    for number in sorted(keep):
        os.set_inheritable(number, False)
    start = 0
    for number in [*sorted(keep), sys.maxsize]:
        os.closerange(start, min(number, 1 << 20))
        start = number + 1
