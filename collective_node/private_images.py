"""The collective's own folder: base images to learn from, and held-out ones to be tested on."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from protocol.errors import InputError


@dataclass(frozen=True)
class PrivateImages:
    """Base classes only: names, and uint8 images ``[N, H, W, C]`` with int64 labels ``[N]`` that index the names."""

    classes: tuple[str, ...]
    train_images: NDArray[np.uint8]
    train_labels: NDArray[np.int64]
    heldout_images: NDArray[np.uint8]
    heldout_labels: NDArray[np.int64]


def read(folder: Path) -> PrivateImages:
    """Read a collective's folder as ``learngene world make`` cuts it; nothing of the human's is opened.

    Raises:
        InputError: a file is missing, or a class has no image.
    """
    try:
        classes = tuple(json.loads((folder / "manifest.json").read_text())["classes"])
        arrays = {
            name: np.load(folder / f"{name}.npy", allow_pickle=False)
            for name in ("train_images", "train_labels", "heldout_images", "heldout_labels")
        }
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{folder} is not a collective's folder of a world ({error}); make one first") from error
    for part in ("train", "heldout"):
        labels, images = arrays[f"{part}_labels"], arrays[f"{part}_images"]
        if images.dtype != np.uint8 or images.ndim != 4 or labels.shape != images.shape[:1]:
            raise InputError(f"{folder}: the {part} images and labels do not fit each other; cut the world again")
        if not np.isin(labels, np.arange(len(classes))).all():
            raise InputError(f"{folder}: a {part} label names no class of the manifest; cut the world again")
    counts = np.bincount(arrays["train_labels"], minlength=len(classes))
    if counts.min() < 2:
        raise InputError(f"{folder}: {classes[int(counts.argmin())]} has fewer than two training images")
    return PrivateImages(classes, **arrays)
