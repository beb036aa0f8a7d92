"""Cuts a dataset: which images each party of a world gets, and which target tasks; equal seeds give equal cuts."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from protocol.errors import InputError
from sims.data.division import Division
from sims.data.folder_tree import Part
from sims.data.images import ImageSet, ImageSource
from sims.data.world_plan import WorldPlan, check_enough

Rows = NDArray[np.int64]

# Streams of the random generator: one for each thing that is drawn, so that none depends on how much another drew.
_HALVES, STREAM, _SHARES, _TASK_CLASSES, _TASK_SUPPORT, _TASK_TEST = range(6)

_ROLES = ("base", "open_world", "novel")  # in the order of a division's classes

_STRICT = ConfigDict(frozen=True, extra="forbid", strict=True)


class Duplicates(BaseModel):
    """Identical pictures of the dataset (by the digest of their pixels), in images.

    Attributes:
        dropped: left out completely, because they recur across roles or across train and test.
        repeated: further copies left out inside one role's train or test images, where one copy stays.
    """

    model_config = _STRICT

    dropped: int
    repeated: int


@dataclass(frozen=True)
class Share:
    """One individual's rows in the source's train and test images, grouped by novel class, ``[classes][images]``."""

    support: tuple[Rows, ...]
    test: tuple[Rows, ...]


@dataclass(frozen=True)
class Cut:
    """Rows in the source's images for every part of the world, before anything is written."""

    train: Rows
    heldout: Rows
    stream_base: Rows
    stream_open: Rows
    human_heldout: Rows
    shares: tuple[Share, ...]
    duplicates: Duplicates


