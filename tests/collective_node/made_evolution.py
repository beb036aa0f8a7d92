"""A small evolution for several tests: images, their truth, settings, and a run that is killed."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from collective_node import checkpoint
from collective_node.collective import Collective
from collective_node.collective_images import CollectiveImages, Truth
from collective_node.evolution import Evolution
from collective_node.open_world.annotators import Oracle
from collective_node.records import Comparison
from collective_node.settings import CollectiveSettings
from protocol.node.events import Events

CLASSES = 8
OPEN = 4
SETTINGS = CollectiveSettings(
    width=0.0625,
    tasks=4,
    classes_per_task=2,
    batch_size=8,
    epochs=1,
    cycles=0,
    condense_epochs=0.5,
    consolidate_epochs=0.0,
    classifier="mlp",
    open_learning_rate=None,
    condense_budget="own",
    fisher_samples=70,
    ewc_samples=20,
    dropout=0.2,
    neighbours=5,
)
#: Two classes a cycle, and nothing is known at the threshold: the whole part of the stream goes to the annotator.
CYCLES = SETTINGS.model_copy(
    update={"cycles": 2, "classes_per_cycle": 2, "threshold": -1e9, "open_epochs": 1.0, "examples": 0}
)


def drawn(classes: range, per_class: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Images of classes that differ in their colours."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(classes)), per_class)
    base = np.random.default_rng(99).integers(0, 200, (CLASSES + OPEN, 1, 1, 3))[list(classes)]
    return (base[labels] + rng.integers(0, 56, (len(labels), 32, 32, 3))).astype(np.uint8), labels


def names(classes: range) -> tuple[str, ...]:
    return tuple(f"class {c}" for c in classes)


KNOWN, UNKNOWN = range(CLASSES), range(CLASSES, CLASSES + OPEN)


KNOWN, UNKNOWN = range(CLASSES), range(CLASSES, CLASSES + OPEN)


def images() -> CollectiveImages:
    stream = np.concatenate([drawn(KNOWN, 3, 5)[0], drawn(UNKNOWN, 9, 6)[0]])
    order = np.random.default_rng(7).permutation(len(stream))
    return CollectiveImages(names(KNOWN), *drawn(KNOWN, 12, 0), *drawn(KNOWN, 4, 1), stream[order])


def truth() -> Truth:
    labels = np.concatenate([drawn(KNOWN, 3, 5)[1], CLASSES + drawn(UNKNOWN, 9, 6)[1]])
    order = np.random.default_rng(7).permutation(len(labels))
    heldout, held_labels = drawn(UNKNOWN, 3, 8)
    return Truth(
        tuple(f"class {label}" for label in labels[order]), heldout, tuple(f"class {CLASSES + c}" for c in held_labels)
    )


def evolution(folder: Path, settings: CollectiveSettings = SETTINGS, seed: int = 0) -> Evolution:
    events = Events(folder.parent / f"{folder.name}.jsonl")
    annotator = Oracle(truth(), settings.examples)
    return Evolution(images(), settings, seed, torch.device("cpu"), folder, events, annotator)


def state(collective: Collective) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in collective.network.state_dict().items()}


def without_times(collective: Collective, comparisons: list[Comparison]) -> list[object]:
    cycles = [*collective.cycles, *(cycle for comparison in comparisons for cycle in comparison.cycles)]
    return [record.model_dump(exclude={"seconds"}) for record in (*collective.tasks, *cycles)]


EVERYTHING = CYCLES.model_copy(
    update={
        "expansion": ("widen 2 +64", "deepen 5 identity", "deepen 0 identity", "widen 12 +128"),
        "growth_noise": 0.1,
        "copies": "undivided",
        "strategy": "ewc",
        "compare_scores": ("energy",),
        "compare_strategies": ("none",),
        "keep_known": 0.1,
    }
)


#: The regularisers that go together, with all that they bring into the network and its growth.
REGULARISED = CYCLES.model_copy(
    update={
        "expansion": ("widen 2 +64", "deepen 5 identity", "widen 12 +128", "deepen 12 identity"),
        "cycles": 1,
        "classifier": "cosine",
        "schedule": "step",
        "manifold_mixup": 1.0,
        "rotation": 0.5,
        "randaugment": 2,
        "swa": 0.5,
        "consolidate_epochs": 1.0,
        "consolidate_generations": 1,
        "parts": 2,
        "score": "fdbd",
        "compare_scores": ("relative-mahalanobis",),
        "bias": "balanced",
        "keep_known": 0.1,
    }
)


class KilledError(Exception):
    """Stands for kill -9: nothing after it is executed."""


def killed_after(stores: int, folder: Path, settings: CollectiveSettings) -> None:
    """Run an evolution that is killed after so many checkpoints."""
    store, stored = checkpoint.store, []

    def store_and_die(*arguments: object) -> None:
        store(*arguments)  # type: ignore[arg-type]
        stored.append(arguments)
        if len(stored) == stores:
            raise KilledError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "store", store_and_die)
        with pytest.raises(KilledError):
            evolution(folder, settings).run()
