"""Worlds: a dataset cut into one private folder per party. No picture is in the folders of two parties."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from protocol.encoding.text import text_of
from protocol.errors import InputError
from protocol.files.atomic import make_folder
from protocol.files.user_files import expanded, read_given
from sims.data.division import Division
from sims.data.division_choice import OWN, DivisionChoice
from sims.data.images import ImageSet, ImageSource, Kind, notice
from sims.data.world_cut import STREAM, Cut, Duplicates, Rows, cut_images, target_tasks
from sims.data.world_plan import WorldPlan

COLLECTIVE = "collective"
FORMAT: Literal[1] = 1
_MAX_BYTES = 16 << 20

Array = NDArray[np.uint8] | NDArray[np.int64]

_STRICT = ConfigDict(frozen=True, extra="forbid", strict=True)


class Dataset(BaseModel):
    """Name and source of the images of a world."""

    model_config = _STRICT

    name: str
    source: Kind


class WorldDescription(BaseModel):
    """``world.json``: the description beside the party folders, without data about any single image.

    Attributes:
        division: which division of the dataset's classes this is; worlds of earlier versions have its own.
        test_images: of each class in a target task; None, as in earlier versions: all.
    """

    model_config = _STRICT

    format: Literal[1]
    dataset: Dataset
    division: DivisionChoice = OWN
    notice: str
    seed: int
    individuals: int
    ways: int
    target_tasks: dict[str, int]
    test_images: int | None = None
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
        """The notice that every output carries: about images that are not real, and the tuning division; or empty."""
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
        data = read_given(folder / "world.json", "the world", max_bytes=_MAX_BYTES)
        description = WorldDescription.model_validate_json(text_of(data))
    except (InputError, ValueError) as error:
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


def make_world(source: ImageSource, division: Division, plan: WorldPlan, seed: int, out: Path) -> World:
    """Cut ``source`` into party folders under ``out``; completely or not at all; equal arguments give equal bytes.

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
    out = expanded(out).absolute()
    check_free(out)
    cut = cut_images(source, division, plan, seed)
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


def _write(
    cut: Cut, source: ImageSource, division: Division, plan: WorldPlan, seed: int, folder: Path
) -> WorldDescription:
    train, test = source.train, source.test
    common: dict[str, object] = {
        "format": FORMAT,
        "dataset": {"name": source.name, "source": source.kind},
        "image": {"height": train.images.shape[1], "width": train.images.shape[2], "channels": train.images.shape[3]},
        "seed": seed,
    }
    human_classes = division.base + division.open_world
    counts = {
        COLLECTIVE: _write_party(
            folder / COLLECTIVE,
            {**common, "party": COLLECTIVE, "classes": division.base, "human_classes": human_classes},
            _of_collective(cut, source, human_classes, seed),
            {},
        )
    }
    for number, share in enumerate(cut.shares):
        party = individual_name(number + 1)
        tasks = target_tasks(share, number, plan, seed)
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
        division=source.choice,
        notice=notice(source.name, source.kind, source.choice),
        seed=seed,
        individuals=plan.individuals,
        ways=plan.ways,
        target_tasks={str(shots): plan.target_tasks[shots] for shots in plan.shots},
        test_images=plan.test_images,
        duplicates=cut.duplicates,
        counts=counts,
    )
    _write_file(folder / "world.json", (description.model_dump_json(indent=1) + "\n").encode())
    _sync_folder(folder)
    return description


def _of_collective(
    cut: Cut, source: ImageSource, human_classes: Sequence[str], seed: int
) -> dict[str, Callable[[], Array]]:
    """The collective's images and labels, and what only its human may see."""
    train, test = source.train, source.test
    index_of = {name: index for index, name in enumerate(human_classes)}
    # Base names come first, so this numbering and the collective's own agree.
    human_label = np.array([index_of.get(name, -1) for name in source.classes], dtype=np.int64)
    order = np.random.default_rng([seed, STREAM]).permutation(len(cut.stream_base) + len(cut.stream_open))
    stream_labels = human_label[np.concatenate([test.labels[cut.stream_base], train.labels[cut.stream_open]])][order]

    def stream_images() -> NDArray[np.uint8]:
        images = np.empty((len(order), *train.images.shape[1:]), np.uint8)
        place = np.argsort(order)  # where in the stream each picture comes
        images[place[: len(cut.stream_base)]] = test.images[cut.stream_base]
        images[place[len(cut.stream_base) :]] = train.images[cut.stream_open]
        return images

    return {
        "train_images": lambda: train.images[cut.train],
        "train_labels": lambda: human_label[train.labels[cut.train]],
        "heldout_images": lambda: test.images[cut.heldout],
        "heldout_labels": lambda: human_label[test.labels[cut.heldout]],
        "stream_images": stream_images,
        "human/stream_labels": lambda: stream_labels,
        "human/heldout_images": lambda: test.images[cut.human_heldout],
        "human/heldout_labels": lambda: human_label[test.labels[cut.human_heldout]],
    }


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
