"""Sources of images: a folder tree, the published CIFAR-100 archive, or the built-in stand-in."""

import contextlib
import fcntl
import os
import re
import threading
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from http.client import HTTPException
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from protocol.errors import InputError, StorageFailedError
from protocol.files.atomic import make_folder
from protocol.files.user_files import expanded
from protocol.pictures.reader import PictureReader
from sims.cifar100.split import CIFAR100
from sims.data import cifar100_archive, glyphs
from sims.data.datasets import CACHE, DATASETS, DatasetName, check_data_named
from sims.data.division import SPLIT_FILE, Division, read_split
from sims.data.division_choice import OWN, DivisionChoice
from sims.data.folder_tree import FolderTree, Part, is_tree, list_tree, read_images
from sims.data.picture_cache import drawing_digest, folder_of, keep, kept, listing_digest

Kind = Literal["folder", "download", "stand-in"]

#: Seconds without an answer after which the network counts as absent.
NETWORK_TIMEOUT = 8.0

#: The fewest images for which a tree is kept in the cache.
_WORTH_KEEPING = 2000

_URL, _ARCHIVE_FOLDER, _ARCHIVE = cifar100_archive.URL, cifar100_archive.FOLDER, cifar100_archive.ARCHIVE
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
        name: ``cifar100``, ``imagenet100``, ``glyphs`` (the stand-in), or the name of a folder of one's own.
        kind: the source of the images, as results name it.
        classes: class names that the labels index.
        division: the roles of the classes.
        train: training images.
        test: test images.
        reason: why these images are used (a stand-in says what was missing), or their place.
        choice: which division of the classes this is.
    """

    name: str
    kind: Kind
    classes: tuple[str, ...]
    division: Division
    train: ImageSet
    test: ImageSet
    reason: str
    choice: DivisionChoice = OWN

    @property
    def notice(self) -> str:
        """The notice that every output must carry; empty for real images in the dataset's own division."""
        return notice(self.name, self.kind, self.choice, self.reason)


def notice(name: str, kind: Kind, choice: DivisionChoice = OWN, reason: str = "") -> str:
    """The notice that every output of a dataset carries: for the stand-in and for the tuning division; else empty."""
    because = f" ({reason})" if reason else ""
    stand_in = f"The images are the built-in stand-in '{name}', NOT CIFAR-100 or ImageNet100{because}."
    return " ".join(filter(None, (stand_in if kind == "stand-in" else "", choice.notice)))


def load_source(
    data: Path | None = None,
    *,
    dataset: DatasetName = "cifar100",
    stand_in: bool = False,
    choice: DivisionChoice = OWN,
    cache: Path = CACHE,
    say: Callable[[str], None] = lambda line: None,
) -> ImageSource:
    """Find and read the images.

    ``data`` may be a folder tree (``sims.data.folder_tree.list_tree`` says which), for ``folder`` with its
    ``split.json``; of the other datasets also the parent ``DIR`` of a tree ``DIR/<dataset>``, for CIFAR-100 a folder
    that holds the published archive (``cifar-100-python.tar.gz`` or its unpacked folder). Without it the published
    CIFAR-100 is taken from ``cache`` or downloaded there; without a network the stand-in is drawn.

    Args:
        data: the user's folder; never replaced by the stand-in.
        dataset: decides on classes and size; every image is brought to it.
        stand_in: draw the stand-in without looking further.
        choice: which division of the classes; in the tuning division no image of another class is kept, and of a
            folder tree none is read.
        cache: folder of downloads, of the images that were decoded from large trees, and of the stand-in once drawn;
            if it cannot be written, what can be made again is not kept.
        say: gets one line before something slow.

    Raises:
        InputError: the folder is missing or must be given, has no known layout, lacks classes or images, or is damaged.
    """
    check_data_named(dataset, data=data is not None, stand_in=stand_in)
    if stand_in:
        return _divided(draw_stand_in("asked for", size=DATASETS[dataset].size, cache=cache), choice)
    if data is not None:
        found = _find(expanded(data), dataset, choice)
        if found is not None:
            _say_others(found, say)
            return _read_found(found, cache, say)
        return _divided(_load_published_in(expanded(data), say), choice)
    problem = fetch_published(cache, say=say)
    if problem is not None:
        reason = f"no data folder was given and CIFAR-100 could not be downloaded: {problem}"
        return _divided(draw_stand_in(reason, cache=cache), choice)
    return _divided(read_published(expanded(cache)), choice)


