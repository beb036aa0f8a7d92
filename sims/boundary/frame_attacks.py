"""Attacks by frames that no courier of ours sends, on a real node; the control is a node that reads them without
limits.
"""

import contextlib
import socket
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from protocol.transport.frame import Frame, encode_header
from protocol.transport.local_socket import DisconnectedError, load_secret, open_handshake, receive_frame
from sims.boundary.acts.expectation import Holds, Open, protocol
from sims.boundary.attempt import Attack, Escaped, Found, Refusal
from sims.boundary.sites import Site
from sims.boundary.unprotected import UnprotectedNode, serving

# Seconds after which a control's answer is one that does not come; and for which a real node's is waited for.
SOON, PATIENCE = 1.0, 20.0


@dataclass(frozen=True)
class Reader:
    """A node that reads frames.

    Attributes:
        connect: connects to it, after its handshake if there is one.
        beside: a folder beside which a file may turn up.
        patience: for which an answer is waited for (s).
        site: the node's site.
    """

    connect: Callable[[], contextlib.AbstractContextManager[socket.socket]]
    beside: Path
    patience: float
    site: Site


#: An attack by frames; returns its outcome.
ByFrames = Callable[[Reader], Refusal | Escaped]


@dataclass(frozen=True)
class _Registered:
    name: str
    tries: str
    holds: Holds
    by: ByFrames


_FRAMES: list[_Registered] = []


def _frame(name: str, tries: str, code: str | Open) -> Callable[[ByFrames], ByFrames]:
    def register(by: ByFrames) -> ByFrames:
        holds = code if isinstance(code, Open) else protocol("frame", code)
        _FRAMES.append(_Registered(name, tries, holds, by))
        return by

    return register


def frame_attacks(site: Site, folder: Path) -> list[Attack]:
    """All of them, on the node of ``site``. ``folder``: the control's own."""
    folder.mkdir(mode=0o700)
    return [_attack(found, site, folder) for found in _FRAMES]


def _attack(found: _Registered, site: Site, folder: Path) -> Attack:
    secret = load_secret(site.node.secret)

    @contextlib.contextmanager
    def real() -> Iterator[socket.socket]:
        with connected(site.node.socket) as connection:
            open_handshake(connection, secret)
            yield connection

    def control() -> bool:
        with serving(UnprotectedNode(site.role, site.node, site.keys), folder) as path:
            return isinstance(found.by(Reader(lambda: connected(path), folder, SOON, site)), Escaped)

    def confined() -> Found:
        came = found.by(Reader(real, site.node.state, PATIENCE, site))
        # After any frame, the node must go on serving.
        return came if site.ask(Frame("status")).name == "status" else Escaped("the node is gone")

    return Attack(found.name, "messages", found.tries, found.holds, control, confined)


@contextlib.contextmanager
def connected(path: Path) -> Iterator[socket.socket]:
    """A connection to the process that listens there."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(PATIENCE)
        connection.connect(str(path))
        yield connection


def _refusal(answer: Frame) -> Refusal:
    return Refusal("frame", answer.fields.get("code", answer.name))


def _framed(header: bytes) -> bytes:
    return struct.pack(">I", len(header)) + header


def _held(reader: Reader, data: bytes) -> Refusal | Escaped:
    """Succeeds if the node goes on waiting for the announced bytes."""
    with reader.connect() as connection:
        connection.sendall(data)
        try:
            return _refusal(receive_frame(connection, seconds=reader.patience))
        except DisconnectedError:
            return Escaped("the node waits for all that was announced, or broke down")


@_frame("a part named like a path", "a command whose part is called ../escaped", "malformed")
def named_like_a_path(reader: Reader) -> Refusal | Escaped:
    escaped = reader.beside.parent / "escaped"
    with reader.connect() as connection:
        connection.sendall(_framed(b'{"numbers":{},"parts":{"../escaped":4},"word":"status","words":{}}') + b"data")
        answer = receive_frame(connection, seconds=PATIENCE)
    try:
        return Escaped() if escaped.exists() else _refusal(answer)
    finally:
        escaped.unlink(missing_ok=True)


@_frame("a header of four gigabytes", "a frame announces more than anybody holds", "too_large")
def huge_header(reader: Reader) -> Refusal | Escaped:
    return _held(reader, b"\xff" * 4)


@_frame("a part of a terabyte", "a header announces a part that would never end", "too_large")
def huge_part(reader: Reader) -> Refusal | Escaped:
    return _held(reader, _framed(b'{"numbers":{},"parts":{"blob":%d},"word":"status","words":{}}' % 2**40))


@_frame(
    "parts of more than half a gigabyte",
    "each is within the limit, and all of them together are not",
    "too_large",
)
def many_large_parts(reader: Reader) -> Refusal | Escaped:
    sizes = b",".join(b'"p%d":%d' % (number, 300 << 20) for number in range(2))
    return _held(reader, _framed(b'{"numbers":{},"parts":{%s},"word":"status","words":{}}' % sizes))


@_frame("a part of less than nothing", "a header announces a part of minus one byte", "malformed")
def negative_part(reader: Reader) -> Refusal | Escaped:
    # The control takes it as a part without an end.
    return _held(reader, _framed(b'{"numbers":{},"parts":{"a":-1,"b":9},"word":"status","words":{}}'))


@_frame("a hundred parts", "a header announces more parts than any message has", "malformed")
def many_parts(reader: Reader) -> Refusal | Escaped:
    parts = b",".join(b'"p%03d":1' % number for number in range(100))
    return _held(reader, _framed(b'{"numbers":{},"parts":{%s},"word":"status","words":{}}' % parts))


@_frame("a header that nests without an end", "JSON thirty thousand levels deep", "malformed")
def deep_header(reader: Reader) -> Refusal | Escaped:
    return _held(reader, _framed(b"[" * 30_000))


@_frame("a header that says two things", "the command stands twice in a header", "malformed")
def said_twice(reader: Reader) -> Refusal | Escaped:
    path = str(reader.site.private).encode()
    with reader.connect() as connection:
        connection.sendall(
            _framed(b'{"numbers":{},"parts":{},"word":"status","word":"read","words":{"path":"%s"}}' % path)
        )
        answer = receive_frame(connection, seconds=PATIENCE)
    reached = reader.site.marker in answer.parts.get("content", b"")
    return Escaped() if reached else _refusal(answer)


@_frame("two commands at once", "a second command behind the first, past what was counted", "closed")
def two_at_once(reader: Reader) -> Refusal | Escaped:
    with reader.connect() as connection:
        connection.sendall(2 * _framed(encode_header(Frame("status"))))
        receive_frame(connection, seconds=PATIENCE)
        try:
            receive_frame(connection, seconds=reader.patience)
        except DisconnectedError:
            return Refusal("frame", "closed")
        return Escaped("the second was answered too")


@_frame(
    "megabytes with a command that takes nothing",
    "a status is asked for, with a part of 64 MiB behind it",
    Open(
        "whatever its command, a frame may hold 512 MiB, which are read before the command is looked at; a node reads "
        "one frame at a time, so that this is the most, and its service can be given a limit (MemoryMax)"
    ),
)
def large_part(reader: Reader) -> Refusal | Escaped:
    size = 64 << 20
    with reader.connect() as connection:
        connection.sendall(_framed(b'{"numbers":{},"parts":{"blob":%d},"word":"status","words":{}}' % size))
        connection.sendall(bytes(size))
        answer = receive_frame(connection, seconds=PATIENCE)
    return Escaped("it was read") if answer.name == "status" else _refusal(answer)
