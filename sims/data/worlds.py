"""Worlds: a dataset cut into one private folder per party, so that no picture is in the folders of two parties."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from protocol.errors import InputError
from protocol.files.atomic import make_folder
from sims.data.division import Division
from sims.data.folder_tree import Part
from sims.data.images import ImageSet, ImageSource, Kind, notice

COLLECTIVE = "collective"
FORMAT: Literal[1] = 1

Rows = NDArray[np.int64]
Array = NDArray[np.uint8] | NDArray[np.int64]

# Streams of the random generator: one for each thing that is drawn, so that none depends on how much another drew.
_HALVES, _STREAM, _SHARES, _TASK_CLASSES, _TASK_SUPPORT = range(5)

_ROLES = ("base", "open_world", "novel")  # in the order of a division's classes

_STRICT = ConfigDict(frozen=True, extra="forbid", strict=True)


class WorldPlan(BaseModel):
    """How a dataset is cut.

    Attributes:
        individuals: parties among whom the novel images are split.
        ways: classes of a target task.
        target_tasks: for each shot count (support images a class) the number of target tasks; task ``t`` has a shot
            count when ``t`` is below its number, so the tasks of the smaller number are the first of the larger.
        fewest_train_images: what every base class must offer the collective, images.
        fewest_test_images: what every novel class must offer each individual for testing, images.
    """

    model_config = _STRICT

    individuals: int = Field(default=1, ge=1, le=1000)
    ways: int = Field(default=5, ge=2)
    target_tasks: Mapping[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] = Field(
        default_factory=lambda: {10: 40, 20: 10}, min_length=1
    )
    fewest_train_images: int = Field(default=10, ge=1)
    fewest_test_images: int = Field(default=10, ge=1)

    @property
    def shots(self) -> tuple[int, ...]:
        """Shot counts, ascending."""
        return tuple(sorted(self.target_tasks))

    @property
    def tasks(self) -> int:
        """Target tasks of the whole world."""
        return max(self.target_tasks.values())


class Dataset(BaseModel):
    """Which images a world is made of."""

    model_config = _STRICT

    name: str
    source: Kind


class Duplicates(BaseModel):
    """Identical pictures of the dataset (by the digest of their pixels), in images.

    Attributes:
        dropped: left out wholly, because they recur across roles or across train and test.
        repeated: further copies left out inside one role's train or test images, where one stays.
    """

    model_config = _STRICT

    dropped: int
    repeated: int


class WorldDescription(BaseModel):
    """``world.json``: what stands beside the party folders and says nothing about any single image."""

    model_config = _STRICT

    format: Literal[1]
    dataset: Dataset
    notice: str
    seed: int
    individuals: int
    ways: int
    target_tasks: dict[str, int]
    duplicates: Duplicates
    counts: dict[str, dict[str, int]]


@dataclass(frozen=True)
class World:
    """A world on disk.

    Attributes:
        folder: its root; every party's folder is ``folder/<party>``.
        description: the content of ``world.json``.
    """

    folder: Path
    description: WorldDescription

    @property
    def individuals(self) -> tuple[str, ...]:
        """Names of the individuals, ``individual-1`` first."""
        return tuple(individual_name(number) for number in range(1, self.description.individuals + 1))

    @property
    def parties(self) -> tuple[str, ...]:
        """The collective, then the individuals."""
        return (COLLECTIVE, *self.individuals)

    def folder_of(self, party: str) -> Path:
        """The private folder of a party."""
        if party not in self.parties:
            raise ValueError(f"no party {party!r} in this world")
        return self.folder / party

    @property
    def notice(self) -> str:
        """What every output must say about the images; empty where they are real."""
        return self.description.notice


def individual_name(number: int) -> str:
    """Party name of individual ``number``, counted from 1."""
    return f"individual-{number}"


def load_world(folder: Path) -> World:
    """Open a world that ``make_world`` made.

    Raises:
        InputError: the folder is no world, or party folders are missing.
    """
    try:
        description = WorldDescription.model_validate_json((folder / "world.json").read_bytes())
    except (OSError, ValidationError) as error:
        raise InputError(
            f"{folder} is not a world (no readable world.json): make one with `learngene world make`"
        ) from error
    world = World(folder, description)
    missing = [party for party in world.parties if not (folder / party / "manifest.json").is_file()]
    if missing:
        raise InputError(f"{folder} lacks the folder of {missing[0]}: make the world again")
    return world


def check_free(out: Path) -> None:
    """Refuse a folder that holds something.

    Raises:
        InputError: ``out`` is not an empty or absent folder.
    """
    if os.path.lexists(out) and not (out.is_dir() and not any(out.iterdir())):
        raise InputError(f"{out} exists already and is not overwritten: name another folder")


def check_enough(counts: Mapping[Part, Mapping[str, int]], division: Division, plan: WorldPlan) -> None:
    """Refuse images that do not suffice for a plan.

    Args:
        counts: images by part and class.

    Raises:
        InputError: a class is missing or has too few images, or the plan contradicts itself.
    """
    missing = [name for name in division.classes if name not in counts["train"] or name not in counts["test"]]
    if missing:
        raise InputError(f"the images lack {len(missing)} classes that the division names: {', '.join(missing[:5])}")
    if plan.ways > len(division.novel):
        raise InputError(f"a {plan.ways}-way task needs {plan.ways} novel classes; there are {len(division.novel)}")
    if plan.individuals > plan.tasks:
        raise InputError(f"{plan.individuals} individuals but {plan.tasks} target tasks: ask for more tasks")
    base: Mapping[Part, int] = {"train": plan.fewest_train_images, "test": 2}
    novel: Mapping[Part, int] = {"train": plan.shots[-1], "test": plan.fewest_test_images}
    for part, of in counts.items():
        for names, fewest in ((division.base, base[part]), (division.open_world, 1)):
            for name in names:
                if of[name] < fewest:
                    raise InputError(f"class {name} has {of[name]} usable {part} images; {fewest} are needed")
        for name in division.novel:
            each = of[name] // plan.individuals
            if each < novel[part]:
                raise InputError(
                    f"novel class {name} has {of[name]} usable {part} images, {each} for each of {plan.individuals} "
                    f"individuals; {novel[part]} are needed: use fewer individuals or shots"
                )


def make_world(source: ImageSource, division: Division, plan: WorldPlan, seed: int, out: Path) -> World:
    """Cut ``source`` into party folders under ``out``; whole or not at all, and the same bytes for the same arguments.

    Layout, with ``N`` the images of a file, ``[N, H, W, 3]`` uint8 for images and ``[N]`` int64 for labels::

        world.json
        collective/manifest.json   train_{images,labels}.npy  heldout_{images,labels}.npy  stream_images.npy
        collective/human/          stream_labels.npy  heldout_{images,labels}.npy
        individual-K/manifest.json support_{images,labels}.npy  test_{images,labels}.npy  tasks.json

    The collective's labels index the manifest's ``classes`` (base), the human's its ``human_classes`` (base, then
    open-world). The stream mixes half of the base test images with the open-world training images.

    Args:
        source: the images.
        division: the role of every class; other classes of the source are left out.
        plan: numbers of individuals and tasks.
        seed: 0 or more.
        out: a folder that does not exist yet, or an empty one.

    Raises:
        InputError: ``out`` is taken or cannot be written; a class is missing or has too few images for the plan.
    """
    if seed < 0:
        raise InputError(f"the seed must not be negative, got {seed}")
    out = out.expanduser().absolute()
    check_free(out)
    cut = _cut(source, division, plan, seed)
    try:
        make_folder(out.parent, mode=0o755)
        building = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    except OSError as error:
        raise InputError(f"cannot write to {out.parent}: {error.strerror}") from error
    try:
        description = _write(cut, source, division, plan, seed, building)
        os.rename(building, out)  # onto nothing or an empty folder; anything else fails
        _sync_folder(out.parent)
    except OSError as error:
        raise InputError(f"cannot make the world {out}: {error.strerror}") from error
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return World(out, description)


@dataclass(frozen=True)
class _Share:
    """One individual's rows in the source's train and test images, grouped by novel class, ``[classes][images]``."""

    support: tuple[Rows, ...]
    test: tuple[Rows, ...]


@dataclass(frozen=True)
class _Cut:
    """Rows in the source's images for every part of the world, before anything is written."""

    train: Rows
    heldout: Rows
    stream_base: Rows
    stream_open: Rows
    human_heldout: Rows
    shares: tuple[_Share, ...]
    duplicates: Duplicates


