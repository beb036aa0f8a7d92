"""Attacks at a node's door: by clients without the secret, by silent clients, and by false nodes."""

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path

from protocol.errors import LearngeneError
from protocol.transport.frame import Frame, encode_header
from protocol.transport.local_socket import (
    answer_handshake,
    ask,
    load_secret,
    open_handshake,
    receive_frame,
    send_frame,
)
from sims.boundary.acts.expectation import protocol
from sims.boundary.attempt import Attack, Escaped, Failed, Found, Refusal
from sims.boundary.frame_attacks import PATIENCE, SOON, connected
from sims.boundary.sites import Site
from sims.boundary.unprotected import UnprotectedNode, serving

#: The line in the node's own log when it refuses a proof (``protocol.transport.local_socket.HandshakeError``).
_LOGGED = {"HandshakeError": "the courier does not know this node's socket secret"}
# Deadline in seconds of a reader that is tested by itself; shorter than the node's own.
_DEADLINE = 0.3
_COMMAND = Frame("inherit", parts={"blob": b"a learngene"})


def door_attacks(site: Site, folder: Path) -> list[Attack]:
    """All of them, on the node of ``site``. ``folder``: the control's own."""
    folder.mkdir(mode=0o700)
    return [*_handshake_attacks(site, folder), *_slow_attacks(), _false_node_attack(folder)]


def _spoken(path: Path, proof: bytes | None) -> bool:
    """Whether a node answers a client that shows this proof, or none, after its greeting."""
    header = encode_header(Frame("status"))
    frame = struct.pack(">I", len(header)) + header
    with connected(path) as connection:
        connection.settimeout(SOON)
        received = b""
        # Closed or silent: then what was received counts.
        with contextlib.suppress(OSError):
            if proof is not None:
                received = connection.recv(1000)
            connection.sendall((proof or b"") + frame.ljust(100))
            while piece := connection.recv(1000):
                received += piece
    return b'"word":"status"' in received


