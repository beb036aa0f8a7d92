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
    counts = np.bincount(arrays["train_labels"], minlength=len(classes))
    if len(counts) != len(classes) or counts.min() < 2:
        poor = classes[int(counts.argmin())] if len(counts) == len(classes) else "a class without a name"
        raise InputError(f"{folder}: {poor} has fewer than two training images")
    return PrivateImages(classes, **arrays)
