"""Images kept as they were decoded from a folder tree, or drawn, so that this is done once and not in every run."""

import contextlib
import hashlib
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import PIL
from numpy.typing import NDArray

from protocol.errors import InputError
from protocol.files.atomic import synchronise_folder
from protocol.files.private_folders import private_folder
from protocol.files.user_files import expanded
from protocol.pictures.arrays import read_array

#: Most sets of images that are kept; the least recently used one is removed first.
MOST = 4
_SUFFIX, _DECODED = ".npy", "decoded"
#: Seconds after which an unfinished file counts as abandoned.
_ABANDONED = 24 * 3600
#: Version of the decoder's output: increase it when the output changes.
_VERSION = 2


def folder_of(cache: Path) -> Path | None:
    """The folder of decoded images in a cache; None for a user without a home."""
    try:
        return expanded(cache) / _DECODED
    except InputError:
        return None


def listing_digest(root: Path, files: Sequence[str], size: int, bits: int | None = None) -> str:
    """SHA-256 of the names, sizes and times of the files, of ``size`` and ``bits``, and of the decoder's version.

    The times include that of the last change to the file's own entry, which no user sets by hand: so two trees whose
    files have the same names, sizes and dates differ.

    Raises:
        OSError: a file's status cannot be read.
    """
    seen = hashlib.sha256(repr((_VERSION, PIL.__version__, size, bits)).encode())
    for file in files:
        status = os.stat(file)
        times = f"{status.st_mtime_ns} {status.st_ctime_ns}"
        line = f"{os.path.relpath(file, root)!r} {status.st_size} {times}\n"
        seen.update(line.encode("utf-8", errors="surrogateescape"))
    return seen.hexdigest()


def drawing_digest(*numbers: int) -> str:
    """SHA-256 of the numbers that drawn images follow from, and of the version of what draws random numbers."""
    return hashlib.sha256(repr((np.__version__, numbers)).encode()).hexdigest()


def kept(folder: Path, digest: str, count: int, size: int) -> NDArray[np.uint8] | None:
    """The images ``[count, size, size, 3]`` that were kept under a digest; None if there are none that fit."""
    path = folder / f"{digest}{_SUFFIX}"
    try:
        private_folder(folder)
        found = read_array(path)
        os.utime(path)
    except (InputError, OSError):
        return None
    return found if found.dtype == np.uint8 and found.shape == (count, size, size, 3) else None


def keep(folder: Path, digest: str, images: NDArray[np.uint8]) -> None:
    """Keep images under a digest. If they cannot be kept, this is not reported: the next run decodes them again."""
    with contextlib.suppress(InputError, OSError):
        private_folder(folder)
        descriptor, name = tempfile.mkstemp(suffix=".part", dir=folder)
        try:
            with os.fdopen(descriptor, "wb") as file:
                np.save(file, images)
                file.flush()
                os.fsync(file.fileno())
            os.replace(name, folder / f"{digest}{_SUFFIX}")
        except BaseException:
            os.unlink(name)
            raise
        synchronise_folder(folder)
        _forget_oldest(folder)


def _forget_oldest(folder: Path) -> None:
    """Keep only the trees that were used last."""
    by_use = sorted(folder.glob(f"*{_SUFFIX}"), key=lambda path: path.stat().st_mtime, reverse=True)
    # What a run that was killed meanwhile left half-written.
    abandoned = [path for path in folder.glob("*.part") if time.time() - path.stat().st_mtime > _ABANDONED]
    for path in (*by_use[MOST:], *abandoned):
        path.unlink(missing_ok=True)