def fetch_published(cache: Path = CACHE, *, say: Callable[[str], None] = lambda line: None) -> str | None:
    """Download the published CIFAR-100 if ``cache`` lacks it. Returns what prevented that, or None.

    Raises:
        InputError: the cache cannot be written, or what arrived is not the published archive.
    """
    try:
        cache = expanded(cache)
    except InputError as error:
        raise InputError(f"without --data CIFAR-100 is downloaded to a folder, but {error} as --cache") from None
    if (cache / _ARCHIVE_FOLDER).is_dir():
        return None
    say("No data folder was given: fetching CIFAR-100 (169 MB) ...")
    return _download(cache)


def count_images(
    data: Path | None = None,
    *,
    dataset: DatasetName = "cifar100",
    stand_in: bool = False,
    choice: DivisionChoice = OWN,
    say: Callable[[str], None] = lambda line: None,
) -> tuple[Division, dict[Part, dict[str, int]]]:
    """Count the images that ``load_source`` will find, without reading one: the division, and images by part and class.

    Args:
        data, dataset, stand_in, choice: as of ``load_source``.
        say: gets a line about files that will be passed over.

    Raises:
        InputError: the folder is missing or must be given, has no known layout, or lacks classes or images; there are
            too few base classes for the tuning division.
    """
    check_data_named(dataset, data=data is not None, stand_in=stand_in)
    division, each = CIFAR100, _PUBLISHED
    if stand_in:
        division, each = glyphs.DIVISION, {"train": glyphs.TRAIN_PER_CLASS, "test": glyphs.TEST_PER_CLASS}
    elif data is not None:
        found = _find(expanded(data), dataset, choice)
        if found is not None:
            _say_others(found, say)
            return found.division, found.tree.counts
    division = choice.apply(division)
    return division, {part: dict.fromkeys(division.classes, count) for part, count in each.items()}


def draw_stand_in(
    reason: str,
    *,
    seed: int = 0,
    size: int = glyphs.SIZE,
    train_per_class: int | None = None,
    test_per_class: int | None = None,
    cache: Path | None = None,
) -> ImageSource:
    """The pictures of ``glyphs``, 60,000 unless fewer are asked for; the same in every run unless the seed differs.

    They are drawn at 32x32 and enlarged if ``size`` (pixels) is another: larger, not richer.

    Args:
        cache: folder in which they are kept once drawn; None: they are drawn every time.
    """
    train_per_class = train_per_class or glyphs.TRAIN_PER_CLASS
    test_per_class = test_per_class or glyphs.TEST_PER_CLASS
    train, test = _drawn(seed, train_per_class, test_per_class, cache)
    labels = np.arange(glyphs.CLASSES, dtype=np.int64)
    return ImageSource(
        name="glyphs",
        kind="stand-in",
        classes=glyphs.DIVISION.classes,
        division=glyphs.DIVISION,
        train=ImageSet(_enlarged(train, size), labels.repeat(train_per_class)),
        test=ImageSet(_enlarged(test, size), labels.repeat(test_per_class)),
        reason=reason,
    )


def _enlarged(images: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    if images.shape[1] == size:
        return images
    enlarged = np.empty((len(images), size, size, 3), np.uint8)
    for index, image in enumerate(images):
        enlarged[index] = np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR))
    return enlarged


@dataclass(frozen=True)
class _Found:
    """A folder tree, and the division and size of the images that are read from it; it has no other classes."""

    name: str
    division: Division
    size: int
    bits: int | None
    tree: FolderTree
    choice: DivisionChoice

    @classmethod
    def divided(
        cls, name: str, own: Division, size: int, root: Path, choice: DivisionChoice, bits: int | None = None
    ) -> "_Found":
        """The tree in ``root``, of whose own division the chosen one is made."""
        tree, division = list_tree(root, own), choice.apply(own)
        return cls(choice.dataset_name(name), division, size, bits, tree.only(_kept(own, choice)), choice)


