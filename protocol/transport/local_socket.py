"""The one door of a node process: frames over a Unix socket, after a handshake with a shared secret."""

import contextlib
import errno
import hashlib
import hmac
import os
import secrets
import socket
import stat
import struct
import time
from pathlib import Path

from protocol.errors import InputError, LearngeneError, RunFailedError, TooLargeError
from protocol.files.atomic import write_atomically
from protocol.files.private_file import read_private
from protocol.files.private_folders import open_to_group, socket_folder
from protocol.transport.frame import MAX_HEADER_BYTES, Frame, decode_header, encode_header
from protocol.visible_text import visible_name

#: Longest path of a Unix socket on Linux, in bytes.
MAX_PATH_BYTES = 107
SECRET_BYTES = 32

_GREETING = b"learngene socket 1\n"
_NONCE_BYTES = 32
_MAX_SECRET_FILE_BYTES = 1024


class DisconnectedError(LearngeneError):
    """The other side closed the connection, or was silent for longer than allowed."""


class HandshakeError(LearngeneError):
    """The other side does not know the secret."""


def send_frame(connection: socket.socket, frame: Frame, *, seconds: float = 60.0) -> None:
    """Send one frame within ``seconds``.

    Raises:
        DisconnectedError: the other side went away or does not read.
        MalformedError, TooLargeError: the frame itself is outside the format.
    """
    header = encode_header(frame)
    deadline = time.monotonic() + seconds
    _send(connection, struct.pack(">I", len(header)) + header, deadline)
    for name in sorted(frame.parts):
        _send(connection, frame.parts[name], deadline)


def receive_frame(connection: socket.socket, *, seconds: float = 60.0, wait: float | None = None) -> Frame:
    """Receive one frame: its first byte within ``wait`` (default: ``seconds``), the rest within ``seconds`` after it.

    Raises:
        DisconnectedError: the other side went away or is too slow.
        MalformedError, TooLargeError: what arrived is outside the format; the caller must then close the connection.
    """
    first = _receive(connection, 1, time.monotonic() + (seconds if wait is None else wait))
    deadline = time.monotonic() + seconds
    (size,) = struct.unpack(">I", first + _receive(connection, 3, deadline))
    if size > MAX_HEADER_BYTES:
        raise TooLargeError(f"a frame announces a header of {size} bytes, the limit is {MAX_HEADER_BYTES}")
    frame, sizes = decode_header(_receive(connection, size, deadline))
    parts = {name: _receive(connection, length, deadline) for name, length in sizes.items()}
    return Frame(frame.name, frame.numbers, frame.fields, parts)


def answer_handshake(connection: socket.socket, secret: bytes, *, seconds: float = 10.0) -> None:
    """The node's half: a fresh nonce out, then the proof that the other side holds the secret, then our own proof.

    Raises:
        HandshakeError: the proof is wrong. DisconnectedError: no proof came in time.
    """
    deadline = time.monotonic() + seconds
    nonce = secrets.token_bytes(_NONCE_BYTES)
    _send(connection, _GREETING + nonce, deadline)
    answer = _receive(connection, _NONCE_BYTES + hashlib.sha256().digest_size, deadline)
    transcript = nonce + answer[:_NONCE_BYTES]
    if not hmac.compare_digest(answer[_NONCE_BYTES:], _proof(secret, b"courier", transcript)):
        raise HandshakeError("the courier does not know this node's socket secret; give both the same secret file")
    _send(connection, _proof(secret, b"node", transcript), deadline)


def open_handshake(connection: socket.socket, secret: bytes, *, seconds: float = 10.0) -> None:
    """The courier's half of :func:`answer_handshake`; after it both sides know that the other holds the secret."""
    deadline = time.monotonic() + seconds
    greeting = _receive(connection, len(_GREETING) + _NONCE_BYTES, deadline)
    if not greeting.startswith(_GREETING):
        raise HandshakeError("what listens on the socket is not a node process of this version")
    own = secrets.token_bytes(_NONCE_BYTES)
    transcript = greeting[len(_GREETING) :] + own
    _send(connection, own + _proof(secret, b"courier", transcript), deadline)
    if not hmac.compare_digest(_receive(connection, 32, deadline), _proof(secret, b"node", transcript)):
        raise HandshakeError("the node does not know the courier's socket secret; give both the same secret file")


