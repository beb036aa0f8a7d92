"""Files that a user names: read within a limit, written for their owner alone, and never over anything."""

import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from protocol.errors import InputError, RefusedError, StorageFailedError, TooLargeError
from protocol.files import atomic
from protocol.visible_text import visible_name


def expanded(path: Path | str) -> Path:
    """A path with its ``~`` or ``~name`` replaced by the home folder that is meant.

    Raises:
        InputError: nothing says where that is: neither the variable HOME nor an entry in passwd(5).
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise InputError(
            f"nothing says which folder {visible_name(Path(path).parts[0])} is, for {visible_name(path)}; set the "
            "variable HOME, or give a path without it"
        ) from None


def open_binary(path: Path | str) -> BinaryIO:
    """Open a path for reading; a pipe with that name does not hold the program up. The caller must check its kind.

    Raises:
        OSError: it cannot be opened.
    """
    return os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC), "rb")


@contextmanager
def opened(path: Path | str, what: str) -> Iterator[BinaryIO]:
    """A regular file, open for reading.

    Args:
        what: the kind of file, for messages: ``the bundle file``.

    Raises:
        InputError: there is no such file, it is a pipe, a folder or a device, or it cannot be read.
    """
    try:
        with open_binary(path) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise InputError(f"{visible_name(path)} is not a file")
            yield file
    except OSError as error:
        raise InputError(f"cannot read {what} {visible_name(path)}: {error.strerror}") from None


def read_start(path: Path, what: str, *, max_bytes: int) -> bytes:
    """The first bytes of a file, no more than ``max_bytes``, whatever its size says. Raises as ``opened``."""
    with opened(path, what) as file:
        return file.read(max_bytes)


def read_limited(path: Path, what: str, *, max_bytes: int) -> bytes:
    """The content of a file, of which little more than ``max_bytes`` are read, whatever its size says.

    Raises:
        InputError: as ``opened``.
        TooLargeError: it holds more.
    """
    data = read_start(path, what, max_bytes=max_bytes + 1)
    if len(data) > max_bytes:
        raise TooLargeError(f"it has more than {max_bytes} bytes, the limit of {what}; give the right file")
    return data


def read_given(path: Path | str, what: str, *, max_bytes: int) -> bytes:
    """The content of a file that a user names; of one that is too large nothing is read.

    Raises:
        InputError: as ``opened``; it is too large, or changes while it is read.
    """
    with opened(path, what) as file:
        size = os.fstat(file.fileno()).st_size
        if size > max_bytes:
            raise InputError(
                f"{visible_name(path)} has {size} bytes, at most {max_bytes} are read of {what}; make it smaller"
            )
        data = file.read(size + 1)
    if len(data) != size:
        raise InputError(f"{visible_name(path)} changes while it is read; wait until it is whole")
    return data


def check_free(path: Path) -> None:
    """Check whether a new file may be written there; call it before any work.

    Raises:
        InputError: the path exists, or its folder does not; no file can have this name, or be written there.
    """
    try:
        path.lstat()
        raise _taken(path)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        raise InputError(f"cannot write {visible_name(path)}: {error.strerror}; choose another path") from None
    folder = path.absolute().parent
    if not os.path.isdir(folder):
        raise InputError(f"there is no folder {visible_name(folder)}")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"cannot write in the folder {visible_name(folder)}; choose another, or ask who owns it")


def check_outside(path: Path, folders: Iterable[Path], what: str) -> None:
    """Refuse to write into a folder that is read as a whole: what is written there would be read the next time.

    Args:
        what: what the folder is, for messages: ``the folder of pictures``.

    Raises:
        InputError: it lies in one.
    """
    place = Path(os.path.realpath(path.absolute().parent))
    for folder in folders:
        if place.is_relative_to(os.path.realpath(folder)):
            raise InputError(f"{visible_name(path)} lies in {what} {visible_name(folder)}; choose another place")


def write_new(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Write a file that, by default, only its owner reads; all of it or nothing.

    Raises:
        InputError: the path exists, or its folder does not.
        StorageFailedError: it could not be stored durably.
    """
    check_free(path)
    try:
        atomic.write_new(path, data, mode=mode)
    except FileExistsError:
        # Another process was quicker.
        raise _taken(path) from None


def _taken(path: Path) -> InputError:
    return InputError(f"{visible_name(path)} exists already and is not overwritten; choose another name")


@contextmanager
def named_refusals(what: Path | str) -> Iterator[None]:
    """Name in a refusal the file that was refused, and the refusal's code."""
    try:
        yield
    except StorageFailedError:
        # The reader's own disk is at fault, not the file.
        raise
    except RefusedError as error:
        name = visible_name(what) if isinstance(what, Path) else what
        raise type(error)(f"{name} is refused ({error.code}): {error}") from None