def _overheard(path: Path, secret: bytes) -> bytes:
    """What an honest courier sends in its handshake."""
    sent = bytearray()

    class Ear(socket.socket):
        def send(self, data: bytes | memoryview, *_: int) -> int:  # type: ignore[override]
            sent.extend(data)
            return super().send(data)

    with Ear(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(PATIENCE)
        connection.connect(str(path))
        open_handshake(connection, secret)
        proof = bytes(sent)
        send_frame(connection, Frame("status"))
        receive_frame(connection, seconds=PATIENCE)
    return proof


def _handshake_attacks(site: Site, folder: Path) -> list[Attack]:
    """Commands from a client that does not know the socket's secret; the controls are a door without a handshake, and
    one whose greeting is always the same."""
    path, secret = site.node.socket, load_secret(site.node.secret)

    def unprotected(*, handshake: bool) -> bool:
        with serving(UnprotectedNode(site.role, site.node, site.keys), folder, handshake=handshake) as naive:
            return _spoken(naive, _overheard(naive, bytes(32)) if handshake else None)

    def confined(proof: Callable[[], bytes | None]) -> Found:
        overheard, log = proof(), site.node.state / "node.log"
        before = log.stat().st_size
        if _spoken(path, overheard):
            return Escaped("the node answered the command")
        # Connections are served one after the other: an answer here means that the log of the one before is written.
        site.ask(Frame("status"))
        with log.open("rb") as file:
            file.seek(before)
            lines = file.read().decode()
        refused = [name for name, line in _LOGGED.items() if line in lines]
        return Refusal("handshake", refused[0]) if refused else Failed(f"the node's log says: {lines.strip()[-300:]!r}")

    expected = protocol("handshake", "HandshakeError")
    return [
        Attack(
            "no handshake",
            "messages",
            "a command without the proof that its sender knows the socket's secret",
            expected,
            lambda: unprotected(handshake=False),
            lambda: confined(lambda: None),
        ),
        Attack(
            "a handshake again",
            "messages",
            "the proof of an earlier courier, which was overheard",
            expected,
            lambda: unprotected(handshake=True),
            lambda: confined(lambda: _overheard(path, secret)),
        ),
    ]


# --- Who never comes to an end --------------------------------------------------------------------------------------


def _held(read: Callable[[socket.socket], object], begin: bytes, *, slowly: bool) -> str:
    """What ends a reader within four times its deadline, while a byte comes now and then or never: the class of its
    error; empty if it is still reading."""
    here, there = socket.socketpair()
    ended: list[str] = []

    def reading() -> None:
        try:
            read(there)
        except (OSError, LearngeneError) as error:
            ended.append(type(error).__name__)

    with here, there:
        threading.Thread(target=reading, daemon=True).start()
        here.sendall(begin)
        deadline = time.monotonic() + 4 * _DEADLINE
        while time.monotonic() < deadline and not ended:
            with contextlib.suppress(OSError):
                if slowly:
                    here.sendall(b"x")
            time.sleep(_DEADLINE / 5)
        return ended[0] if ended else ""


def _patient(connection: socket.socket) -> None:
    """A deadline for each piece, and none for the whole: what a plain timeout of a socket is."""
    connection.settimeout(_DEADLINE)
    while connection.recv(1):
        pass


def _endless(connection: socket.socket) -> None:
    """No deadline at all."""
    while connection.recv(1):
        pass


def _slow_attacks() -> list[Attack]:
    """Over a pair of sockets, with a short deadline in place of the node's own."""

    def frame(connection: socket.socket) -> None:
        receive_frame(connection, seconds=_DEADLINE)

    def handshake(connection: socket.socket) -> None:
        answer_handshake(connection, b"s" * 32, seconds=_DEADLINE)

    begun = struct.pack(">I", 1000)
    described: tuple[tuple[str, str, Callable[[socket.socket], None], bytes, bool], ...] = (
        ("half a frame, slowly", "a frame comes a byte at a time, so that the node waits for ever", frame, begun, True),
        ("half a frame, and then nothing", "the node is left waiting in the middle of a frame", frame, begun, False),
        ("a handshake, slowly", "the proof comes a byte at a time", handshake, b"x", True),
        ("a connection that never speaks", "the node is left waiting for the proof", handshake, b"", False),
    )
    return [_slow_attack(*one) for one in described]


def _slow_attack(name: str, tries: str, real: Callable[[socket.socket], None], begin: bytes, slowly: bool) -> Attack:
    def confined() -> Found:
        ended = _held(real, begin, slowly=slowly)
        return Refusal("receive", ended) if ended else Escaped("it is still reading")

    return Attack(
        name,
        "messages",
        tries,
        protocol("receive", "DisconnectedError"),
        lambda: not _held(_patient if slowly else _endless, begin, slowly=slowly),
        confined,
    )


# --- Who pretends to be a node --------------------------------------------------------------------------------------


def _false_node_attack(folder: Path) -> Attack:
    """Another process listens where the courier expects its node."""

    def believing(path: Path) -> None:
        with connected(path) as connection:
            send_frame(connection, _COMMAND)

    def confined() -> Found:
        received, error = _overhears(folder, lambda path: ask(path, b"s" * 32, _COMMAND, patience=5.0))
        return Escaped() if received else Refusal("ask", error) if error else Failed("the courier said nothing")

    return Attack(
        "a false node",
        "messages",
        "somebody without the secret listens at the node's socket, to be brought what is the node's",
        protocol("ask", "HandshakeError"),
        lambda: _overhears(folder, believing)[0],
        confined,
    )


def _overhears(folder: Path, bring: Callable[[Path], object]) -> tuple[bool, str]:
    """Whether a false node received the command; and the class of the error that the client got."""
    path = folder / "false.sock"
    path.unlink(missing_ok=True)
    received, error = bytearray(), ""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen(1)
        listener.settimeout(PATIENCE)

        def pretend() -> None:
            with contextlib.suppress(OSError):
                connection, _ = listener.accept()
                with connection:
                    connection.settimeout(SOON)
                    # Who brings a command at once may be gone already.
                    with contextlib.suppress(OSError):
                        connection.sendall(b"learngene socket 1\n" + bytes(32))
                        received.extend(connection.recv(64))
                        connection.sendall(bytes(32))
                    while piece := connection.recv(1000):
                        received.extend(piece)

        thread = threading.Thread(target=pretend, daemon=True)
        thread.start()
        try:
            bring(path)
        except (LearngeneError, OSError) as caught:
            error = type(caught).__name__
        thread.join(PATIENCE)
    return b"a learngene" in received, error