def ask(path: Path, secret: bytes, command: Frame, *, patience: float = 600.0) -> Frame:
    """Connect to a node, send one command and return its answer, which may take ``patience`` seconds."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(10.0)
        try:
            connection.connect(str(path))
        except OSError as error:
            raise DisconnectedError(f"no node process answers at {path}: {error.strerror or error}") from error
        # Connections are served one at a time, so the greeting may wait for another courier's command.
        open_handshake(connection, secret, seconds=patience)
        send_frame(connection, command)
        return receive_frame(connection, wait=patience)


def listen(path: Path, *, group: int | None = None) -> socket.socket:
    """Bind a socket (mode 0600) in a folder that only this user may enter, replacing a dead one.

    Args:
        group: number of a group that may enter the folder (0750) and connect (0660) too.

    Raises:
        InputError: the path is too long, the folder is open to others, or something else lies there.
        RunFailedError: another process listens there already.
    """
    check_place(path)
    socket_folder(path.parent, group)
    if path.is_symlink() or path.exists():
        _remove_dead_socket(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        listener.bind(str(path))
        if group is not None:
            open_to_group(path, group, 0o660)
    except InputError:
        listener.close()
        raise
    except OSError as error:
        listener.close()
        raise InputError(f"cannot make the socket {path}: {error.strerror or error}") from error
    finally:
        os.umask(before)
    listener.listen(16)
    return listener


def check_place(path: Path) -> None:
    """Check whether a socket may be bound at a path; nothing is changed.

    Raises:
        InputError: the path is too long, or something else lies there.
    """
    size = len(os.fsencode(path))
    if size > MAX_PATH_BYTES:
        raise InputError(f"the socket's path has {size} bytes, the system allows {MAX_PATH_BYTES}; shorten it: {path}")
    # A fault in the path above is reported when the folder is made.
    with contextlib.suppress(OSError):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise InputError(f"{path} exists and is not a socket; choose another path for the socket")


def make_secret(path: Path) -> bytes:
    """Write a fresh secret (hexadecimal, mode 0600) and return its bytes."""
    secret = secrets.token_bytes(SECRET_BYTES)
    write_atomically(path, secret.hex().encode("ascii") + b"\n", mode=0o600)
    return secret


def load_secret(path: Path, *, node: int | None = None, group: int | None = None) -> bytes:
    """Read a secret of ``SECRET_BYTES`` bytes in hexadecimal. The file must belong to this user, to root or to the
    node's user.

    Args:
        path: its file.
        node: number of the node's user.
        group: number of the group of the node's courier, which may read it too.

    Raises:
        InputError: there is none, it is not one, it is another user's, or others may read or write it.
    """
    owners = (0,) if node is None else (0, node)
    data = read_private(path, "the socket secret", max_bytes=_MAX_SECRET_FILE_BYTES, owners=owners, group=group)
    try:
        secret = bytes.fromhex(data.decode("ascii"))
    except ValueError:
        secret = b""
    if len(secret) != SECRET_BYTES:
        raise InputError(f"{visible_name(path)} is not a socket secret of {SECRET_BYTES} bytes in hexadecimal")
    return secret


def load_couriers_secret(path: Path, socket_path: Path) -> bytes:
    """Read the secret of a node as its courier, which learns the node's user and group from the socket's folder: only
    the node can make that folder.

    Raises:
        InputError: as :func:`load_secret`.
    """
    try:
        folder = os.stat(socket_path.parent)
    except OSError:
        return load_secret(path)
    return load_secret(path, node=folder.st_uid, group=folder.st_gid)


def _proof(secret: bytes, side: bytes, transcript: bytes) -> bytes:
    return hmac.digest(secret, _GREETING + side + b"\n" + transcript, hashlib.sha256)


def _send(connection: socket.socket, data: bytes, deadline: float) -> None:
    view = memoryview(data)
    while view:
        _limit(connection, deadline)
        try:
            sent = connection.send(view[: 1 << 20])
        except OSError as error:
            raise DisconnectedError(f"the other side of the socket went away: {error.strerror or error}") from error
        view = view[sent:]


def _receive(connection: socket.socket, size: int, deadline: float) -> bytes:
    # Memory grows with the bytes that arrive, never with a size that a header announces.
    received = bytearray()
    while len(received) < size:
        _limit(connection, deadline)
        try:
            piece = connection.recv(min(size - len(received), 1 << 20))
        except OSError as error:
            raise DisconnectedError(f"the other side of the socket went away: {error.strerror or error}") from error
        if not piece:
            raise DisconnectedError("the other side closed the socket in the middle of a frame")
        received += piece
    return bytes(received)


def _limit(connection: socket.socket, deadline: float) -> None:
    left = deadline - time.monotonic()
    if left <= 0:
        raise DisconnectedError("the other side of the socket is too slow")
    connection.settimeout(left)


def _remove_dead_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except OSError as error:
            if error.errno not in (errno.ECONNREFUSED, errno.ENOENT):
                raise RunFailedError(f"something listens on {path} and does not answer; end it first") from error
            path.unlink(missing_ok=True)
            return
    raise RunFailedError(f"another node process listens on {path}; end it first, or give this one its own socket")
