"""The collective's work as one step: from its images to its learngenes."""

import time
from dataclasses import dataclass
from pathlib import Path

import torch

from collective_node.condensing import CondensedNetwork
from collective_node.evolution import Collective, Evolution
from collective_node.private_images import PrivateImages
from collective_node.publishing import learngene_of
from collective_node.settings import CollectiveSettings
from protocol.architecture import Form
from protocol.events import Events
from protocol.learngene import Learngene


@dataclass(frozen=True)
class Evolved:
    """What came of an evolution.

    Attributes:
        collective: the whole network, the classes it knows, a record per task and the gradient trend.
        condensed: the light stem in front of the collective's top layers.
        condensed_accuracy: of ``condensed``, on held-out images of the known classes, per cent.
        learngenes: one in each form that the settings ask for.
        seconds: wall-clock times of ``train``, ``condense`` and ``fisher``.
    """

    collective: Collective
    condensed: CondensedNetwork
    condensed_accuracy: float
    learngenes: dict[Form, Learngene]
    seconds: dict[str, float]


def evolve(
    images: PrivateImages,
    settings: CollectiveSettings,
    *,
    seed: int,
    device: torch.device,
    checkpoints: Path,
    events: Events,
) -> Evolved:
    """Learn the sequence of tasks, condense, and take a learngene in every form of the settings.

    Args:
        images: the collective's folder, as :func:`collective_node.private_images.read` reads it.
        seed: of everything random: the same seed, settings and thread count give the same learngenes on one machine.
        checkpoints: folder of the checkpoints, made where there is none (its parent exists). An evolution that was
            killed goes on from its last task when it is called again with the same arguments.
        events: record of progress.

    Raises:
        InputError: the settings ask for more than the images have, or the checkpoint belongs to another evolution.
        RunFailedError: the loss is not a number any more.
    """
    evolution = Evolution(images, settings, seed, device, checkpoints, events)
    seconds: dict[str, float] = {}
    started = time.perf_counter()
    collective = evolution.run()
    seconds["train"] = time.perf_counter() - started

    started = time.perf_counter()
    condensed, accuracy = evolution.condense(collective)
    seconds["condense"] = time.perf_counter() - started

    started = time.perf_counter()
    learngenes: dict[Form, Learngene] = {}
    for number, form in enumerate(settings.forms):
        events.append("fisher", number, len(settings.forms), f"Fisher diagonal, form {form}")
        learngenes[form] = learngene_of(form, evolution, collective, condensed, seed + number)
    seconds["fisher"] = time.perf_counter() - started
    return Evolved(collective, condensed, accuracy, learngenes, seconds)
