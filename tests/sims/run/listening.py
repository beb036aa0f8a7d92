"""What listens: every socket of some processes that somebody else could reach, by process, with its network."""

import contextlib
import os
import sys
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

from sims.run.processes import descendants

_PROC = Path("/proc")
_LISTEN = "0A"
_ACCEPTS_CONNECTIONS = 0x10000


@dataclass(frozen=True)
class Listener:
    """A socket that others can reach.

    Attributes:
        pid: of one process that has it open.
        network: the network namespace that it is in.
        kind: ``tcp``, ``udp``, ``raw``, ``packet``, ``unix``.
        address: an IP address, a path, or ``@name`` in the abstract namespace.
        port: 0 where there is none.
    """

    pid: int
    network: str
    kind: str
    address: str
    port: int = 0

    @property
    def on_loopback(self) -> bool:
        return self.kind in ("tcp", "udp") and ip_address(self.address).is_loopback


def network_of(pid: int | str) -> str:
    return os.readlink(_PROC / str(pid) / "ns" / "net")


def listeners(pids: Iterable[int]) -> set[Listener]:
    """Every listener of these processes; those that have ended meanwhile are left out."""
    holders: dict[str, int] = {}
    members: dict[str, int] = {}
    for pid in pids:
        with contextlib.suppress(OSError):
            members[network_of(pid)] = pid
            for descriptor in (_PROC / str(pid) / "fd").iterdir():
                with contextlib.suppress(OSError):
                    target = os.readlink(descriptor)
                    if target.startswith("socket:["):
                        holders[target[8:-1]] = pid
    found: set[Listener] = set()
    # A process may have left the network that its socket is in.
    for network, pid in members.items():
        with contextlib.suppress(OSError):
            for inode, kind, address, port in (*_internet(pid), *_packet(pid), *_unix(pid)):
                if inode in holders:
                    found.add(Listener(holders[inode], network, kind, address, port))
    return found


class Listening:
    """Looks again and again, in a thread, at what listens of all that this process has started: a context manager.

    Attributes:
        found: every listener that was there at some moment, and the command of its process as it was seen last: Ray's
            give themselves a title some time after they begin to listen.
    """

    def __init__(self) -> None:
        self.found: dict[Listener, str] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> "Listening":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._ended.wait(0.3):
            for listener in listeners(process.pid for process in descendants(os.getpid())):
                with contextlib.suppress(OSError):
                    command = (_PROC / str(listener.pid) / "cmdline").read_bytes().replace(b"\0", b" ")
                    if command:  # not of a process that is just ending
                        self.found[listener] = command.decode("utf-8", errors="replace")


def _internet(pid: int) -> Iterable[tuple[str, str, str, int]]:
    for name in ("tcp", "tcp6", "udp", "udp6", "udplite", "udplite6", "raw", "raw6"):
        for fields in _lines(pid, name):
            address, _, port = fields[1].partition(":")
            # Without a connection, whoever reaches it may send to it.
            if not name.startswith("tcp") or fields[3] == _LISTEN:
                yield fields[9], name.removesuffix("6"), str(_address(address)), int(port, 16)


def _packet(pid: int) -> Iterable[tuple[str, str, str, int]]:
    return ((fields[8], "packet", "", 0) for fields in _lines(pid, "packet"))


def _unix(pid: int) -> Iterable[tuple[str, str, str, int]]:
    for fields in _lines(pid, "unix"):
        datagram = int(fields[4], 16) == 2
        if len(fields) > 7 and (int(fields[3], 16) & _ACCEPTS_CONNECTIONS or datagram):
            yield fields[6], "unix", " ".join(fields[7:]), 0


def _lines(pid: int, name: str) -> list[list[str]]:
    try:
        return [line.split() for line in (_PROC / str(pid) / "net" / name).read_text("utf-8").splitlines()[1:]]
    except FileNotFoundError:  # a kernel without this family
        return []


def _address(text: str) -> IPv4Address | IPv6Address:
    """Of the kernel's notation: words of four bytes in this machine's order. Mapped IPv4 is told as such."""
    words = (int(text[start : start + 8], 16).to_bytes(4, byteorder=_ORDER) for start in range(0, len(text), 8))
    address = ip_address(b"".join(words))
    return address.ipv4_mapped or address if isinstance(address, IPv6Address) else address


_ORDER = sys.byteorder
