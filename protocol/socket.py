"""The one door of a node process: framed requests over a Unix socket, after a handshake with a shared secret.

A frame is a four-byte big-endian length, a header of that many bytes (canonical JSON) and then the parts, one after
the other, in the order of their names. The header holds ``numbers``, ``parts`` (name: size), ``word`` and ``words``.
"""

import contextlib
import errno
import hashlib
import hmac
import json
import os
import re
import secrets
import socket
import stat
import struct
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from protocol.encoding.visible_text import visible_name
from protocol.errors import InputError, LearngeneError, MalformedError, RunFailedError, TooLargeError
from protocol.private_file import read_private
from protocol.storage import make_folder, write_atomically

#: Longest path of a Unix socket on Linux, in bytes.
MAX_PATH_BYTES = 107
MAX_HEADER_BYTES = 64 * 1024
#: All parts of a frame together.
MAX_PARTS_BYTES = 512 * 1024 * 1024
MAX_ENTRIES = 64
MAX_WORD_CHARACTERS = 1024
SECRET_BYTES = 32

_GREETING = b"learngene socket 1\n"
_NONCE_BYTES = 32
_NAME = re.compile(r"[a-z][a-z0-9_-]{0,63}")
_INTEGER_LIMIT = 2**63
_MAX_SECRET_FILE_BYTES = 1024


class DisconnectedError(LearngeneError):
    """The other side closed the connection, or was silent for longer than allowed."""


class HandshakeError(LearngeneError):
    """The other side does not know the secret."""


@dataclass(frozen=True)
class Frame:
    """One wish to a node, or its answer.

    Attributes:
        word: what is wished or answered, such as ``status`` or ``refused``.
        numbers: named 64-bit integers.
        words: named short ASCII texts.
        parts: named bytes, at most ``MAX_PARTS_BYTES`` together.
    """

    word: str
    numbers: Mapping[str, int] = field(default_factory=dict)
    words: Mapping[str, str] = field(default_factory=dict)
    parts: Mapping[str, bytes] = field(default_factory=dict)

    def part(self, name: str) -> bytes:
        """The part of that name.

        Raises:
            MalformedError: there is none.
        """
        if name not in self.parts:
            raise MalformedError(f"the frame {self.word!r} comes without its part {name!r}")
        return self.parts[name]


def encode_header(frame: Frame) -> bytes:
    """The header of a frame.

    Raises:
        MalformedError: a name, word or number is outside the format.
        TooLargeError: the header or the parts are over their limits.
    """
    sizes = {name: len(frame.parts[name]) for name in sorted(frame.parts)}
    content = {"numbers": dict(frame.numbers), "parts": sizes, "word": frame.word, "words": dict(frame.words)}
    _check(content)
    header = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode("ascii")
    if len(header) > MAX_HEADER_BYTES:
        raise TooLargeError(f"a frame's header of {len(header)} bytes is over the limit of {MAX_HEADER_BYTES}")
    return header


def decode_header(header: bytes) -> tuple[Frame, dict[str, int]]:
    """A frame without its parts, and the size of every part in the order in which they follow.

    Raises:
        MalformedError: not a header in its canonical form.
        TooLargeError: it announces more than the limits allow.
    """
    if len(header) > MAX_HEADER_BYTES:
        raise TooLargeError(f"a frame's header of {len(header)} bytes is over the limit of {MAX_HEADER_BYTES}")
    try:
        content = json.loads(header.decode("ascii"))
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise MalformedError("a frame's header is not JSON in ASCII") from error
    _check(content)
    # One canonical form: no repeated key, no other order or spacing.
    if json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode("ascii") != header:
        raise MalformedError("a frame's header is not in its canonical form")
    return Frame(content["word"], content["numbers"], content["words"]), content["parts"]


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
        MalformedError, TooLargeError: what arrived is outside the format; the connection is to be closed then.
    """
    first = _receive(connection, 1, time.monotonic() + (seconds if wait is None else wait))
    deadline = time.monotonic() + seconds
    (size,) = struct.unpack(">I", first + _receive(connection, 3, deadline))
    if size > MAX_HEADER_BYTES:
        raise TooLargeError(f"a frame announces a header of {size} bytes, the limit is {MAX_HEADER_BYTES}")
    frame, sizes = decode_header(_receive(connection, size, deadline))
    parts = {name: _receive(connection, length, deadline) for name, length in sizes.items()}
    return Frame(frame.word, frame.numbers, frame.words, parts)


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


def ask(path: Path, secret: bytes, wish: Frame, *, patience: float = 600.0) -> Frame:
    """Connect to a node, bring one wish and return its answer, for which ``patience`` seconds are allowed."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(10.0)
        try:
            connection.connect(str(path))
        except OSError as error:
            raise DisconnectedError(f"no node process answers at {path}: {error.strerror or error}") from error
        # Connections are served one at a time, so the greeting may wait for another courier's wish.
        open_handshake(connection, secret, seconds=patience)
        send_frame(connection, wish)
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
    door_folder(path.parent, group)
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
    """Whether a socket may be bound at a path; nothing is changed.

    Raises:
        InputError: the path is too long, or something else lies there.
    """
    size = len(os.fsencode(path))
    if size > MAX_PATH_BYTES:
        raise InputError(f"the socket's path has {size} bytes, the system allows {MAX_PATH_BYTES}; shorten it: {path}")
    # What is wrong with the way there is said where the folder is made.
    with contextlib.suppress(OSError):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise InputError(f"{path} exists and is not a socket; choose another path for the socket")


