"""A node without this project's protections: it obeys every command, believes every message, and reports errors in
full. The controls of attacks on the real node use it.
"""

import contextlib
import hmac
import json
import os
import secrets
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

from protocol.encoding.calendar import unix_seconds
from protocol.errors import LearngeneError
from protocol.keys.party_keys import NodeKeys
from protocol.messages.builders import make_request
from protocol.node.configuration import NodeTable
from protocol.transport.frame import Frame
from protocol.transport.local_socket import listen, send_frame
from protocol.trust.role import Role
from protocol.trust.trust_file import read_trust

_PATIENCE = 30.0


class UnprotectedNode:
    """Answers every command, whatever its role.

    Attributes:
        inherited: learngenes that it has taken.
        receipts: receipts that it has counted.
        deliveries: commands that came.
    """

    def __init__(self, role: Role, node: NodeTable, keys: NodeKeys) -> None:
        self._role, self._node, self._keys = role, node, keys
        self._model = b""
        self.inherited = self.receipts = self.deliveries = 0

    def handle(self, command: Frame) -> Frame:
        """The requested answer, or the text of the error."""
        self.deliveries += 1
        try:
            return self._fulfil(command)
        except (LearngeneError, OSError, LookupError) as error:
            return Frame("refused", fields={"code": str(error)[:1000]})

    def _fulfil(self, command: Frame) -> Frame:
        match command.name:
            case "request":
                trust = read_trust(self._node.trust, root=self._node.root)
                assert self._keys.encryption is not None
                data = make_request(
                    run_id=self._node.run_id,
                    audience=trust.only("collective").keyid,
                    form="condensed",
                    key=self._keys.signing,
                    encryption=self._keys.encryption,
                    now=unix_seconds(),
                    nonce=secrets.token_bytes(16),
                )
                return Frame("request", parts={"request": data})
            case "evolve":
                # A Fisher diagonal of few images reveals them.
                self._model = self._private()
                return Frame("accepted")
            case "publish":
                return Frame("bundle", parts={"blob": self._model or self._private()})
            case "inherit":
                self.inherited += 1
                return Frame("receipt", parts={"receipt": b"taken %d" % self.inherited})
            case "receipt":
                self.receipts += 1
                return Frame("accepted")
            case "adapt":
                raise LookupError(f"no learngene for the images {self._private().hex()}")
            case "read":
                return Frame("content", parts={"content": Path(command.fields["path"]).read_bytes()})
        return Frame("status", fields={"role": self._role, "party": self._node.party, "state": "idle", "job": ""})

    def _private(self) -> bytes:
        return (self._node.data / "private.bin").read_bytes()


@contextlib.contextmanager
def serving(node: UnprotectedNode, folder: Path, *, handshake: bool = False) -> Iterator[Path]:
    """The node behind a Unix socket of its own, read without limits or deadlines; every part that comes is kept in
    ``folder`` under the name that it has.

    Args:
        handshake: ask for a proof first, with a nonce that is always the same; its secret is 32 zero bytes.
    """
    path = folder / "unprotected.sock"
    listener = listen(path)

    def serve() -> None:
        # Ends when the listener is shut down below.
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                threading.Thread(target=_serve_one, args=(connection, node, folder, handshake), daemon=True).start()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield path
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        path.unlink(missing_ok=True)
        thread.join(10)


def _serve_one(connection: socket.socket, node: UnprotectedNode, folder: Path, handshake: bool) -> None:
    connection.settimeout(_PATIENCE)
    with connection, contextlib.suppress(OSError, ValueError, struct.error, RecursionError):
        if handshake:
            connection.sendall(b"learngene socket 1\n" + bytes(32))
            answer = _receive(connection, 64)
            text = b"learngene socket 1\ncourier\n" + bytes(32) + answer[:32]
            if not hmac.compare_digest(answer[32:], hmac.digest(bytes(32), text, "sha256")):
                return
            text = b"learngene socket 1\nnode\n" + bytes(32) + answer[:32]
            connection.sendall(hmac.digest(bytes(32), text, "sha256"))
        while True:
            header = json.loads(_receive(connection, *struct.unpack(">I", _receive(connection, 4))))
            parts = {name: _receive(connection, size) for name, size in header["parts"].items()}
            for name, data in parts.items():
                (folder / os.fsdecode(name)).write_bytes(data)
            answer_frame = node.handle(Frame(header["word"], header["numbers"], header["words"], parts))
            send_frame(connection, answer_frame)


def _receive(connection: socket.socket, size: int) -> bytes:
    received = bytearray()
    while len(received) < size:
        piece = connection.recv(min(size - len(received), 1 << 16))
        if not piece:
            raise OSError("the other side is gone")
        received += piece
    return bytes(received)
