"""The collective's own folder: base images to train on, held-out images to test on, and an unlabelled stream."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from protocol.encoding.text import text_of
from protocol.errors import InputError
from protocol.files.user_files import read_given
from protocol.pictures.arrays import read_array

#: Bytes of the largest manifest that is read.
_MAX_BYTES = 16 << 20
#: Errors of reading a folder that is no world.
UNREADABLE = (OSError, EOFError, ValueError, KeyError, TypeError, InputError)


@dataclass(frozen=True)
class CollectiveImages:
    """A collective's own images.

    Images are uint8 ``[N, H, W, C]``, labels int64 ``[N]``; labels index ``classes``, the names of base classes.
    ``stream_images`` have no labels: known and unknown classes mixed. None if the folder holds no stream.
    """

    classes: tuple[str, ...]
    train_images: NDArray[np.uint8]
    train_labels: NDArray[np.int64]
    heldout_images: NDArray[np.uint8]
    heldout_labels: NDArray[np.int64]
    stream_images: NDArray[np.uint8] | None = None


@dataclass(frozen=True)
class Truth:
    """What an annotator knows about the open world: in a simulation, from labels that the collective never reads.

    Attributes:
        stream_names: class name of each image of the stream.
        heldout_images: images ``[N, H, W, C]`` of classes that are not base classes, kept back to measure with.
        heldout_names: class name of each of them.
    """

    stream_names: tuple[str, ...]
    heldout_images: NDArray[np.uint8]
    heldout_names: tuple[str, ...]


def read(folder: Path) -> CollectiveImages:
    """Read a collective's folder as ``learngene world make`` cuts it; the annotator's part is not opened.

    Raises:
        InputError: a file is missing, or a class has no image.
    """
    names = ["train_images", "train_labels", "heldout_images", "heldout_labels"]
    if (folder / "stream_images.npy").exists():
        names.append("stream_images")
    try:
        classes = _names(folder, "classes")
        arrays = {name: read_array(folder / f"{name}.npy") for name in names}
    except UNREADABLE as error:
        raise InputError(f"{folder} is not a collective's folder of a world ({error}); make one first") from error
    for part in ("train", "heldout"):
        _check(folder, part, arrays[f"{part}_images"], arrays[f"{part}_labels"], len(classes))
    for name in names:
        if name.endswith("_images") and arrays[name].shape[1:] != arrays["train_images"].shape[1:]:
            raise InputError(f"{folder}: {name} are not like the training images; cut the world again")
    stream = arrays.get("stream_images")
    if stream is not None and stream.dtype != np.uint8:
        raise InputError(f"{folder}: the stream's images are {stream.dtype}, not bytes; cut the world again")
    counts = np.bincount(arrays["train_labels"], minlength=len(classes))
    if counts.min() < 2:
        raise InputError(f"{folder}: {classes[int(counts.argmin())]} has fewer than two training images")
    return CollectiveImages(classes, **arrays)


def read_truth(folder: Path) -> Truth:
    """Read the annotator's part of a simulated collective's folder.

    Raises:
        InputError: it is missing or does not fit.
    """
    try:
        names = _names(folder, "human_classes")
        arrays = {
            name: read_array(folder / "human" / f"{name}.npy")
            for name in ("stream_labels", "heldout_images", "heldout_labels")
        }
    except UNREADABLE as error:
        raise InputError(
            f'{folder / "human"} holds no labels of the stream ({error}); set annotator = "annotate" to name by hand'
        ) from error
    _check(folder, "human", arrays["heldout_images"], arrays["heldout_labels"], len(names))
    stream = arrays["stream_labels"]
    if stream.ndim != 1 or stream.dtype != np.int64 or not np.isin(stream, np.arange(len(names))).all():
        raise InputError(f"{folder}: a label of the stream names no class of the manifest; cut the world again")
    return Truth(
        tuple(names[number] for number in stream),
        arrays["heldout_images"],
        tuple(names[number] for number in arrays["heldout_labels"]),
    )


def read_manifest(folder: Path) -> dict[str, object]:
    """``manifest.json`` of a party's folder.

    Raises:
        InputError: it cannot be read. ValueError: it is no JSON object.
    """
    found = json.loads(text_of(read_given(folder / "manifest.json", "the manifest", max_bytes=_MAX_BYTES)))
    if not isinstance(found, dict):
        raise ValueError("the manifest is no JSON object")
    return found


def _names(folder: Path, key: str) -> tuple[str, ...]:
    names = read_manifest(folder)[key]
    if not isinstance(names, list) or not names or len({str(name).casefold() for name in names}) != len(names):
        raise ValueError(f"{key} of the manifest is no list of different names")
    return tuple(str(name) for name in names)


def _check(folder: Path, part: str, images: NDArray[np.uint8], labels: NDArray[np.int64], classes: int) -> None:
    fit = images.dtype == np.uint8 and images.ndim == 4 and labels.dtype == np.int64
    if not fit or labels.shape != images.shape[:1] or images.shape[3] not in (1, 3):
        raise InputError(f"{folder}: the {part} images and labels do not fit each other; cut the world again")
    if not np.isin(labels, np.arange(classes)).all():
        raise InputError(f"{folder}: a {part} label names no class of the manifest; cut the world again")
