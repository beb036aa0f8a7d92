"""The target of a measured attack: the learngene as the individual holds it, and the collective's images."""

import contextlib
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from collective_node import collective_images
from collective_node.collective_images import CollectiveImages, Truth
from collective_node.task_sequence import sequence
from protocol.errors import InputError, StorageFailedError, WrongAudienceError
from protocol.exchange.individual_ledger import IndividualLedger
from protocol.exchange.verification import VerifiedLearngene, open_sealed
from protocol.learngene.learngene import Learngene
from protocol.node.configuration import NodeTable
from protocol.node.endpoints import check_ledger, node_of
from protocol.node.load_keys import load_keys
from protocol.pictures.arrays import read_array
from protocol.visible_text import visible_name
from sims.data.worlds import Dataset, World, load_world
from sims.leakage.probe import LabelledImages
from sims.run.run_folder import RunRecord, SettingsFile, read_record, read_settings


@dataclass(frozen=True)
class AttackedRun:
    """A run and its released learngene.

    Attributes:
        learngene: of the form ``condensed``, opened with the first individual's key: everything that an individual
            receives.
        images: the collective's folder, reduced to the base classes that its tasks taught; the stream to those and the
            open-world classes.
        truth: the labels of that stream.
        absent: images to train on and further ones, by name, of classes that the collective never saw.
        dataset: name and source of the images; ``notice``: the notice that every output must carry about them.
    """

    folder: Path
    record: RunRecord
    kept: SettingsFile
    learngene: Learngene
    images: CollectiveImages
    truth: Truth
    absent: dict[str, tuple[NDArray[np.uint8], NDArray[np.uint8]]]
    dataset: Dataset
    notice: str


def released(folder: Path) -> Learngene:
    """The learngene of the form ``condensed`` that the first individual of a run has inherited, opened with its key.

    The run may be a stranger's: only what lies in its folder is used, and nothing of it is changed.

    Raises:
        InputError: it is no run, its first individual inherited no learngene with a Fisher diagonal, or something in it
            leads elsewhere.
        StorageFailedError: the inherited files were changed on disk, or are of another version.
    """
    read_record(folder)
    config = folder / "nodes" / "individual-1" / "config.toml"
    if not config.is_file():
        raise InputError(f"{folder} holds no nodes: it was never started; run it first")
    check_closed(folder)
    node = node_of(config, "individual")
    for path in (node.data, node.state, node.trust, node.key, node.encryption_key, node.key_file):
        if path is not None and not path.resolve().is_relative_to(folder.resolve()):
            raise InputError(f"{config} names {path}, which lies outside the run; attack the run where it was made")
    verified = _inherited(node)
    if verified is None:
        raise InputError(
            "the individual of this run holds no learngene of the form condensed, the one that is attacked"
        )
    if verified.learngene.fisher is None:
        raise InputError("the released learngene holds no Fisher diagonal; there is nothing to compare")
    return verified.learngene


def _inherited(node: NodeTable) -> VerifiedLearngene | None:
    """The newest learngene of the form ``condensed`` in the ledger of a node, opened; the ledger is only read."""
    check_ledger(node)
    keys = load_keys(node)
    with contextlib.closing(IndividualLedger(node.state, reading=True)) as ledger:
        newest = ledger.latest(node.run_id, "condensed")
        if newest is None or keys.encryption is None:
            return None
        try:
            return open_sealed(ledger.load(newest), keys.encryption)
        except WrongAudienceError as error:
            raise StorageFailedError(f"the inherited learngene cannot be opened: {error}") from None


def check_closed(folder: Path) -> None:
    """Refuse a run folder with a link that leads out of it: a stranger's would have another's images attacked.

    Raises:
        InputError: there is one.
    """
    home = folder.resolve()
    for above, folders, files in os.walk(home):
        for path in (Path(above, name) for name in (*folders, *files)):
            if path.is_symlink() and not path.resolve().is_relative_to(home):
                raise InputError(f"{visible_name(path)} is a link out of the run; put what it leads to in its place")


def open_attacked(folder: Path, learngene: Learngene) -> AttackedRun:
    """Open a run folder for an attack on a release of it.

    Raises:
        InputError: it is no run, or its world is gone.
    """
    record, kept = read_record(folder), read_settings(folder)
    world = load_world(folder / "world")
    settings = kept.settings.collective
    home = world.folder_of("collective")
    whole, truth = collective_images.read(home), collective_images.read_truth(home)
    count = len(whole.classes)
    rng = np.random.default_rng([kept.settings.seed, count])  # drawn as the collective itself draws its tasks
    tasks = sequence(count, settings.classes_per_task, settings.tasks, rng)
    taught = sorted({number for task in tasks for number in task})
    untaught = set(whole.classes) - {whole.classes[number] for number in taught}
    images, truth = without_in_stream(subset(whole, taught), truth, untaught)
    return AttackedRun(
        folder=folder,
        record=record,
        kept=kept,
        learngene=learngene,
        images=images,
        truth=truth,
        absent=_untaught(whole, taught) | _novel(world),
        dataset=world.description.dataset,
        notice=world.notice,
    )


def subset(images: CollectiveImages, classes: Sequence[int]) -> CollectiveImages:
    """The base images of some classes, numbered from 0 in this order; the stream is unchanged.

    Raises:
        ValueError: there is no class.
    """
    if not classes:
        raise ValueError("no class is left")
    train, heldout = (
        take(LabelledImages(pixels, labels), classes)
        for pixels, labels in (
            (images.train_images, images.train_labels),
            (images.heldout_images, images.heldout_labels),
        )
    )
    names = tuple(images.classes[number] for number in classes)
    return CollectiveImages(names, train.images, train.labels, heldout.images, heldout.labels, images.stream_images)


def take(images: LabelledImages, classes: Sequence[int]) -> LabelledImages:
    """The images of some classes, numbered from 0 in this order."""
    renumbered = np.full(max(*images.labels.tolist(), *classes, 0) + 1, -1, dtype=np.int64)
    renumbered[list(classes)] = np.arange(len(classes))
    labels = renumbered[images.labels]
    return LabelledImages(images.images[labels >= 0], labels[labels >= 0])


def without_in_stream(images: CollectiveImages, truth: Truth, names: Collection[str]) -> tuple[CollectiveImages, Truth]:
    """The same folder with a stream that shows no class of these names, and the labels of that stream."""
    kept = np.array([name not in names for name in truth.stream_names], dtype=np.bool_)
    stream = None if images.stream_images is None else images.stream_images[kept]
    left = tuple(name for name, stays in zip(truth.stream_names, kept, strict=True) if stays)
    return replace(images, stream_images=stream), replace(truth, stream_names=left)


def _untaught(whole: CollectiveImages, taught: Sequence[int]) -> dict[str, tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
    return {
        name: (whole.train_images[whole.train_labels == number], whole.heldout_images[whole.heldout_labels == number])
        for number, name in enumerate(whole.classes)
        if number not in set(taught)
    }


def _novel(world: World) -> dict[str, tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
    """The first individual's images of the classes of its tasks."""
    folder = world.folder_of(world.individuals[0])
    names = collective_images.read_manifest(folder)["classes"]
    assert isinstance(names, list)
    arrays = {
        name: read_array(folder / f"{name}.npy")
        for name in ("support_images", "support_labels", "test_images", "test_labels")
    }
    return {
        name: (
            arrays["support_images"][arrays["support_labels"] == number],
            arrays["test_images"][arrays["test_labels"] == number],
        )
        for number, name in enumerate(names)
    }
