"""A folder tree of images, one folder a class: which files are for training and which for testing, and their pixels."""

import os
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from protocol.errors import InputError
from protocol.files.user_files import read_start
from protocol.learngene.architecture import InputContract
from protocol.pictures.formats import CLUTTER, HEAD_BYTES, NAMES, SUFFIXES, kind_of
from protocol.pictures.reader import PictureReader, refuse_all
from protocol.visible_text import visible_name
from sims.data.division import Division

Part = Literal["train", "test"]

#: In a tree without test images, one image in this many of each class is set aside for testing (500 and 100 of 600).
ONE_IN = 6

_PARTS = ("train", "val", "test")


@dataclass(frozen=True)
class FolderTree:
    """The image files of a tree; nothing in them is read yet.

    Attributes:
        root: folder of the tree.
        files: paths by part and class, classes in the order of a division, files in the order of their names.
        layout: how the tree divides training from test images, in words.
        others: paths in the class folders that are no images; hidden files and what systems leave are not among them.
    """

    root: Path
    files: Mapping[Part, Mapping[str, Sequence[str]]]
    layout: str
    others: Sequence[str] = ()

    @property
    def others_line(self) -> str:
        """What was passed over, in one line; empty: nothing."""
        if not self.others:
            return ""
        kinds = Counter(os.path.splitext(path)[1].lower() or "without suffix" for path in self.others)
        shown = ", ".join(f"{count} {visible_name(kind)}" for kind, count in kinds.most_common(8))
        return (
            f"Passed over in the class folders: {len(self.others)} entries that are no {NAMES} ({shown}), such as "
            f"{visible_name(self.others[0])}"
        )

    @property
    def counts(self) -> dict[Part, dict[str, int]]:
        """Images by part and class."""
        return {part: {label: len(found) for label, found in by.items()} for part, by in self.files.items()}

    def only(self, classes: Sequence[str]) -> "FolderTree":
        """The same tree with these classes alone, in this order."""
        return replace(self, files={part: {label: by[label] for label in classes} for part, by in self.files.items()})


def is_tree(folder: Path, division: Division) -> bool:
    """Whether a folder looks like the root of a tree of these classes: it has ``train/`` and ``test/`` or
    ``val/``, or class folders."""
    # Require two: a class may itself be called `train`, as one of CIFAR-100's is.
    return _has_parts(folder) or sum((folder / label).is_dir() for label in division.classes) >= 2


def list_tree(root: Path, division: Division) -> FolderTree:
    """Find the image files of every class.

    Test images are those of ``test/<class>/`` or ``val/<class>/``, whichever shares classes with ``train/<class>/``.
    If neither does - class folders side by side under ``root``, or ``train/``, ``val/`` and ``test/`` that hold
    different classes - one in six of each class is set aside, always the same files.

    A file is an image if its suffix is one of our formats' or, whatever its suffix, its first bytes are.

    Args:
        root: folder of the tree; class folders that the division does not name are skipped.

    Raises:
        InputError: class folders are missing or hold no image; all of them are named.
    """
    test, others = _test_folder(root, division), list[str]()
    if test is not None:
        listed: dict[Part, dict[str, list[str]]] = {
            "train": _list_images([root / "train"], division, others),
            "test": _list_images([test], division, others),
        }
        return FolderTree(root, listed, f"train/ and {test.name}/", others)
    files = _list_images([root / part for part in _PARTS] if _has_parts(root) else [root], division, others)
    cut = {label: _set_aside(found) for label, found in files.items()}
    return FolderTree(
        root,
        {
            "train": {name: kept for name, (kept, _) in cut.items()},
            "test": {name: out for name, (_, out) in cut.items()},
        },
        f"no class has test images of its own: one image in {ONE_IN} of each is set aside for testing",
        others,
    )


