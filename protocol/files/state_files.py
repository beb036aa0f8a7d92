"""The one gate to the files of a state folder: files that a node that was taken over left there are neither followed
nor run.

A state folder belongs to its node, which may have put anything into it before it ended: links, pipes, folders, endless
files. So the node at its next start, and every command beside it, opens such files only here. No link is
followed, neither as the file nor as a folder on the way (open(2): O_NOFOLLOW, relative to a descriptor of the folder
above); a pipe or a socket makes no reader wait; a second name (a hard link) or another owner is refused; at most as
much is read as the caller allows. The state folder's own path is the operator's and is trusted.
"""

import contextlib
import errno
import fcntl
import os
import shutil
import stat
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from protocol.errors import InputError, RunFailedError, StorageFailedError

_CLOSED = os.O_CLOEXEC | os.O_NOFOLLOW
_FOLDER = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_CLOEXEC
_WHY = {
    errno.ELOOP: "a link stands there",
    errno.ENOTDIR: "a file or a link stands where its folder should",
    errno.EISDIR: "a folder stands there",
    errno.ENXIO: "a pipe or a socket stands there",
}


def read(state: Path, name: str, what: str, *, max_bytes: int) -> bytes | None:
    """The content of a file of a state folder; None if there is none.

    Args:
        state: the state folder, or any folder whose own path is trusted.
        name: the file's path from there, with ``/`` between folders; it must be fixed in our code, never read from a
            file.
        what: the kind of file, for messages: ``the labels``.
        max_bytes: size of the largest file of this kind.

    Raises:
        InputError: the file is not a regular file of the node's, or is larger.
    """
    file = open_to_read(state, name, what)
    if file is None:
        return None
    with file:
        try:
            data = file.read(max_bytes + 1) if os.fstat(file.fileno()).st_size <= max_bytes else None
        except OSError as error:
            raise _cannot("read", state, name, what, error) from None
    if data is None or len(data) > max_bytes:
        raise InputError(f"{what} {state / name} has more than {max_bytes} bytes, which no node writes; move it away")
    return data


def open_to_read(state: Path, name: str, what: str) -> BinaryIO | None:
    """The open file, for reading piece by piece. Arguments and errors as :func:`read`."""
    try:
        return os.fdopen(_open(state, name, what, os.O_RDONLY), "rb")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _cannot("read", state, name, what, error) from None


def open_to_write(state: Path, name: str, what: str, flags: int) -> int:
    """A descriptor of a file of a state folder, made (0600) if there is none; ``flags``: O_WRONLY or O_RDWR, and
    O_APPEND.

    Raises:
        InputError: the file is not a regular file of the node's.
    """
    try:
        return _open(state, name, what, flags | os.O_CREAT)
    except OSError as error:
        raise _cannot("write", state, name, what, error) from None