def _kept(own: Division, choice: DivisionChoice) -> tuple[str, ...]:
    """The classes that a choice leaves, in an order that does not depend on the seed."""
    return own.base if choice.is_tuning else own.classes


def _divided(source: ImageSource, choice: DivisionChoice) -> ImageSource:
    """A source that has its own division under the chosen one, without images of classes that this leaves out."""
    if not choice.is_tuning:
        return source
    division, classes = choice.apply(source.division), _kept(source.division, choice)
    renumbered = np.full(len(source.classes), -1, np.int64)
    renumbered[[source.classes.index(name) for name in classes]] = np.arange(len(classes))

    def only(found: ImageSet) -> ImageSet:
        labels = renumbered[found.labels]
        return ImageSet(found.images[labels >= 0], labels[labels >= 0])

    return replace(
        source,
        name=choice.dataset_name(source.name),
        classes=classes,
        division=division,
        train=only(source.train),
        test=only(source.test),
        choice=choice,
    )


def _find(data: Path, dataset: DatasetName, choice: DivisionChoice) -> _Found | None:
    """Find the folder tree in ``data``; None if it holds the published CIFAR-100.

    Raises:
        InputError: it holds neither, or the tree lacks classes or images.
    """
    if not data.is_dir():
        raise InputError(f"no such data folder: {data}")
    known = DATASETS[dataset]
    if known.division is None:
        if not (data / SPLIT_FILE).is_file():
            raise InputError(
                f"{data} holds no {SPLIT_FILE}: write one that lists the class folders under base, open_world and novel"
            )
        split = read_split(data / SPLIT_FILE)
        name = _plain_name(data.resolve().name) or dataset
        if name in DATASETS:  # the paper's figures for the published division do not hold for this one
            name = f"{name} own split"
        return _Found.divided(name, split.division, split.size, data, choice, split.bits)
    for folder in (data, data / dataset):
        if is_tree(folder, known.division):
            return _Found.divided(dataset, known.division, known.size, folder, choice)
    if dataset == "cifar100" and ((data / _ARCHIVE_FOLDER).is_dir() or (data / _ARCHIVE).is_file()):
        return None
    raise InputError(
        f"{data} holds neither train/ and test/ (or val/) with one folder of images per class, nor the class folders "
        f"themselves{f', nor {_ARCHIVE}' if dataset == 'cifar100' else ''}: name the folder that holds one of them"
    )


def _plain_name(text: str) -> str:
    """A folder's name as results hold one: small letters, digits, and ``._-`` with single spaces for all else."""
    return re.sub(r"[^a-z0-9._-]+", " ", text.lower()).strip(" ._-")[:60].strip()


def _say_others(found: _Found, say: Callable[[str], None]) -> None:
    if line := found.tree.others_line:
        say(line)


def _read_found(found: _Found, cache: Path, say: Callable[[str], None]) -> ImageSource:
    tree = found.tree
    classes = tuple(tree.files["train"])
    files = {part: [file for of_class in by.values() for file in of_class] for part, by in tree.files.items()}
    images = dict(zip(files, _pixels([*files.values()], found, cache, say), strict=True))
    labels = {
        part: np.arange(len(by), dtype=np.int64).repeat([len(of_class) for of_class in by.values()])
        for part, by in tree.files.items()
    }
    sets = {part: ImageSet(images[part], labels[part]) for part in files}
    reason = f"from {tree.root}, {tree.layout}"
    return ImageSource(found.name, "folder", classes, found.division, sets["train"], sets["test"], reason, found.choice)