def read_images(files: Sequence[str], size: int, reader: PictureReader) -> NDArray[np.uint8]:
    """Images of any size and kind as ``[N, size, size, 3]`` uint8, RGB, as an individual reads its own pictures: turned
    upright, the shorter side brought to ``size``, the middle cut out. An image that already has this form is not
    changed.

    Raises:
        InputError: a file cannot be read as an image.
        RunFailedError: a decoder does not start.
    """
    images = np.empty((len(files), size, size, 3), np.uint8)
    for index, image in enumerate(reader.read_all(files, InputContract(height=size, width=size, channels=3))):
        images[index] = image
    return images


def _has_parts(root: Path) -> bool:
    return (root / "train").is_dir() and any((root / part).is_dir() for part in ("test", "val"))


def _test_folder(root: Path, division: Division) -> Path | None:
    """``test/`` or ``val/``, the first that has a class which ``train/`` has too."""
    trained = [label for label in division.classes if (root / "train" / label).is_dir()]
    for folder in (root / "test", root / "val"):
        if any((folder / label).is_dir() for label in trained):
            return folder
    return None


def _list_images(folders: Sequence[Path], division: Division, others: list[str]) -> dict[str, list[str]]:
    """Paths of the images of every class, from the first of ``folders`` that has the class; what is no image there is
    added to ``others``.

    Raises:
        InputError: a class folder is missing or holds no image.
    """
    homes = {
        label: next((folder / label for folder in folders if (folder / label).is_dir()), None)
        for label in division.classes
    }
    missing = [label for label, home in homes.items() if home is None]
    if missing:
        shown = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        where = folders[0] if len(folders) == 1 else folders[0].parent
        raise InputError(
            f"{where} lacks {len(missing)} of {len(homes)} class folders: {shown}{_alike(folders, missing)}"
        )
    files: dict[str, list[str]] = {}
    empty: list[InputError] = []
    for label, home in homes.items():
        assert home is not None
        with os.scandir(home) as entries:
            seen = sorted((entry for entry in entries if not _is_left(entry.name)), key=lambda entry: entry.path)
        images = [entry.path for entry in seen if _is_image(entry)]
        passed = sorted({entry.path for entry in seen} - set(images))
        if not images:
            found = f", but {len(passed)} other entries, such as {visible_name(passed[0])}" if passed else ""
            empty.append(InputError(f"{visible_name(home)} holds no images{found}; an image is a {NAMES}"))
        files[label] = images
        others += passed
    refuse_all(empty, f"{len(empty)} class folders hold no images")
    return files


def _alike(folders: Sequence[Path], missing: Sequence[str]) -> str:
    """A folder that is there and differs from a missing one in capitals or spaces alone, in words."""
    there = {entry.name for folder in folders if folder.is_dir() for entry in folder.iterdir()}
    for label in missing:
        for name in sorted(there):
            if _bare(name) == _bare(label):
                return f"; there is {visible_name(name)!r} and not {visible_name(label)!r}: write both alike"
    return ""


def _bare(name: str) -> str:
    return "".join(unicodedata.normalize("NFKC", name).casefold().split())


def _is_left(name: str) -> bool:
    return name.startswith(".") or name.lower() in CLUTTER


def _is_image(entry: os.DirEntry[str]) -> bool:
    if entry.is_dir():
        return False
    if os.path.splitext(entry.name)[1].lower() in SUFFIXES:
        return True
    try:
        kind = kind_of(read_start(Path(entry.path), "a picture", max_bytes=HEAD_BYTES))
    except InputError:  # a pipe, a link to nowhere
        return False
    return kind is not None and kind.format is not None


def _set_aside(files: Sequence[str]) -> tuple[list[str], list[str]]:
    """The training and the test images of a class, both in the order of names; a fixed seed chooses."""
    order = np.random.default_rng(0).permutation(len(files))
    chosen = set(order[: max(1, len(files) // ONE_IN)].tolist())
    kept = [file for index, file in enumerate(files) if index not in chosen]
    return kept, [files[index] for index in sorted(chosen)]