def look(state: Path, name: str, what: str, *, max_bytes: int) -> os.stat_result | None:
    """As :func:`read`, but nothing is opened: for what another library opens. Closing a descriptor of its own of the
    same file would take that library's locks away (fcntl(2)).

    Raises:
        InputError: the file is not a regular file of the node's, or is larger.
    """
    try:
        with _folder_of(state, name) as (folder, last, owner):
            status = os.stat(last, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _cannot("read", state, name, what, error) from None
    _check(state, name, what, status, owner)
    if status.st_size > max_bytes:
        raise InputError(f"{what} {state / name} has more than {max_bytes} bytes, which no node writes; move it away")
    return status


def subfolder(state: Path, name: str, what: str, *, make: bool = True) -> Path:
    """The path of a folder in a state folder, which is one and no link; made (0700) if there is none.

    Args:
        make: False: leave it if there is none.

    Raises:
        InputError: something else stands there, or it cannot be made.
    """
    try:
        folder = os.open(state, _FOLDER)
        try:
            for part in name.split("/"):
                if make:
                    with contextlib.suppress(FileExistsError):
                        os.mkdir(part, 0o700, dir_fd=folder)
                inner = os.open(part, _FOLDER | _CLOSED, dir_fd=folder)
                os.close(folder)
                folder = inner
        finally:
            os.close(folder)
    except FileNotFoundError:
        if make:
            raise InputError(f"there is no folder {state}") from None
    except OSError as error:
        raise _cannot("use", state, name, what, error) from None
    return state / name


def entries(state: Path, name: str, what: str, *, most: int = 4096) -> list[str]:
    """The names in a folder of a state folder, sorted; none if it is missing.

    Raises:
        InputError: something else stands there, or it holds more than ``most``.
    """
    folder = subfolder(state, name, what, make=False)
    found: list[str] = []
    try:
        with os.scandir(folder) as listed:
            for entry in listed:
                found.append(entry.name)
                if len(found) > most:
                    raise InputError(f"{what} {folder} holds more than {most} entries; move it away")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise _cannot("read", state, name, what, error) from None
    return sorted(found)


def remove(path: Path) -> None:
    """Remove anything at a path in a state folder: a file, a link (and not what it names), a folder.

    Raises:
        StorageFailedError: it cannot be removed, or is deeper than any folder of ours.
    """
    try:
        if stat.S_ISDIR(path.lstat().st_mode):
            shutil.rmtree(path)
        else:
            path.unlink()
    except FileNotFoundError:
        return
    except (OSError, RecursionError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is too deep"
        raise StorageFailedError(f"cannot remove {path}: {why}; remove it by hand") from None


def lock_within(descriptor: int, seconds: float) -> None:
    """Take the exclusive lock of an open file (fcntl(2), F_OFD_SETLK), however its holders behave. It is of the open
    file and not of the process, so that threads wait for each other as well; the file must be open for writing.

    Raises:
        StorageFailedError: another process still holds it after these seconds.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
        except (BlockingIOError, PermissionError):
            if time.monotonic() > deadline:
                raise StorageFailedError("another process holds it and does not let go; end that one first") from None
            time.sleep(0.01)
        else:
            return


def hold(state: Path, *, seconds: float = 0.0) -> int:
    """Hold a state folder as its node does while it runs, so that none starts meanwhile.

    The lock is the folder's own (flock(2)) and not that of a file in it: a node that was taken over could remove such a
    file, and so let another node start beside it.

    Args:
        seconds: to wait for who holds it.

    Returns:
        A descriptor of the folder; the lock goes when all that have it open have ended or closed it.

    Raises:
        RunFailedError: a node runs. InputError: there is no such folder, or its file system cannot lock one.
    """
    try:
        descriptor = os.open(state, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise InputError(f"cannot use the state folder {state}: {error.strerror or error}; check who owns it") from None
    deadline = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
        except BlockingIOError:
            if time.monotonic() >= deadline:
                os.close(descriptor)
                raise RunFailedError(f"another node process works in {state}; end it first") from None
        except OSError as error:
            os.close(descriptor)
            raise InputError(
                f"the file system of {state} cannot lock a folder: {error.strerror}; use one on a local disk"
            ) from None
        time.sleep(0.05)


#: Bytes that a node writes at its start.
_ROOM = 256 << 10


def check_room(state: Path) -> None:
    """Check whether the disk of a state folder has room for a node's start; no file remains.

    Raises:
        StorageFailedError: it has not.
    """
    try:
        descriptor = os.open(state, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:  # no nameless files here: the node's first file will show it
            return
        raise _full(state, error) from error
    try:
        os.posix_fallocate(descriptor, 0, _ROOM)
    except OSError as error:
        raise _full(state, error) from error
    finally:
        os.close(descriptor)


def _full(state: Path, error: OSError) -> StorageFailedError:
    return StorageFailedError(f"cannot write in {state}: {error.strerror or error}; make room on its disk")


@contextlib.contextmanager
def held(state: Path, *, seconds: float = 0.0) -> Iterator[None]:
    """Hold a state folder while something is done in it; arguments and errors as :func:`hold`."""
    descriptor = hold(state, seconds=seconds)
    try:
        yield
    finally:
        os.close(descriptor)


def _open(state: Path, name: str, what: str, flags: int) -> int:
    with _folder_of(state, name) as (folder, last, owner):
        descriptor = os.open(last, flags | _CLOSED | os.O_NONBLOCK | os.O_NOCTTY, 0o600, dir_fd=folder)
    try:
        _check(state, name, what, os.fstat(descriptor), owner)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


@contextlib.contextmanager
def _folder_of(state: Path, name: str) -> Iterator[tuple[int, str, int]]:
    """A descriptor of the folder that holds a file, the file's own name, and whose the state folder is."""
    *between, last = name.split("/")
    folder = os.open(state, _FOLDER)
    try:
        owner = os.fstat(folder).st_uid
        for part in between:
            inner = os.open(part, _FOLDER | _CLOSED, dir_fd=folder)
            os.close(folder)
            folder = inner
        yield folder, last, owner
    finally:
        os.close(folder)


def _check(state: Path, name: str, what: str, status: os.stat_result, owner: int) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = "a symbolic link" if stat.S_ISLNK(status.st_mode) else "not a file"
        raise InputError(f"{what} {state / name} is {kind}; move away what stands there")
    if status.st_uid not in (owner, os.geteuid()):
        raise InputError(f"{what} {state / name} belongs to the user {status.st_uid}, not to the node; move it away")
    if status.st_nlink > 1:
        raise InputError(f"{what} {state / name} has a second name elsewhere (a hard link); put a copy in its place")


def _cannot(verb: str, state: Path, name: str, what: str, error: OSError) -> InputError:
    why = _WHY.get(error.errno or 0)
    advice = "check who owns it" if why is None else "move away what stands there"
    return InputError(f"cannot {verb} {what} {state / name}: {why or error.strerror or error}; {advice}")
