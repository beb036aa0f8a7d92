"""Where images come from: a folder tree, the published CIFAR-100 archive, or the built-in stand-in."""

import os
import shutil
import socket
import tempfile
import threading
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from types import ModuleType
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from protocol.errors import InputError
from sims import glyphs
from sims.cifar100.split import CIFAR100
from sims.division import Division

Kind = Literal["folder", "download", "stand-in"]
Part = Literal["train", "test"]

#: Where a downloaded dataset is kept.
CACHE = Path("~/.learngene/data")
#: Files that count as images in a folder tree; others are passed over.
SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
#: Seconds without an answer after which the network counts as absent.
NETWORK_TIMEOUT = 8.0

_URL = "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz"  # as torchvision has it; asked before importing that
_ARCHIVE_FOLDER = "cifar-100-python"
_ARCHIVE = "cifar-100-python.tar.gz"
#: Images a class of the published set.
_PUBLISHED: Mapping[Part, int] = {"train": 500, "test": 100}


@dataclass(frozen=True)
class ImageSet:
    """Labelled images.

    Attributes:
        images: ``[N, H, W, 3]`` uint8, RGB.
        labels: ``[N]`` int64, indices into the source's ``classes``.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]


@dataclass(frozen=True)
class ImageSource:
    """A dataset in memory.

    Attributes:
        name: ``cifar100`` or ``glyphs``.
        kind: where the images come from, as results name it.
        classes: class names that the labels index.
        train: training images.
        test: test images.
        reason: why these images are used (a stand-in says what was missing), or where they lie.
    """

    name: str
    kind: Kind
    classes: tuple[str, ...]
    train: ImageSet
    test: ImageSet
    reason: str

    @property
    def notice(self) -> str:
        """The plain words that every output must carry where the images are a stand-in; empty where they are real."""
        return notice(self.name, self.kind, self.reason)


def notice(name: str, kind: Kind, reason: str = "") -> str:
    """What to tell the reader about a dataset: empty unless it is the stand-in."""
    if kind != "stand-in":
        return ""
    because = f" ({reason})" if reason else ""
    return f"The images are the built-in stand-in '{name}', NOT CIFAR-100{because}."


def division_of(source: ImageSource) -> Division:
    """The roles of the source's classes: the paper's for CIFAR-100, 64/16/20 in order for the stand-in."""
    return glyphs.DIVISION if source.kind == "stand-in" else CIFAR100


def load_source(
    data: Path | None = None,
    *,
    stand_in: bool = False,
    cache: Path = CACHE,
    say: Callable[[str], None] = lambda line: None,
) -> ImageSource:
    """Find and read the images.

    ``data`` may be a folder tree ``{train,test}/<class>/<image>``, a folder that holds the published archive
    (``cifar-100-python.tar.gz`` or its unpacked folder), or the parent ``DIR`` of such a tree ``DIR/cifar100``. Without
    it the published archive is taken from ``cache`` or downloaded there; where there is no network the stand-in is
    drawn.

    Args:
        data: what the user gave; never replaced by the stand-in.
        stand_in: draw the stand-in without looking further.
        cache: folder of downloads.
        say: gets one line before something slow.

    Raises:
        InputError: the folder is missing, is neither layout, lacks classes or images, or is damaged.
    """
    if stand_in:
        if data is not None:
            raise InputError("a data folder and the stand-in were both asked for; choose one")
        return draw_stand_in("asked for")
    if data is not None:
        return _load_given(data.expanduser(), say)
    cache = cache.expanduser()
    if not (cache / _ARCHIVE_FOLDER).is_dir():
        say("No data folder was given: fetching CIFAR-100 (169 MB) ...")
        problem = _download(cache)
        if problem is not None:
            return draw_stand_in(f"no data folder was given and CIFAR-100 could not be downloaded: {problem}")
    return read_published(cache)


def count_images(data: Path | None = None, *, stand_in: bool = False) -> tuple[Division, dict[Part, dict[str, int]]]:
    """What ``load_source`` will find, without reading an image: the division, and images by part and class.

    Args:
        data, stand_in: as of ``load_source``.

    Raises:
        InputError: the folder is missing, is neither layout, or lacks classes or images.
    """
    division = glyphs.DIVISION if stand_in else CIFAR100
    each: Mapping[Part, int] = _PUBLISHED
    if data is not None:
        tree = _tree_in(data.expanduser())
        if tree is not None:
            files = {part: _list_images(tree / part, division.classes) for part in each}
            return division, {part: {name: len(found) for name, found in by.items()} for part, by in files.items()}
    elif stand_in:
        each = {"train": glyphs.TRAIN_PER_CLASS, "test": glyphs.TEST_PER_CLASS}
    return division, {part: dict.fromkeys(division.classes, count) for part, count in each.items()}


def draw_stand_in(
    reason: str, *, seed: int = 0, train_per_class: int | None = None, test_per_class: int | None = None
) -> ImageSource:
    """The pictures of ``glyphs``, 60,000 unless fewer are asked for; the same in every run unless the seed differs."""
    train_per_class = train_per_class or glyphs.TRAIN_PER_CLASS
    test_per_class = test_per_class or glyphs.TEST_PER_CLASS
    train, test = glyphs.draw(seed, range(glyphs.CLASSES), train_per_class, test_per_class)
    labels = np.arange(glyphs.CLASSES, dtype=np.int64)
    return ImageSource(
        name="glyphs",
        kind="stand-in",
        classes=glyphs.DIVISION.classes,
        train=ImageSet(train, labels.repeat(train_per_class)),
        test=ImageSet(test, labels.repeat(test_per_class)),
        reason=reason,
    )


def _load_given(data: Path, say: Callable[[str], None]) -> ImageSource:
    tree = _tree_in(data)
    if tree is not None:
        return read_folder_tree(tree, CIFAR100.classes, name="cifar100")
    if (data / _ARCHIVE_FOLDER).is_dir():
        return read_published(data)
    say(f"Unpacking {data / _ARCHIVE} ...")
    return _read_archive(data / _ARCHIVE)


def _tree_in(data: Path) -> Path | None:
    """The root of the folder tree in ``data``; None where it holds the published set.

    Raises:
        InputError: it holds neither.
    """
    if not data.is_dir():
        raise InputError(f"no such data folder: {data}")
    for folder in (data, data / "cifar100"):
        if (folder / "train").is_dir() and (folder / "test").is_dir():
            return folder
    if (data / _ARCHIVE_FOLDER).is_dir() or (data / _ARCHIVE).is_file():
        return None
    raise InputError(
        f"{data} holds neither train/ and test/ with one folder of images per class, nor {_ARCHIVE}: "
        "name the folder that holds one of them"
    )


def read_folder_tree(folder: Path, classes: Sequence[str], *, name: str, size: int = 32) -> ImageSource:
    """Read ``folder/{train,test}/<class>/<image>``; files in the order of their names, so the result is reproducible.

    Args:
        folder: root of the tree.
        classes: the class folders to read; others are passed over.
        name: of the dataset.
        size: height and width that every image must have, pixels.

    Raises:
        InputError: a class folder is missing or empty, an image cannot be read or has another size.
    """
    parts: dict[str, ImageSet] = {}
    listed = {part: _list_images(folder / part, classes) for part in ("train", "test")}
    for part, by_class in listed.items():
        files = [file for found in by_class.values() for file in found]
        counts = [len(found) for found in by_class.values()]
        images = np.empty((len(files), size, size, 3), np.uint8)
        for index, file in enumerate(files):
            images[index] = _read_image(file, size)
        parts[part] = ImageSet(images, np.arange(len(classes), dtype=np.int64).repeat(counts))
    return ImageSource(name, "folder", tuple(classes), parts["train"], parts["test"], f"from {folder}")


def _list_images(folder: Path, classes: Sequence[str]) -> dict[str, list[str]]:
    """Paths of the images in ``folder/<class>/`` by class, in the order of their names.

    Raises:
        InputError: a class folder is missing or empty.
    """
    missing = [label for label in classes if not (folder / label).is_dir()]
    if missing:
        shown = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        raise InputError(f"{folder} lacks {len(missing)} of {len(classes)} class folders: {shown}")
    files: dict[str, list[str]] = {}
    for label in classes:
        with os.scandir(folder / label) as entries:
            files[label] = sorted(entry.path for entry in entries if _is_image(entry.name))
        if not files[label]:
            raise InputError(f"{folder / label} holds no images")
    return files


def _is_image(name: str) -> bool:
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES


def _read_image(file: str, size: int) -> NDArray[np.uint8]:
    try:
        with Image.open(file) as image:
            pixels = np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # Pillow raises all of these
        raise InputError(f"cannot read the image {file}: {error}") from error
    if pixels.shape != (size, size, 3):
        raise InputError(f"{file} is {pixels.shape[1]}x{pixels.shape[0]} pixels; this dataset needs {size}x{size}")
    return pixels


def read_published(root: Path) -> ImageSource:
    """CIFAR-100 as published, from ``root/cifar-100-python``; torchvision compares every file with its checksum first.

    Raises:
        InputError: the files are damaged, or torchvision cannot be imported.
    """
    library = _torchvision_datasets()
    try:
        parts = [library.CIFAR100(str(root), train=train, download=False) for train in (True, False)]
    except RuntimeError as error:
        folder = root / _ARCHIVE_FOLDER
        raise InputError(f"{folder} is not the published CIFAR-100 (checksum): remove it and fetch it again") from error
    train, test = (
        ImageSet(np.ascontiguousarray(part.data, dtype=np.uint8), np.asarray(part.targets, dtype=np.int64))
        for part in parts
    )
    return ImageSource("cifar100", "download", tuple(parts[0].classes), train, test, f"the published set, in {root}")


def _read_archive(archive: Path) -> ImageSource:
    """Unpack beside nothing of the user's: into a temporary folder that goes away again."""
    library = _torchvision_datasets()
    from torchvision.datasets.utils import check_integrity, extract_archive

    if not check_integrity(str(archive), library.CIFAR100.tgz_md5):
        raise InputError(f"{archive} is not the published CIFAR-100 archive (checksum): fetch it again")
    with tempfile.TemporaryDirectory(prefix="learngene-") as temporary:
        extract_archive(str(archive), temporary)
        source = read_published(Path(temporary))
    return ImageSource(
        source.name, source.kind, source.classes, source.train, source.test, f"the published set, from {archive}"
    )