def _cut(source: ImageSource, division: Division, plan: WorldPlan, seed: int) -> _Cut:
    every: Mapping[Part, ImageSet] = {"train": source.train, "test": source.test}
    counts = {part: np.bincount(images.labels, minlength=len(source.classes)) for part, images in every.items()}
    check_enough(
        {part: dict(zip(source.classes, found, strict=True)) for part, found in counts.items()}, division, plan
    )
    rows, duplicates = _unique_rows(source, division)
    usable = {part: [found for role in _ROLES for found in rows[role, part]] for part in every}
    check_enough(
        {part: dict(zip(division.classes, map(len, found), strict=True)) for part, found in usable.items()},
        division,
        plan,
    )
    halves = [
        np.random.default_rng([seed, _HALVES, index]).permutation(found)
        for index, found in enumerate(rows["base", "test"])
    ]
    return _Cut(
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
    homes: dict[bytes, tuple[str, str] | None] = {}  # None: at home in two places
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


def _shares(train: Sequence[Rows], test: Sequence[Rows], plan: WorldPlan, seed: int) -> tuple[_Share, ...]:
    """Split every novel class's images evenly among the individuals; what does not divide is left out."""
    split: dict[str, list[list[Rows]]] = {"train": [], "test": []}
    for part, classes in (("train", train), ("test", test)):
        for index, found in enumerate(classes):
            each = len(found) // plan.individuals
            rng = np.random.default_rng([seed, _SHARES, index, int(part == "test")])
            shuffled = rng.permutation(found)
            split[part].append([np.sort(shuffled[k * each : (k + 1) * each]) for k in range(plan.individuals)])
    return tuple(
        _Share(
            support=tuple(of_class[k] for of_class in split["train"]),
            test=tuple(of_class[k] for of_class in split["test"]),
        )
        for k in range(plan.individuals)
    )


def _tasks(share: _Share, number: int, plan: WorldPlan, seed: int) -> list[dict[str, object]]:
    """The target tasks of individual ``number`` (from 0); rows index its own support and test files.

    The classes of a task depend on the seed and the task alone, not on the number of individuals.
    """
    support_starts = np.cumsum([0, *(len(rows) for rows in share.support)])
    test_starts = np.cumsum([0, *(len(rows) for rows in share.test)])
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
                "test": [
                    row for index in classes for row in range(int(test_starts[index]), int(test_starts[index + 1]))
                ],
            }
        )
    return tasks


