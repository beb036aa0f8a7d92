"""The warden of a node: a small process beside it that answers and logs the node's refused system calls.

The kernel passes calls that a node's filter does not allow to a listener (Linux kernel documentation,
``userspace-api/seccomp_filter``, user space notification). The warden holds it: it writes a line and always answers
EPERM.
"""

import contextlib
import errno
import fcntl
import os
import select
import socket
import struct
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from protocol.confinement import system_calls
from protocol.confinement.helper_process import become_helper
from protocol.confinement.landlock import Access
from protocol.confinement.privileges import User
from protocol.errors import RunFailedError

# linux/seccomp.h: struct seccomp_notif (id, pid, flags, then number, architecture, address and six arguments of the
# call) and struct seccomp_notif_resp (id, value, error, flags).
_RECEIVE, _SEND = 0xC0502100, 0xC0182101
_NOTIFICATION_BYTES, _NUMBER, _ARGUMENTS = 80, 16, 32
_BEGIN, _BOUND = b"1", b"2"
#: Most different refusals that are logged; a node with more is not simply mistaken.
_MOST_LINES = 200


@dataclass(frozen=True)
class Warden:
    """A node's side of its warden.

    Attributes:
        pid: of the warden.
        channel: the connection to it; the other end closes when the warden ends, and the node must then end.
    """

    pid: int
    channel: socket.socket

    def begin(self) -> None:
        """Log refusals from now on. Before this, a node tests its guards.

        Raises:
            RunFailedError: the warden has ended.
        """
        try:
            self.channel.send(_BEGIN)
        except OSError as error:
            raise RunFailedError("the warden of this node has ended; start the node again") from error

    def bound(self) -> None:
        """Tell the warden that the node's socket is bound: it removes the socket when the node has ended."""
        # If the warden has ended, the next start replaces the socket that is left.
        with contextlib.suppress(OSError):
            self.channel.send(_BOUND)


def start(
    log: int,
    user: User | None,
    *,
    keeps: int | None = None,
    door: Path | None = None,
) -> Warden:
    """Fork the warden, before the node opens its keys; it confines itself, and ends with the node.

    Args:
        keeps: a descriptor that stays open until the node has ended, whatever the node does: its lock.
        door: the node's socket, in a folder that is there; a confined node cannot remove it.
        log: descriptor to which its lines are appended.
        user: user that it becomes.
    """
    ours, theirs = socket.socketpair()
    node, pid = os.getpid(), os.fork()
    if pid == 0:
        try:
            ours.close()
            _guard(os.pidfd_open(node), theirs, log, user, keeps, door)
        finally:
            os._exit(1)
    theirs.close()
    return Warden(pid, ours)


def _guard(
    node: int,
    channel: socket.socket,
    log: int,
    user: User | None,
    keeps: int | None,
    door: Path | None,
) -> NoReturn:
    keep = {channel.fileno(), log, node, *(() if keeps is None else (keeps,))}
    become_helper(keep, user, {} if door is None else {door.parent: Access.REMOVE_FILE})
    bound = _serve(node, channel, log)
    if bound and door is not None:
        # Remove the socket while the lock is held, so that no later node has bound it again.
        with contextlib.suppress(OSError):
            os.unlink(door)
    os._exit(0)


def _serve(node: int, channel: socket.socket, log: int) -> bool:
    """Serve until the node has ended; return whether its socket was bound."""
    poll = select.poll()
    poll.register(node, select.POLLIN)
    poll.register(channel, select.POLLIN)
    lives = True
    listener: int | None = None
    noted: set[str] | None = None
    bound = False
    while lives:
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
                lives = False
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


def _hung_up(listener: int) -> bool:
    poll = select.poll()
    poll.register(listener, 0)
    return any(event & select.POLLHUP for _, event in poll.poll(0))
