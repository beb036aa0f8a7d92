"""Evolution with differentially private weights: one network, trained once, for one form."""

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from collective_node.collective import Collective
from collective_node.collective_images import CollectiveImages
from collective_node.differential_privacy import accounting
from collective_node.differential_privacy.fisher import PrivateFisher, parameters_of
from collective_node.differential_privacy.mechanism import Mechanism
from collective_node.differential_privacy.randomness import PrivateRandomness
from collective_node.differential_privacy.release import Finished, Provenance, assembled, setup_of
from collective_node.differential_privacy.training import train_privately
from collective_node.evaluation import Evaluation
from collective_node.evolution_plan import EvolutionPlan
from collective_node.extraction.condensing import blueprint
from collective_node.network.compact_network import CompactNetwork, positions_of
from collective_node.settings import CollectiveSettings
from protocol.encoding.blob import Dtype
from protocol.learngene.architecture import Architecture, Block, Form, InputContract
from protocol.learngene.images import DeviceImages, Normalisation
from protocol.learngene.learngene import Learngene
from protocol.learngene.network import build_blocks, initialise
from protocol.node.events import Events


@dataclass(frozen=True)
class PrivatelyEvolved:
    """Result of an evolution with differentially private weights.

    Attributes:
        mechanism: everything in it that read images, and the guarantee.
        known: classes that the network was trained on.
        condensed_accuracy: on their held-out images, per cent; not released.
        learngenes: one, in the form ``condensed``.
        seconds: wall-clock times of ``train`` and ``fisher``; none if it was finished before.
    """

    mechanism: Mechanism
    known: int
    condensed_accuracy: float | None
    learngenes: dict[Form, Learngene]
    seconds: dict[str, float]


def evolve_privately(
    images: CollectiveImages,
    settings: CollectiveSettings,
    *,
    seed: int,
    device: torch.device,
    checkpoints: Path,
    events: Events,
    randomness: PrivateRandomness | None = None,
    fewest_fisher_images: int = 1,
) -> PrivatelyEvolved:
    """Train the condensed form's network with DP-SGD and take its Fisher diagonal with noise.

    Its blocks are those that a condensed learngene of the same settings has, with GroupNorm, and behind them one linear
    layer; the classes are those of the settings' tasks, all at once. The mechanism lists everything that reads training
    images.

    Args:
        images: the collective's folder.
        settings: with private weights.
        seed: of the classes and of the first weights. What hides the images comes from ``randomness``, so the same seed
            gives another learngene each time.
        checkpoints: folder that keeps the outcome: a second call returns the same outcome. An evolution that was killed
            begins again; nothing of the killed one was sent.
        events: record of progress.
        randomness: None: the operating system's.
        fewest_fisher_images: fewest images of a Fisher diagonal that the site's policy lets out.

    Raises:
        InputError: the settings do not fit the images, or the folder keeps the outcome of other settings or images.
        RunFailedError: a weight is no longer finite.
    """
    plan = EvolutionPlan.of(images, settings, seed, device)
    setup = setup_of(plan.setup, settings)
    finished = Finished.kept(checkpoints, setup)
    if finished is not None:
        return _evolved(finished, len(plan.taught), {})
    randomness = randomness or PrivateRandomness()
    collective = plan.untrained(DeviceImages.load(images.train_images, images.train_labels, plan.normalisation, device))
    data = collective.training_set(collective.known)
    mechanism = accounting.plan(
        settings, len(data), fishers=1, randomness=randomness, fewest_fisher_images=fewest_fisher_images
    )
    sums = mechanism.training
    assert sums is not None
    network = private_network(collective, settings)

    def observe(step: int, steps: int) -> None:
        events.append("condense", step + 1, steps, "a network for the condensed form, with noise (DP-SGD)")

    started = time.perf_counter()
    trained = train_privately(network, data, sums, settings, randomness, observe)
    network.eval()
    seconds = {"train": time.perf_counter() - started}
    events.append("fisher", 0, 1, "Fisher diagonal, with noise")
    private = PrivateFisher.of(mechanism, randomness)
    diagonal = private.diagonal(network.layers, network.classifier, data, settings.fisher_estimator)
    seconds["fisher"] = time.perf_counter() - started - seconds["train"]
    learngene = assembled(
        _architecture(network, plan, settings.blob_dtype),
        _sources(network, trained, diagonal, plan.normalisation),
        private.describe(settings.fisher_estimator),
        mechanism.guarantee,
    )
    accuracy = Evaluation.load(images, plan.normalisation, device).base_accuracy(network, collective)
    finished = Finished(mechanism=mechanism, accuracy=accuracy, learngenes={"condensed": learngene})
    finished.keep(checkpoints, setup)
    return _evolved(finished, len(collective.known), seconds)


def private_network(collective: Collective, settings: CollectiveSettings) -> CompactNetwork:
    """The condensed form's network with GroupNorm and a linear classifier; its first weights follow from the seed.

    Args:
        collective: untrained; it gives the sizes and draws the weights.
    """
    top = settings.layers
    assert top is not None
    wanted = blueprint(collective.network, top, settings)
    stem, deep = _normalised_by_groups(wanted.stem), _normalised_by_groups(wanted.top)
    height, width = collective.images.pixels.shape[1:3]
    features = deep[-1].out_channels * positions_of([*stem, *deep], height, width)
    output = nn.Linear(features, len(collective.known))
    network = CompactNetwork(build_blocks(stem), build_blocks(deep), nn.Sequential(nn.Flatten(), output))
    initialise(network, collective.random["weights"])
    nn.init.zeros_(output.weight)  # no step is spent on unlearning random logits
    return network.to(collective.images.pixels.device)


def _architecture(network: CompactNetwork, plan: EvolutionPlan, dtype: Dtype) -> Architecture:
    height, width, channels = plan.image_shape
    contract = InputContract(height=height, width=width, channels=channels)
    return Architecture(form="condensed", input=contract, blocks=tuple(network.describe()), dtype=dtype)


def _sources(
    network: CompactNetwork,
    trained: Collection[nn.Parameter],
    diagonal: Mapping[str, Tensor],
    normalisation: Normalisation,
) -> dict[Provenance, Mapping[str, NDArray[np.float32]]]:
    """Tensors of the release by their origin."""
    parameters = parameters_of(network.layers)
    return {
        "trained": _arrays({name: value for name, value in parameters.items() if value in trained}),
        "noised": _arrays({f"fisher.{name}": value for name, value in diagonal.items()}),
        "constant": {"input.mean": normalisation.mean, "input.std": normalisation.std},
    }


def _evolved(finished: Finished, known: int, seconds: dict[str, float]) -> PrivatelyEvolved:
    return PrivatelyEvolved(finished.mechanism, known, finished.accuracy, finished.learngenes, seconds)


def _normalised_by_groups(blocks: Sequence[Block]) -> list[Block]:
    return [block.model_copy(update={"norm": "group"}) for block in blocks]


def _arrays(tensors: Mapping[str, Tensor]) -> dict[str, NDArray[np.float32]]:
    return {
        name: np.array(value.detach().cpu().float().numpy(), dtype=np.float32, order="C")
        for name, value in tensors.items()
    }