def _write(
    cut: _Cut, source: ImageSource, division: Division, plan: WorldPlan, seed: int, folder: Path
) -> WorldDescription:
    train, test = source.train, source.test
    common: dict[str, object] = {
        "format": FORMAT,
        "dataset": {"name": source.name, "source": source.kind},
        "image": {"height": train.images.shape[1], "width": train.images.shape[2], "channels": train.images.shape[3]},
        "seed": seed,
    }
    human_classes = division.base + division.open_world
    index_of = {name: index for index, name in enumerate(human_classes)}
    human_label = np.array([index_of.get(name, -1) for name in source.classes], dtype=np.int64)
    order = np.random.default_rng([seed, _STREAM]).permutation(len(cut.stream_base) + len(cut.stream_open))
    stream_labels = human_label[np.concatenate([test.labels[cut.stream_base], train.labels[cut.stream_open]])][order]

    def stream_images() -> NDArray[np.uint8]:
        images = np.empty((len(order), *train.images.shape[1:]), np.uint8)
        place = np.argsort(order)  # where in the stream each picture comes
        images[place[: len(cut.stream_base)]] = test.images[cut.stream_base]
        images[place[len(cut.stream_base) :]] = train.images[cut.stream_open]
        return images

    collective_counts = _write_party(
        folder / COLLECTIVE,
        {**common, "party": COLLECTIVE, "classes": division.base, "human_classes": human_classes},
        {
            "train_images": lambda: train.images[cut.train],
            # Base names come first, so both numberings agree.
            "train_labels": lambda: human_label[train.labels[cut.train]],
            "heldout_images": lambda: test.images[cut.heldout],
            "heldout_labels": lambda: human_label[test.labels[cut.heldout]],
            "stream_images": stream_images,
            "human/stream_labels": lambda: stream_labels,
            "human/heldout_images": lambda: test.images[cut.human_heldout],
            "human/heldout_labels": lambda: human_label[test.labels[cut.human_heldout]],
        },
        {},
    )
    counts = {COLLECTIVE: collective_counts}
    for number, share in enumerate(cut.shares):
        party = individual_name(number + 1)
        tasks = _tasks(share, number, plan, seed)
        counts[party] = _write_party(
            folder / party,
            {**common, "party": party, "classes": division.novel, "shots": plan.shots, "tasks": len(tasks)},
            {**_of_share("support", train, share.support), **_of_share("test", test, share.test)},
            {"tasks.json": {"format": FORMAT, "tasks": tasks}},
        )
        counts[party]["tasks"] = len(tasks)
    description = WorldDescription(
        format=FORMAT,
        dataset=Dataset(name=source.name, source=source.kind),
        notice=notice(source.name, source.kind),
        seed=seed,
        individuals=plan.individuals,
        ways=plan.ways,
        target_tasks={str(shots): plan.target_tasks[shots] for shots in plan.shots},
        duplicates=cut.duplicates,
        counts=counts,
    )
    _write_file(folder / "world.json", (description.model_dump_json(indent=1) + "\n").encode())
    _sync_folder(folder)
    return description