def _download(cache: Path) -> str | None:
    """Fetch the published archive into ``cache``, whole or not at all; returns what prevented it, or None.

    Raises:
        InputError: the cache cannot be written, or what arrived is not the published archive.
    """
    problem = _unreachable(_URL)
    if problem is not None:
        return problem
    library = _torchvision_datasets()
    try:
        cache.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".download-", dir=cache))
    except OSError as error:
        raise InputError(f"cannot write to {cache}: {error.strerror}") from error
    try:
        with _socket_timeout(NETWORK_TIMEOUT):
            library.CIFAR100(str(temporary), download=True)
        if not (cache / _ARCHIVE_FOLDER).is_dir():  # another process may have been faster
            os.rename(temporary / _ARCHIVE_FOLDER, cache / _ARCHIVE_FOLDER)
    except RuntimeError as error:
        raise InputError(f"what {_URL} sent is not the published archive: {error}") from error
    except (OSError, HTTPException) as error:
        return str(error)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return None


def _unreachable(url: str) -> str | None:
    """Why ``url`` does not answer, or None. Asked in a thread: looking up a name obeys no time-out of ours."""
    answer: list[str | None] = []

    def ask() -> None:
        try:
            request = urllib.request.Request(url, method="HEAD", headers={"User-Agent": "learngene"})
            with urllib.request.urlopen(request, timeout=NETWORK_TIMEOUT):
                answer.append(None)
        except (OSError, ValueError) as error:
            answer.append(str(getattr(error, "reason", error)))

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(NETWORK_TIMEOUT)
    return answer[0] if answer else f"no answer in {NETWORK_TIMEOUT:g} s"


@contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    """torchvision sets no time-out of its own, so a dead connection would hang for ever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _torchvision_datasets() -> ModuleType:
    """Imported only where it is needed: it takes seconds, and a broken installation must not stop a folder tree."""
    try:
        from torchvision import datasets
    except (ImportError, RuntimeError) as error:
        raise InputError(
            f"torchvision cannot be imported ({error}): install one that fits this torch, or give a folder tree"
        ) from error
    module: ModuleType = datasets
    return module
