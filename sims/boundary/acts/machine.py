"""Facts that a process can learn about the machine: its network, its mounts, its name."""

import array
import fcntl
import os
import socket
import struct

from .act import Aims, Seen, act, read, step
from .expectation import Open, files, system_calls
from .network import some_socket
from .seen import gets

_SIOCGIFCONF, _SIOCGIFHWADDR = 0x8912, 0x8927
_OPEN = files("open")


@act(
    "find the other node's socket",
    "/proc/self/net/unix, which names every Unix socket",
    gets(lambda stage: str(stage.victim.node.socket).encode()),
    _OPEN,
    _OPEN,
)
def list_unix_sockets(aims: Aims) -> bytes:
    return read("/proc/self/net/unix")


@act(
    "list who is connected to whom",
    "/proc/self/net/tcp",
    gets(lambda stage: f":{int(stage.listeners.addresses['tcp']):04X} ".encode()),
    _OPEN,
    _OPEN,
)
def list_connections(aims: Aims) -> bytes:
    return read("/proc/self/net/tcp")


@act("list the machine's networks", "/proc/self/net/dev", gets(lambda stage: b"lo:"), _OPEN, _OPEN)
def list_interfaces(aims: Aims) -> bytes:
    return read("/proc/self/net/dev")


@act("list the machine's routes", "/proc/self/net/route", gets(lambda stage: b"Iface"), _OPEN)
def list_routes(aims: Aims) -> bytes:
    return read("/proc/self/net/route")


@act(
    "ask for the machine's addresses",
    "SIOCGIFCONF on its own Unix socket",
    gets(lambda stage: socket.inet_aton("127.0.0.1")),
    system_calls("ioctl SIOCGIFCONF"),
)
def ask_addresses(aims: Aims) -> bytes:
    buffer = array.array("B", bytes(4096))
    address, size = buffer.buffer_info()
    with some_socket() as one, step("ioctl SIOCGIFCONF"):
        fcntl.ioctl(one, _SIOCGIFCONF, bytearray(struct.pack("=iiQ", size, 0, address)))
    return buffer.tobytes()


@act(
    "ask for a network card's number",
    "SIOCGIFHWADDR on its own Unix socket",
    Seen(evidence=lambda stage, evidence: len(evidence) == 8),
    system_calls("ioctl SIOCGIFHWADDR"),
)
def ask_card(aims: Aims) -> bytes:
    name = aims["interface"].encode()
    with some_socket() as one, step("ioctl SIOCGIFHWADDR"):
        return fcntl.ioctl(one, _SIOCGIFHWADDR, name.ljust(16, b"\0") + bytes(24))[16:24]


@act(
    "read a network card's number",
    "its file in /sys/class/net",
    Seen(evidence=lambda stage, evidence: evidence.count(b":") == 5),
    _OPEN,
    _OPEN,
)
def read_card(aims: Aims) -> bytes:
    return read(f"/sys/class/net/{aims['interface']}/address")


@act(
    "count what the machine's network brings",
    "rx_bytes of a card, which anybody who can send to the machine moves",
    Seen(evidence=lambda stage, evidence: evidence.strip().isdigit()),
    _OPEN,
    _OPEN,
)
def read_counter(aims: Aims) -> bytes:
    return read(f"/sys/class/net/{aims['interface']}/statistics/rx_bytes")


@act("list the machine's mounts", "/proc/self/mountinfo", gets(lambda stage: b" / "), _OPEN, _OPEN)
def list_mounts(aims: Aims) -> bytes:
    return read("/proc/self/mountinfo")


@act(
    "learn the machine's name",
    "uname",
    gets(lambda stage: os.uname().nodename.encode()),
    Open("uname needs no file, and tells the machine's name; give the machine one that says nothing"),
)
def ask_name(aims: Aims) -> bytes:
    with step("uname"):
        return os.uname().nodename.encode()
