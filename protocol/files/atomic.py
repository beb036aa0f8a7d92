"""Saving to disk so that a crash leaves either the old content or the new, never half of it."""

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from protocol.errors import StorageFailedError
from protocol.files import state_files


def write_atomically(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Replace a file: write beside it, flush, sync, rename, sync the folder. The folder of ``path`` must exist.

    Raises:
        StorageFailedError: the bytes could not be stored durably; the file at ``path`` is unchanged.
    """
    with _written_beside(path, data, mode) as temporary:
        os.replace(temporary, path)


def write_new(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """As ``write_atomically``, but ``path`` must not exist, even if another process makes it meanwhile.

    Raises:
        FileExistsError: ``path`` exists; it is unchanged.
        StorageFailedError: the bytes could not be stored durably.
    """
    with _written_beside(path, data, mode) as temporary:
        try:
            # A rename would replace a file that was made since the last check.
            os.link(temporary, path)
        except OSError as error:
            if error.errno not in _NO_HARD_LINKS:
                raise
            # File systems of memory sticks have no hard links: an empty file reserves the name, and the content then
            # replaces it.
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode))
            os.replace(temporary, path)


#: Errors of Linux on a file system without hard links (link(2)).
_NO_HARD_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS)


@contextlib.contextmanager
def _written_beside(path: Path, data: bytes, mode: int) -> Iterator[str]:
    """The name of a synced file with this content in the folder of ``path``. Afterwards that name is gone, and the
    folder is synced.

    Raises:
        FileExistsError: from within. StorageFailedError: any other error of the disk.
    """
    temporary: str | None = None
    try:
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            # A confined node changes no mode, and mkstemp gives this one.
            if mode != 0o600:
                os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        yield temporary
        Path(temporary).unlink(missing_ok=True)
        temporary = None
        synchronise_folder(path.parent)
    except FileExistsError:
        raise
    except OSError as error:
        raise StorageFailedError(
            f"cannot write {path}: {error.strerror or error}; check the folder and the disk"
        ) from error
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


def write_folder_atomically(path: Path, files: Mapping[str, bytes]) -> None:
    """Make the folder ``path`` (0700) with these files (0600), all of them or none.

    A folder at ``path`` is removed at the very end; a crash at that moment can leave nothing there, so data that must
    not be lost need a new name each time.

    Raises:
        StorageFailedError: the files could not be stored durably.
    """
    temporary: str | None = None
    try:
        temporary = tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        for name, data in files.items():
            write_atomically(Path(temporary) / name, data, mode=0o600)
        state_files.remove(path)
        os.rename(temporary, path)
        temporary = None
        synchronise_folder(path.parent)
    except OSError as error:
        raise StorageFailedError(
            f"cannot write {path}: {error.strerror or error}; check the folder and the disk"
        ) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def make_folder(path: Path, *, mode: int = 0o700) -> None:
    """Make a folder if there is none, and every folder above it that is missing, all with this mode, whatever the umask
    (``Path.mkdir`` gives its mode to the last one only).

    Raises:
        OSError: one cannot be made, or something else has its name.
    """
    for folder in (*reversed(path.absolute().parents), path.absolute()):
        if not folder.is_dir():
            with contextlib.suppress(FileExistsError):  # Another process was quicker.
                folder.mkdir(mode=mode)
    if not path.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))


def synchronise_folder(path: Path) -> None:
    """Make the folder's own entries durable (a rename is not, until its folder is synced)."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