def _drawn(
    seed: int, train_per_class: int, test_per_class: int, cache: Path | None
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The stand-in's images for training and for testing, drawn now or taken from the cache."""

    def draw() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        return glyphs.draw(seed, range(glyphs.CLASSES), train_per_class, test_per_class)

    count, first = glyphs.CLASSES * (train_per_class + test_per_class), glyphs.CLASSES * train_per_class
    folder = None if cache is None or count < _WORTH_KEEPING else folder_of(cache)
    if folder is None:
        return draw()
    digest = drawing_digest(glyphs.VERSION, seed, train_per_class, test_per_class)
    pixels = kept(folder, digest, count, glyphs.SIZE)
    if pixels is None:
        pixels = np.concatenate(draw())
        keep(folder, digest, pixels)
    return pixels[:first], pixels[first:]


def _pixels(
    parts: Sequence[Sequence[str]], found: _Found, cache: Path, say: Callable[[str], None]
) -> list[NDArray[np.uint8]]:
    """The images of each part, decoded now or taken from the cache."""
    root, layout, size = found.tree.root, found.tree.layout, found.size
    files = [file for part in parts for file in part]
    ends = np.cumsum([len(part) for part in parts])[:-1].tolist()
    folder = folder_of(cache) if len(files) >= _WORTH_KEEPING else None
    digest = listing_digest(root, files, size, found.bits) if folder is not None else ""
    pixels = kept(folder, digest, len(files), size) if folder is not None else None
    if pixels is not None:
        say(f"{len(files):,} images of {root} at {size}x{size}, as decoded before (kept in {folder})")
        return np.split(pixels, ends)
    say(f"Reading {len(files):,} images from {root} at {size}x{size} ({layout}) ...")
    with PictureReader(bits=found.bits) as reader:
        pixels = read_images(files, size, reader)
    if not reader.confined:
        say("This kernel does not confine the program that decoded them: use images whose origin you trust.")
    # Files that changed meanwhile are not kept.
    if folder is not None and listing_digest(root, files, size, found.bits) == digest:
        keep(folder, digest, pixels)
    return np.split(pixels, ends)


def _load_published_in(data: Path, say: Callable[[str], None]) -> ImageSource:
    if (data / _ARCHIVE_FOLDER).is_dir():
        return read_published(data)
    archive = data / _ARCHIVE
    say(f"Unpacking {archive} ...")
    return _published(cifar100_archive.read_archive(archive), f"the published set, from {archive}")


def read_published(root: Path) -> ImageSource:
    """CIFAR-100 as published, from ``root/cifar-100-python``; every file is compared with its checksum first.

    Raises:
        InputError: a file is missing or is not the published one.
    """
    return _published(cifar100_archive.read_folder(root), f"the published set, in {root}")


def _published(found: cifar100_archive.Published, reason: str) -> ImageSource:
    train, test = (ImageSet(*found.parts[part]) for part in ("train", "test"))
    return ImageSource("cifar100", "download", found.classes, CIFAR100, train, test, reason)


def _download(cache: Path) -> str | None:
    """Fetch the published archive into ``cache``, whole or not at all; returns what prevented it, or None.

    Raises:
        InputError: the cache cannot be written, or what arrived is not the published archive.
    """
    problem = _unreachable(_URL)
    if problem is not None:
        return problem
    try:
        make_folder(cache)
        held = os.open(cache, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise InputError(f"cannot write to {cache}: {error.strerror}") from error
    try:
        # Of two runs that begin together one fetches, and the other waits for it.
        with contextlib.suppress(OSError):  # a file system without locks; what arrives is kept in one step
            fcntl.flock(held, fcntl.LOCK_EX)
        return None if (cache / _ARCHIVE_FOLDER).is_dir() else _fetch(cache)
    finally:
        os.close(held)


def _fetch(cache: Path) -> str | None:
    try:
        with urllib.request.urlopen(_request(_URL, "GET"), timeout=NETWORK_TIMEOUT) as answer:
            data = answer.read(cifar100_archive.MAX_BYTES)
    except (OSError, HTTPException) as error:
        return str(error)
    try:
        cifar100_archive.keep(data, cache)
    except StorageFailedError as error:
        raise InputError(f"cannot write to {cache}: {error}") from None
    return None


def _request(url: str, method: str) -> urllib.request.Request:
    return urllib.request.Request(url, method=method, headers={"User-Agent": "learngene"})


def _unreachable(url: str) -> str | None:
    """Why ``url`` does not answer, or None. A thread does it, because a name look-up has no time-out."""
    answer: list[str | None] = []

    def ask() -> None:
        try:
            with urllib.request.urlopen(_request(url, "HEAD"), timeout=NETWORK_TIMEOUT):
                answer.append(None)
        except (OSError, ValueError) as error:
            answer.append(str(getattr(error, "reason", error)))

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(NETWORK_TIMEOUT)
    return answer[0] if answer else f"no answer in {NETWORK_TIMEOUT:g} s"