def _of_share(name: str, images: ImageSet, rows_by_class: Sequence[Rows]) -> dict[str, Callable[[], Array]]:
    """An individual's pictures and their labels, which count the novel classes."""
    labels = np.arange(len(rows_by_class), dtype=np.int64)
    return {
        f"{name}_images": lambda: images.images[np.concatenate(rows_by_class)],
        f"{name}_labels": lambda: labels.repeat([len(rows) for rows in rows_by_class]),
    }


def _write_party(
    folder: Path,
    manifest: Mapping[str, object],
    arrays: Mapping[str, Callable[[], Array]],
    documents: Mapping[str, object],
) -> dict[str, int]:
    """Write one party's files and the manifest that holds their digests; returns the images in each image file.

    Arrays are made one after the other, when they are written, so that no two of them are in memory at once.
    """
    folder.mkdir(mode=0o700)
    digests: dict[str, str] = {}
    counts: dict[str, int] = {}
    for name, make in arrays.items():
        array = make()
        path = folder / f"{name}.npy"
        path.parent.mkdir(mode=0o700, exist_ok=True)
        digests[f"{name}.npy"] = _write_file(path, array)
        if name.endswith("_images"):
            counts[name.removesuffix("_images").replace("/", "_")] = len(array)
        del array  # before the next one is made
    for name, document in documents.items():
        digests[name] = _write_file(folder / name, _json(document))
    _write_file(folder / "manifest.json", _json({**manifest, "counts": counts, "files": digests}))
    for path in {folder, *((folder / name).parent for name in arrays)}:
        _sync_folder(path)
    return counts


def _json(document: object) -> bytes:
    return (json.dumps(document, ensure_ascii=True, sort_keys=True, separators=(",", ":")) + "\n").encode()


def _write_file(path: Path, content: bytes | Array) -> str:
    """Write durably, readable by the owner alone; returns the file's SHA-256 (hex)."""
    with open(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600), "w+b") as file:
        if isinstance(content, bytes):
            file.write(content)
        else:
            np.save(file, content, allow_pickle=False)
        file.flush()
        os.fsync(file.fileno())
        file.seek(0)
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