def door_folder(folder: Path, group: int | None) -> None:
    """Make the folder of a socket where there is none: this user's (0700), or for a group to enter as well (0750).

    Raises:
        InputError: it is a link, somebody else's, or open to others.
    """
    if group is None:
        private_folder(folder)
    else:
        _group_folder(folder, group)


def private_folder(folder: Path) -> Path:
    """Make a folder (0700) where there is none, and make sure that it is this user's and closed to all others.

    Raises:
        InputError: it is a link, somebody else's, or open to others.
    """
    try:
        make_folder(folder)
        status = folder.lstat()
    except OSError as error:
        raise InputError(f"cannot make the folder {folder}: {error.strerror or error}") from error
    _check_own(folder, status)
    if status.st_mode & 0o077:
        raise InputError(f"{folder} is open to other users; close it with: chmod 700 {folder}")
    return folder


def open_to_group(path: Path, group: int, mode: int) -> None:
    """Give a file of this user's to a group, with this mode.

    Raises:
        InputError: the file is somebody else's, or this user is not in that group.
    """
    try:
        os.chown(path, -1, group)
        os.chmod(path, mode)
    except OSError as error:
        raise InputError(
            f"cannot give {path} to the group {group}: {error.strerror}; it must belong to the node's user, and that"
            " user to the group: usermod --append --groups GROUP USER"
        ) from error


def make_secret(path: Path) -> bytes:
    """Write a fresh secret (hexadecimal, mode 0600) and return its bytes."""
    secret = secrets.token_bytes(SECRET_BYTES)
    write_atomically(path, secret.hex().encode("ascii") + b"\n", mode=0o600)
    return secret


def load_secret(path: Path, *, node: int | None = None, group: int | None = None) -> bytes:
    """Read a secret of ``SECRET_BYTES`` bytes in hexadecimal. It belongs to this user, to root or to the node's user.

    Args:
        path: its file.
        node: number of the node's user.
        group: number of the group of the node's courier, which may read it too.

    Raises:
        InputError: there is none, it is not one, it is somebody else's, or others may read or write it.
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
    """Read the secret of a node as its courier, who knows of the node's user and its group what the folder of the
    socket says: the node makes it, and nobody else can.

    Raises:
        InputError: as :func:`load_secret`.
    """
    try:
        folder = os.stat(socket_path.parent)
    except OSError:
        return load_secret(path)
    return load_secret(path, node=folder.st_uid, group=folder.st_gid)


def simulation_folder(flower_run: int) -> Path:
    """Where the sockets of a simulated run lie: computed by both sides alike, never sent by the relay."""
    longest = f"learngene-{os.getuid()}/{flower_run}/{'9' * 6}.sock"
    for base in (tempfile.gettempdir(), "/tmp"):
        if len(os.fsencode(f"{base}/{longest}")) <= MAX_PATH_BYTES:
            return Path(base) / f"learngene-{os.getuid()}" / str(flower_run)
    raise InputError(f"the temporary folder {tempfile.gettempdir()} has too long a path for sockets; set TMPDIR=/tmp")


def simulation_paths(flower_run: int, partition: int) -> tuple[Path, Path]:
    """Socket and secret of one partition of a simulated run."""
    folder = simulation_folder(flower_run)
    return folder / f"{partition}.sock", folder / f"{partition}.secret"


def is_simulated(path: Path) -> bool:
    """Whether a socket lies where :func:`simulation_paths` puts those of a run, of whatever user."""
    return re.fullmatch(r".*/learngene-[0-9]+/[0-9]+/[0-9]+\.sock", os.fspath(path), re.DOTALL) is not None


def _check(content: object) -> None:
    if not isinstance(content, dict) or set(content) != {"numbers", "parts", "word", "words"}:
        raise MalformedError("a frame's header holds word, words, numbers and parts, and nothing else")
    word, words, numbers, parts = content["word"], content["words"], content["numbers"], content["parts"]
    if not isinstance(word, str) or not _NAME.fullmatch(word):
        raise MalformedError("a frame's word is outside the format")
    for table in (words, numbers, parts):
        if not isinstance(table, dict) or len(table) > MAX_ENTRIES or not all(map(_NAME.fullmatch, table)):
            raise MalformedError(f"a frame's names are outside the format, or more than {MAX_ENTRIES}")
    for value in words.values():
        if not isinstance(value, str) or len(value) > MAX_WORD_CHARACTERS or not value.isascii():
            raise MalformedError(f"a frame's words are ASCII of at most {MAX_WORD_CHARACTERS} characters")
    for value in (*numbers.values(), *parts.values()):
        if type(value) is not int or not -_INTEGER_LIMIT <= value < _INTEGER_LIMIT:
            raise MalformedError("a frame's numbers are 64-bit integers")
    if any(size < 0 for size in parts.values()):
        raise MalformedError("a part cannot have fewer than 0 bytes")
    if sum(parts.values()) > MAX_PARTS_BYTES:
        raise TooLargeError(f"a frame's parts have {sum(parts.values())} bytes, the limit is {MAX_PARTS_BYTES}")


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
    # Memory grows with what arrives, never with what a header only announces.
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


def _group_folder(folder: Path, group: int) -> None:
    try:
        make_folder(folder)
        status = folder.lstat()
    except OSError as error:
        raise InputError(f"cannot make the folder {folder}: {error.strerror or error}") from error
    _check_own(folder, status)
    open_to_group(folder, group, 0o750)


def _check_own(folder: Path, status: os.stat_result) -> None:
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
        raise InputError(f"{folder} must be a folder of your own, not a link or somebody else's")


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
