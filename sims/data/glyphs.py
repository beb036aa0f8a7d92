"""The stand-in images: 100 classes of 32x32 colour pictures, each a figure of shared strokes, drawn from a seed.

A class is four strokes of an alphabet of twenty, each at its place and turned its way; shift, size, turn, stretch,
warp, colours, background, stray strokes and noise change from picture to picture. Novel classes are new figures of
the same strokes, so what is learned on base classes serves them. Measured on 16 five-way novel tasks of 10 shots: a
network of seven convolutions from scratch 50 %, transfer-free patches 58 %, logistic regression on the features of
the same network trained on the base classes 85 %.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sims.data.division import Division

#: Of the pictures: increase it when anything changes what is drawn.
VERSION = 1
CLASSES = 100
SIZE = 32
TRAIN_PER_CLASS = 500
TEST_PER_CLASS = 100

#: Names in order: 64 base, 16 open-world, 20 novel.
DIVISION = Division(
    base=tuple(f"glyph_{index:03d}" for index in range(64)),
    open_world=tuple(f"glyph_{index:03d}" for index in range(64, 80)),
    novel=tuple(f"glyph_{index:03d}" for index in range(80, CLASSES)),
)

STROKES = 20  # the alphabet that all classes share: features learned on base classes also serve the novel ones
STROKES_PER_CLASS = 4
STROKE_PIXELS = 64  # resolution at which one stroke is drawn before it is sampled
CLUTTER = 3  # stray strokes in the background of every picture
KNOTS = 4  # a side of the coarse grid under the smooth background and the warp
INK_TENDENCY = 0.2  # colours say a little about the class, far less than its form
GROUND_TENDENCY = 0.15
DARK_INK = 0.3  # share of the pictures whose figure is darker than its background
BATCH = 250  # pictures drawn together: small enough to stay in the cache

_TRAIN, _TEST, _ALPHABET, _LAYOUT = range(4)  # streams of the random generator

Floats = NDArray[np.float32]
Images = NDArray[np.uint8]


@dataclass(frozen=True)
class Alphabet:
    """The strokes, and the composition of every class from them.

    Attributes:
        strokes: ink of each stroke, ``[STROKES + 1, STROKE_PIXELS, STROKE_PIXELS]`` in 0..1; zero on its border.
        part: stroke of each part of each class, ``[CLASSES, STROKES_PER_CLASS]``.
        centre: where the part stands in the figure, ``[CLASSES, STROKES_PER_CLASS, 2]``, the figure spans -1..1.
        angle: how the part is turned, radians, ``[CLASSES, STROKES_PER_CLASS]``.
        scale: half the part's extent, ``[CLASSES, STROKES_PER_CLASS]``.
        ink: colour that the class's figures tend to, relative to the background, ``[CLASSES, 3]``.
        ground: colour that its backgrounds tend to, ``[CLASSES, 3]``.
    """

    strokes: Floats
    part: NDArray[np.int64]
    centre: Floats
    angle: Floats
    scale: Floats
    ink: Floats
    ground: Floats


def draw_alphabet(seed: int) -> Alphabet:
    """Strokes (smooth random curves) and the composition of every class from them."""
    rng = np.random.default_rng([seed, _ALPHABET])
    strokes = np.stack([_draw_stroke(rng) for _ in range(STROKES)])
    rng = np.random.default_rng([seed, _LAYOUT])
    part = np.stack([rng.choice(STROKES, STROKES_PER_CLASS, replace=False) for _ in range(CLASSES)])
    shape = (CLASSES, STROKES_PER_CLASS)
    # Parts stand around the figure's centre, so that none hides another.
    turn = rng.uniform(0, 2 * np.pi, (CLASSES, 1)) + np.arange(STROKES_PER_CLASS) * (2 * np.pi / STROKES_PER_CLASS)
    turn = turn + rng.normal(0, 0.25, shape)
    radius = rng.uniform(0.3, 0.6, shape)
    centre = np.stack([radius * np.cos(turn), radius * np.sin(turn)], axis=-1)
    return Alphabet(
        strokes=strokes.astype(np.float32),
        part=part,
        centre=centre.astype(np.float32),
        angle=rng.uniform(0, 2 * np.pi, shape).astype(np.float32),
        scale=rng.uniform(0.4, 0.6, shape).astype(np.float32),
        ink=rng.normal(0, INK_TENDENCY, (CLASSES, 3)).astype(np.float32),
        ground=rng.normal(0.5, GROUND_TENDENCY, (CLASSES, 3)).astype(np.float32),
    )


def draw(seed: int, classes: Sequence[int], train: int, test: int) -> tuple[Images, Images]:
    """Pictures of some classes.

    A picture of a class depends on the seed, the class, the part (train or test) and its batch alone.

    Args:
        seed: of the whole dataset.
        classes: numbers in 0..99.
        train: training pictures a class.
        test: test pictures a class.

    Returns:
        ``[len(classes) * train, 32, 32, 3]`` and ``[len(classes) * test, 32, 32, 3]``, uint8, ordered as ``classes``.
    """
    alphabet = draw_alphabet(seed)
    parts = tuple(np.empty((len(classes), count, SIZE, SIZE, 3), np.uint8) for count in (train, test))

    def fill(job: tuple[int, int, int]) -> None:
        part, position, start = job
        target = parts[part][position, start : start + BATCH]
        rng = np.random.default_rng([seed, part, classes[position], start])
        target[...] = _draw_batch(alphabet, classes[position], len(target), rng)

    jobs = [
        (part, position, start)
        for part, count in ((_TRAIN, train), (_TEST, test))
        for position in range(len(classes))
        for start in range(0, count, BATCH)
    ]
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:  # numpy releases the interpreter's lock
        for _ in pool.map(fill, jobs):
            pass
    return parts[0].reshape(-1, SIZE, SIZE, 3), parts[1].reshape(-1, SIZE, SIZE, 3)


def _draw_stroke(rng: np.random.Generator) -> Floats:
    """Ink of one smooth curve of three random bends, ``[STROKE_PIXELS, STROKE_PIXELS]``, inside the unit disc."""
    time = np.linspace(0, 1, 60)
    knots = rng.uniform(-0.8, 0.8, (4, 2))
    bernstein = np.stack([(1 - time) ** 3, 3 * time * (1 - time) ** 2, 3 * time**2 * (1 - time), time**3], axis=1)
    curve = bernstein @ (knots * np.array([[1], [1.8], [1.8], [1]]))
    curve -= curve.mean(0)
    curve *= 0.8 / np.abs(curve).max()
    axis = np.linspace(-1, 1, STROKE_PIXELS)
    grid = np.stack(np.meshgrid(axis, axis), axis=-1)[:, :, None, :]
    distance = np.sqrt(((grid - curve) ** 2).sum(-1)).min(-1)
    ink: Floats = np.clip((0.2 - distance) / 0.12, 0, 1).astype(np.float32)
    return ink


_AXIS = (np.arange(SIZE, dtype=np.float32) - (SIZE - 1) / 2) / (SIZE / 2)
_GRID_X, _GRID_Y = (plane.ravel() for plane in np.meshgrid(_AXIS, _AXIS))  # [1024] each, -1..1


#: Linear interpolation from the knots to the pixels of one axis, ``[KNOTS, SIZE]``.
_HAT: Floats = np.maximum(
    0, 1 - np.abs((_AXIS + 1) / 2 * (KNOTS - 1) - np.arange(KNOTS, dtype=np.float32)[:, None])
).astype(np.float32)


def _field(rng: np.random.Generator, shape: tuple[int, int], deviation: float) -> Floats:
    """Smooth random fields ``[*shape, 1024]``."""
    coarse: Floats = rng.standard_normal((*shape, KNOTS, KNOTS), dtype=np.float32) * np.float32(deviation)
    # einsum, not a product of matrices: threads of a linear algebra library would fight with ours.
    rows = np.einsum("mnab,bx->mnax", coarse, _HAT)
    field: Floats = np.einsum("mnax,ay->mnyx", rows, _HAT).reshape(*shape, SIZE * SIZE)
    return field


def _stamp(
    strokes: Floats, which: NDArray[np.int64], x: Floats, y: Floats, centre: Floats, angle: Floats, scale: Floats
) -> Floats:
    """Ink ``[N, 1024]`` of one stroke for each picture, at the points ``x``, ``y`` (``[N, 1024]``) of the figure.

    Args:
        strokes: the alphabet.
        which: ``[N]`` stroke numbers.
        x: first coordinate of every pixel in the figure's frame.
        y: second coordinate.
        centre: ``[N, 2]``.
        angle: ``[N]`` radians.
        scale: ``[N]`` half extent.
    """
    half = np.float32(STROKE_PIXELS / 2)
    cosine = (np.cos(angle) / scale * half)[:, None]
    sine = (np.sin(angle) / scale * half)[:, None]
    dx = x - centre[:, :1]
    dy = y - centre[:, 1:]
    column = np.clip(cosine * dx + sine * dy + half, 0, STROKE_PIXELS - 1).astype(np.int32)
    row = np.clip(cosine * dy - sine * dx + half, 0, STROKE_PIXELS - 1).astype(np.int32)
    row *= STROKE_PIXELS
    row += column
    row += (which[:, None] * STROKE_PIXELS**2).astype(np.int32)
    ink: Floats = strokes.reshape(-1).take(row)
    return ink


def _draw_batch(alphabet: Alphabet, index: int, count: int, rng: np.random.Generator) -> Images:
    """``[count, 32, 32, 3]`` pictures of one class."""

    def uniform(low: float, high: float, *shape: int) -> Floats:
        return rng.uniform(low, high, (count, *shape)).astype(np.float32)

    def normal(deviation: float, *shape: int) -> Floats:
        drawn: Floats = rng.standard_normal((count, *shape), np.float32) * np.float32(deviation)
        return drawn

    # Where the figure stands: shift, turn, size, stretch, and a smooth warp of the plane.
    angle, size, stretch, shift = normal(0.2), uniform(0.8, 1.1), normal(0.1), uniform(-0.15, 0.15, 2)
    warp = _field(rng, (2, count), 0.06)
    dx, dy = _GRID_X + warp[0] - shift[:, :1], _GRID_Y + warp[1] - shift[:, 1:]
    cosine, sine = (np.cos(angle) / size)[:, None], (np.sin(angle) / size)[:, None]
    wide = np.exp(stretch)[:, None]
    x, y = (cosine * dx + sine * dy) * wide, (cosine * dy - sine * dx) / wide

    # Background: smooth colours and stray strokes of the same alphabet, so that ink alone says nothing.
    picture = (alphabet.ground[index] + normal(0.2, 3))[:, :, None] + _field(rng, (count, 3), 0.12)
    for _ in range(CLUTTER):
        ink = _stamp(
            alphabet.strokes,
            rng.integers(0, STROKES, count),
            _GRID_X,
            _GRID_Y,
            uniform(-1, 1, 2),
            uniform(0, 2 * np.pi),
            uniform(0.25, 0.5),
        )
        picture += ink[:, None, :] * normal(0.15, 3)[:, :, None]

    # The figure: one colour that differs from the background in brightness, a little different for each part.
    tone = np.where(rng.random(count) < DARK_INK, -1, 1).astype(np.float32) * uniform(0.25, 0.6)
    colour = tone[:, None] + alphabet.ink[index] + normal(0.15, 3)
    for part in range(STROKES_PER_CLASS):
        ink = _stamp(
            alphabet.strokes,
            np.full(count, alphabet.part[index, part]),
            x,
            y,
            alphabet.centre[index, part] + normal(0.06, 2),
            alphabet.angle[index, part] + normal(0.15),
            alphabet.scale[index, part] * np.exp(normal(0.1)),
        )
        picture += ink[:, None, :] * (colour + normal(0.08, 3))[:, :, None]

    picture += normal(0.06, 3, SIZE * SIZE)
    picture *= 255
    np.clip(picture, 0, 255, out=picture)
    pixels: Images = picture.astype(np.uint8).reshape(count, 3, SIZE, SIZE).transpose(0, 2, 3, 1)
    return pixels
