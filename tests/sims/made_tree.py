"""Folder trees of random pictures, one folder a class."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sims.data.division import Division

CLASSES = ("ant", "bee", "cat", "dog", "elk")
DIVISION = Division(base=("ant", "bee"), open_world=("cat",), novel=("dog", "elk"))


def pixels(seed: int, size: tuple[int, int] = (32, 32)) -> NDArray[np.uint8]:
    """A random picture ``[*size, 3]`` around a random grey."""
    generator = np.random.default_rng(seed)
    grey = generator.integers(50, 200)
    return (grey + generator.integers(-50, 50, (*size, 3))).astype(np.uint8)


def make_tree(
    root: Path,
    division: Division = DIVISION,
    *,
    parts: Sequence[str] = ("train", "test"),
    each: int = 2,
    size: tuple[int, int] = (32, 32),
) -> dict[str, list[NDArray[np.uint8]]]:
    """Write ``root/<part>/<class>/<number>.png``, in another order than that of their names; returns the pictures by
    part, in the order of the division and of the names."""
    made: dict[str, list[NDArray[np.uint8]]] = {}
    for offset, part in enumerate(parts):
        total = each * len(division.classes)
        made[part] = [pixels(1000 * offset + index, size) for index in range(total)]
        for index in reversed(range(total)):
            folder = root / part / division.classes[index // each]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(made[part][index]).save(folder / f"{index:04d}.png")
    return made