def cut_images(source: ImageSource, division: Division, plan: WorldPlan, seed: int) -> Cut:
    every: Mapping[Part, ImageSet] = {"train": source.train, "test": source.test}
    counts = {part: np.bincount(images.labels, minlength=len(source.classes)) for part, images in every.items()}
    check_enough(
        {part: dict(zip(source.classes, found, strict=True)) for part, found in counts.items()}, division, plan
    )
    rows, duplicates = _unique_rows(source, division)
    usable = {part: [found for role in _ROLES for found in rows[role, part]] for part in every}
    try:
        check_enough(
            {part: dict(zip(division.classes, map(len, found), strict=True)) for part, found in usable.items()},
            division,
            plan,
        )
    except InputError as error:
        # Without the copies there were enough: see above.
        raise InputError(
            f"{error}. Identical pictures are left out: {duplicates.dropped} that recur across roles or parts, "
            f"{duplicates.repeated} further copies, also of another class"
        ) from None
    halves = [
        np.random.default_rng([seed, _HALVES, index]).permutation(found)
        for index, found in enumerate(rows["base", "test"])
    ]
    return Cut(
        train=np.concatenate(rows["base", "train"]),
        heldout=np.concatenate([np.sort(found[: len(found) // 2]) for found in halves]),
        stream_base=np.concatenate([np.sort(found[len(found) // 2 :]) for found in halves]),
        stream_open=np.concatenate(rows["open_world", "train"]),
        human_heldout=np.concatenate(rows["open_world", "test"]),
        shares=_shares(rows["novel", "train"], rows["novel", "test"], plan, seed),
        duplicates=duplicates,
    )


def _unique_rows(source: ImageSource, division: Division) -> tuple[dict[tuple[str, str], list[Rows]], Duplicates]:
    """Rows by (role, part) and class, without recurring pictures.

    A picture (SHA-256 of its pixels) that occurs in two roles, or in train and test, is dropped everywhere; one that
    recurs inside a role's train or test images stays once, at its first place.
    """
    roles = dict(zip(_ROLES, (division.base, division.open_world, division.novel), strict=True))
    homes: dict[bytes, tuple[str, str] | None] = {}  # None: it occurs in two places
    found: dict[tuple[str, str], list[list[tuple[int, bytes]]]] = {}
    for part, images in (("train", source.train), ("test", source.test)):
        by_class = _rows_by_class(images, len(source.classes))
        for role, names in roles.items():
            home = (role, part)
            found[home] = []
            for name in names:
                members = by_class[source.classes.index(name)]
                marked = [(int(row), hashlib.sha256(images.images[row].data).digest()) for row in members]
                found[home].append(marked)
                for _, digest in marked:
                    if homes.setdefault(digest, home) != home:
                        homes[digest] = None
    kept: dict[tuple[str, str], list[Rows]] = {}
    dropped = repeated = 0
    for home, classes in found.items():
        seen: set[bytes] = set()
        kept[home] = []
        for marked in classes:
            stays: list[int] = []
            for row, digest in marked:
                if homes[digest] is None:
                    dropped += 1
                elif digest in seen:
                    repeated += 1
                else:
                    seen.add(digest)
                    stays.append(row)
            kept[home].append(np.array(stays, dtype=np.int64))
    return kept, Duplicates(dropped=dropped, repeated=repeated)


def _rows_by_class(images: ImageSet, classes: int) -> list[Rows]:
    order = np.argsort(images.labels, kind="stable")
    bounds = np.searchsorted(images.labels[order], np.arange(1, classes))
    return [rows.astype(np.int64) for rows in np.split(order, bounds)]


def _shares(train: Sequence[Rows], test: Sequence[Rows], plan: WorldPlan, seed: int) -> tuple[Share, ...]:
    """Split every novel class's images evenly among the individuals; what does not divide is left out."""
    split: dict[str, list[list[Rows]]] = {"train": [], "test": []}
    for part, classes in (("train", train), ("test", test)):
        for index, found in enumerate(classes):
            each = len(found) // plan.individuals
            rng = np.random.default_rng([seed, _SHARES, index, int(part == "test")])
            shuffled = rng.permutation(found)
            split[part].append([np.sort(shuffled[k * each : (k + 1) * each]) for k in range(plan.individuals)])
    return tuple(
        Share(
            support=tuple(of_class[k] for of_class in split["train"]),
            test=tuple(of_class[k] for of_class in split["test"]),
        )
        for k in range(plan.individuals)
    )


def target_tasks(share: Share, number: int, plan: WorldPlan, seed: int) -> list[dict[str, object]]:
    """The target tasks of individual ``number`` (from 0); rows index its own support and test files.

    The classes of a task depend on the seed and the task alone, not on the number of individuals.
    """
    support_starts = np.cumsum([0, *(len(rows) for rows in share.support)])
    tasks: list[dict[str, object]] = []
    for task in range(number, plan.tasks, plan.individuals):
        classes = np.random.default_rng([seed, _TASK_CLASSES, task]).choice(
            len(share.support), plan.ways, replace=False
        )
        rng = np.random.default_rng([seed, _TASK_SUPPORT, task])
        # One order for each class: fewer shots are the first of more shots.
        orders = [support_starts[index] + rng.permutation(len(share.support[index])) for index in classes]
        tasks.append(
            {
                "task": task,
                "classes": [int(index) for index in classes],
                "support": {
                    str(shots): [int(row) for order in orders for row in order[:shots]]
                    for shots in plan.shots
                    if task < plan.target_tasks[shots]
                },
                "test": _test_rows(share, classes, plan, np.random.default_rng([seed, _TASK_TEST, task])),
            }
        )
    return tasks


def _test_rows(share: Share, classes: NDArray[np.int64], plan: WorldPlan, rng: np.random.Generator) -> list[int]:
    """The test images of a task: of each class all, or so many as the plan says."""
    starts = np.cumsum([0, *(len(rows) for rows in share.test)])
    rows: list[int] = []
    for index in classes:
        there = np.arange(starts[index], starts[index + 1])
        chosen = there if plan.test_images is None else np.sort(rng.choice(there, plan.test_images, replace=False))
        rows += chosen.tolist()
    return rows
