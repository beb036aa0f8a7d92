"""Saving to disk so that a crash leaves either the old content or the new, never half of it."""

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from protocol.errors import StorageFailedError


def write_atomically(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Write beside, flush, sync, rename, sync the folder. The folder of ``path`` must exist.

    Raises:
        StorageFailedError: the bytes could not be stored durably; what was at ``path`` before is still there.
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
        os.replace(temporary, path)
        temporary = None
        synchronise_folder(path.parent)
    except OSError as error:
        raise StorageFailedError(
            f"cannot write {path}: {error.strerror or error}; check the folder and the disk"
        ) from error
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


def write_folder_atomically(path: Path, files: Mapping[str, bytes]) -> None:
    """Make the folder ``path`` (0700) with these files (0600), all of them or none.

    A folder that is at ``path`` gives way at the very end; a crash at that moment can leave nothing there, so what must
    not be lost gets a new name each time.

    Raises:
        StorageFailedError: the files could not be stored durably.
    """
    temporary: str | None = None
    try:
        temporary = tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        for name, data in files.items():
            write_atomically(Path(temporary) / name, data, mode=0o600)
        if path.exists():
            shutil.rmtree(path)
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


def synchronise_folder(path: Path) -> None:
    """Make the folder's own entries durable (a rename is not, until its folder is synced)."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
