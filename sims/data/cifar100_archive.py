"""The published CIFAR-100: recognised by its checksums, and read without running any code in it.

Its files are pickles that Python 2 wrote. Our reader makes only plain values: text, numbers, lists, and the type, shape
and bytes of an array.
"""

import hashlib
import io
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from protocol.errors import InputError
from protocol.files.atomic import write_folder_atomically
from protocol.files.user_files import read_given
from protocol.pictures.archives import read_members
from protocol.visible_text import visible_name

URL = "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz"
FOLDER, ARCHIVE = "cifar-100-python", "cifar-100-python.tar.gz"
#: MD5 of the published archive and of its files: they identify the published files; safety does not depend on them.
CHECKSUMS: Mapping[str, str] = {
    ARCHIVE: "eb9058c3a382ffc7106e4002c42a8d85",
    "train": "16019d7e3df5f24257cddd939b257f8d",
    "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
    "meta": "7973b15100ade9c7d40fb424638fde48",
}
#: Most bytes of the archive, and of its files together; the published ones have 169 and 187 million.
MAX_BYTES = 256 << 20

_FILES = ("train", "test", "meta")
_SIDE, _CHANNELS = 32, 3
_Value = TypeVar("_Value")


@dataclass(frozen=True)
class Published:
    """Class names, and of each part the images uint8 ``[N, 32, 32, 3]`` and labels int64 ``[N]``."""

    classes: tuple[str, ...]
    parts: Mapping[str, tuple[NDArray[np.uint8], NDArray[np.int64]]]


def read_folder(root: Path) -> Published:
    """Read the published files in ``root/cifar-100-python``.

    Raises:
        InputError: one is missing, or is not the published one.
    """
    folder = root / FOLDER
    files = {name: read_given(folder / name, "CIFAR-100", max_bytes=MAX_BYTES) for name in _FILES}
    return _decoded(
        files, f"{visible_name(folder)} is not the published CIFAR-100 (checksum): remove it and fetch it again"
    )


def read_archive(archive: Path) -> Published:
    """Read the published archive; nothing is unpacked to the disk.

    Raises:
        InputError: it is not the published one.
    """
    data = read_given(archive, "CIFAR-100", max_bytes=MAX_BYTES)
    wrong = f"{visible_name(archive)} is not the published CIFAR-100 archive (checksum): fetch it again"
    return _decoded(_members(data, visible_name(archive), wrong), wrong)


def keep(data: bytes, root: Path) -> None:
    """Write the files of a fetched archive to ``root/cifar-100-python``: all of them, or nothing.

    Raises:
        InputError: it is not the published archive. StorageFailedError: they could not be stored.
    """
    wrong = f"what {URL} sent is not the published archive (checksum): try again later"
    write_folder_atomically(root / FOLDER, _members(data, URL, wrong))


def _members(data: bytes, what: str, wrong: str) -> dict[str, bytes]:
    if not _is_published(ARCHIVE, data):
        raise InputError(wrong)
    found = read_members(data, [f"{FOLDER}/{name}" for name in _FILES], what, max_bytes=MAX_BYTES)
    return {name: found[f"{FOLDER}/{name}"] for name in _FILES}


def _decoded(files: Mapping[str, bytes], wrong: str) -> Published:
    if not all(_is_published(name, data) for name, data in files.items()):
        raise InputError(wrong)
    try:
        values = {name: plain_values(data) for name, data in files.items()}
        classes = tuple(name.decode("ascii") for name in _listed(values["meta"], b"fine_label_names", bytes))
        parts = {name: _part(values[name], len(classes)) for name in ("train", "test")}
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{wrong} ({error})") from None
    return Published(classes, parts)


def _is_published(name: str, data: bytes) -> bool:
    return hashlib.md5(data, usedforsecurity=False).hexdigest() == CHECKSUMS[name]


def _part(values: object, classes: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    labels = np.array(_listed(values, b"fine_labels", int), np.int64)
    assert isinstance(values, dict)
    data = values[b"data"]
    shape = (len(labels), _CHANNELS * _SIDE * _SIDE)
    if (
        not isinstance(data, _Array)
        or (data.kind, data.shape) != (b"u1", shape)
        or len(data.content) != shape[0] * shape[1]
    ):
        raise ValueError("its images are not as many as its labels")
    if not ((labels >= 0) & (labels < classes)).all():
        raise ValueError("a label names no class")
    # Stored plane by plane.
    planes = np.frombuffer(data.content, np.uint8).reshape(-1, _CHANNELS, _SIDE, _SIDE)
    return np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), labels


def _listed(values: object, name: bytes, kind: type[_Value]) -> list[_Value]:
    """A list of plain values in a dictionary."""
    found = values.get(name) if isinstance(values, dict) else None
    if not isinstance(found, list) or not found or not all(type(value) is kind for value in found):
        raise ValueError(f"it holds no {name.decode()}")
    return found


def plain_values(data: bytes) -> object:
    """The values of a pickle that Python 2 wrote, text as bytes. Of an array only its own data are kept; every other
    class and function is refused.

    Raises:
        ValueError: it holds something else, or is damaged.
    """
    try:
        return _PlainUnpickler(io.BytesIO(data), encoding="bytes").load()
    except Exception as error:  # an unpickler can raise any error, depending on its input
        raise ValueError(f"no plain values: {type(error).__name__}") from None


class _Array:
    """Stands for numpy's array: none of numpy's own code is called with a file's content."""

    def __init__(self, *arguments: object) -> None:
        self.kind: object = None
        self.shape: object = None
        self.content = b""

    def __setstate__(self, state: tuple[object, ...]) -> None:
        _, self.shape, dtype, fortran, content = state
        if not isinstance(dtype, _Type) or not isinstance(content, bytes) or fortran:
            raise ValueError
        self.kind, self.content = dtype.kind, content


class _Type:
    """Stands for numpy's type of an array."""

    def __init__(self, kind: object, *arguments: object) -> None:
        self.kind = kind

    def __setstate__(self, state: object) -> None:
        """Ignore byte order and similar state: bytes have none."""


# Use the unpickler written in Python: the one in C allocates memory for as many values as a pickle announces.
class _PlainUnpickler(pickle._Unpickler):
    _STAND_INS: Mapping[tuple[str, str], type] = {
        ("numpy.core.multiarray", "_reconstruct"): _Array,
        ("numpy", "ndarray"): _Array,
        ("numpy", "dtype"): _Type,
    }

    def find_class(self, module: str, name: str) -> type:
        try:
            return self._STAND_INS[module, name]
        except KeyError:
            raise pickle.UnpicklingError("a class or function") from None

    def persistent_load(self, name: object) -> object:
        raise pickle.UnpicklingError("a reference")
