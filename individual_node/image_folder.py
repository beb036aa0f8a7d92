"""Own pictures of any size, brought to a learngene's input contract: a folder per class, or single files."""

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from protocol.errors import InputError
from protocol.learngene.architecture import InputContract
from protocol.pictures.formats import CLUTTER
from protocol.pictures.reader import PictureReader, refuse_all
from protocol.visible_text import is_plain, visible_name

#: Called with the number of pictures read so far, and the number of all.
ReadObserver = Callable[[int, int], None]

_LONGEST_NAME = 100


@dataclass(frozen=True)
class OwnPictures:
    """The pictures of a folder tree.

    Attributes:
        classes: the class folders' names, sorted.
        files: each picture's file.
        pixels: uint8 ``[N, H, W, C]``, as the input contract says.
        labels: int64 ``[N]``, positions in ``classes``.
        copies: number of files that were skipped because the class already has the same picture.
    """

    classes: tuple[str, ...]
    files: tuple[Path, ...]
    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]
    copies: tuple[Path, ...]

    @property
    def counts(self) -> tuple[int, ...]:
        """Pictures of each class."""
        return tuple(np.bincount(self.labels, minlength=len(self.classes)).tolist())


def read_tree(
    folder: Path, contract: InputContract, observe: ReadObserver | None = None, *, reader: PictureReader | None = None
) -> OwnPictures:
    """Read ``folder/<class>/<picture>``, with decoders of its own if no ``reader`` is given.

    A picture that is twice in a class counts once, or the estimate of the accuracy would test on training pictures.

    Raises:
        InputError: no such folder, fewer than two classes, classes without pictures, pictures in two classes, or
            anything that is neither a class folder nor a picture; the message names all of them.
        RunFailedError: a decoder does not start.
    """
    if reader is None:
        with PictureReader() as own:
            return read_tree(folder, contract, observe, reader=own)
    listed = class_folders(folder)
    files = [(file, label) for label, of_class in enumerate(listed.values()) for file in of_class]
    known: dict[bytes, tuple[Path, int]] = {}
    pictures: list[NDArray[np.uint8]] = []
    copies, twice = [], []
    read = reader.read_all([file for file, _ in files], contract)
    for done, ((file, label), picture) in enumerate(zip(files, read, strict=True), 1):
        digest = hashlib.sha256(picture.tobytes()).digest()
        first, other = known.setdefault(digest, (file, label))
        if other != label:
            names = f"{visible_name(first)} and {visible_name(file)}"
            twice.append(InputError(f"{names} are the same picture in two classes; keep it in one"))
        elif first == file:
            pictures.append(picture)
        else:
            copies.append(file)
        if observe is not None:
            observe(done, len(files))
    refuse_all(twice, f"{len(twice)} pictures are in two classes")
    files_kept, labels = zip(*known.values(), strict=True)
    return OwnPictures(tuple(listed), files_kept, np.stack(pictures), np.array(labels, np.int64), tuple(copies))


def class_folders(folder: Path) -> dict[str, list[Path]]:
    """Class names and each class's files, both sorted; nothing is opened.

    Raises:
        InputError: as :func:`read_tree`, except for faults inside the pictures.
    """
    classes: dict[str, list[Path]] = {}
    wrong: list[InputError] = []
    for entry in _entries(folder):
        try:
            classes[entry.name] = _pictures_of_class(entry)
        except InputError as error:
            wrong.append(error)
    refuse_all(wrong, f"{len(wrong)} entries of {visible_name(folder)} are no folders of pictures")
    if len(classes) < 2:
        found = f"only the class {next(iter(classes))!r}" if classes else "no class folder"
        raise InputError(f"{folder} holds {found}; it needs a folder of pictures for each of at least two classes")
    return classes


def _pictures_of_class(entry: Path) -> list[Path]:
    shown = visible_name(entry)
    if not entry.is_dir():
        raise InputError(f"{shown} lies beside the class folders; move it into the folder of its class")
    if not is_plain(entry.name) or entry.name != entry.name.strip() or len(entry.name) > _LONGEST_NAME:
        raise InputError(f"{shown} is no name for a class; use at most {_LONGEST_NAME} plain characters")
    files = picture_files(entry)
    if all(file.is_dir() for file in files):
        raise InputError(
            f"{shown} holds folders alone; if they are the classes, give {shown} as the folder of pictures"
        )
    if inner := next((file for file in files if file.is_dir()), None):
        raise InputError(
            f"{visible_name(inner)} is a folder inside a folder of pictures and is not looked into; move its "
            "pictures up"
        )
    return files


def picture_files(folder: Path) -> list[Path]:
    """What a folder of pictures holds, sorted by name.

    Raises:
        InputError: it cannot be read, or is empty.
    """
    files = _entries(folder)
    if not files:
        raise InputError(f"{visible_name(folder)} holds no pictures; add some or remove it")
    return files


def _entries(folder: Path) -> list[Path]:
    """The entries of a folder, sorted by name, without hidden files and clutter."""
    try:
        found = sorted(folder.iterdir())
    except OSError as error:
        raise InputError(f"cannot read the folder {folder}: {error.strerror}") from None
    return [path for path in found if not path.name.startswith(".") and path.name.lower() not in CLUTTER]


def pictures_of(arguments: Sequence[Path]) -> list[Path]:
    """The files that a user names, each of them once; a folder stands for the pictures in it. Whether each can be read
    is seen when it is.

    Raises:
        InputError: a folder cannot be read, or holds no pictures.
    """
    files: list[Path] = []
    for path in arguments:
        files += picture_files(path) if path.is_dir() else [path]
    # A folder may hold a file that is also named by itself, and a path may be written in several ways.
    once: dict[str, Path] = {}
    for file in files:
        once.setdefault(os.path.join(os.path.realpath(file.parent), file.name), file)
    return list(once.values())
