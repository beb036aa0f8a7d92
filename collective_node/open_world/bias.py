"""Treatments of the bias between old and new classes, after the training of an open-world cycle."""

from collections.abc import Sequence
from dataclasses import replace
from statistics import median_low

import torch
from torch import nn

from collective_node.collective import Collective
from collective_node.continual_training import StepEvents
from collective_node.network.expandable_network import output_layer
from collective_node.settings import CollectiveSettings
from collective_node.training import fit
from collective_node.training_set import TrainingSet

#: Learning rate and epochs of the balanced fine-tuning, over those of the training before it (Castro et al. 2018,
#: section 4: from 0.01 for 30 epochs, after 40 epochs from 0.1).
BALANCED_RATE, BALANCED_EPOCHS = 0.1, 0.75


def treat_bias(collective: Collective, new: Sequence[int], settings: CollectiveSettings, events: StepEvents) -> int:
    """Treat the bias between the classes of this cycle and those known before, as the settings ask for.

    Args:
        collective: trained on its new classes; its network changes.
        new: numbers of the new classes, which have the last outputs.
        events: report the steps of a fine-tuning.

    Returns:
        The steps that it took.

    Raises:
        RunFailedError: the loss or a weight is not finite any more.
    """
    match settings.bias:
        case "none":
            return 0
        case "weight-alignment":
            align_weights(output_layer(collective.network.classifier), len(collective.known) - len(new))
            return 0
        case "balanced":
            steps, _ = fit(
                collective.network,
                dict(collective.network.named_parameters()),
                balanced_set(collective, new, collective.random["batches"]),
                BALANCED_EPOCHS * settings.open_epochs,
                settings=settings,
                learning_rate=BALANCED_RATE * (settings.open_learning_rate or settings.learning_rate),
                random=collective.random,
                observe=lambda step, steps: events.report(step + 1, steps),
            )
            return steps


@torch.no_grad()
def align_weights(layer: nn.Linear, old: int) -> None:
    """Multiply the logits of new classes by ``mean |w_old| / mean |w_new|``, the ratio of their weights' mean norms.

    Weight alignment (WA, Zhao et al. 2020, arXiv 1911.07053): afterwards old and new classes' weights have one mean
    norm, and the logits of old classes are what they were. Biases are scaled with the weights, as the logits are.

    Args:
        layer: the output layer, weights ``[classes, features]``.
        old: how many of its outputs are of old classes; the others follow them.

    Raises:
        ValueError: there is no old class or no new one.
    """
    if not 0 < old < len(layer.weight):
        raise ValueError(f"of {len(layer.weight)} classes {old} are old: both kinds are needed")
    norms = layer.weight.norm(dim=1)
    ratio = norms[:old].mean() / norms[old:].mean()
    layer.weight[old:] *= ratio
    layer.bias[old:] *= ratio


def balanced_set(collective: Collective, new: Sequence[int], generator: torch.Generator) -> TrainingSet:
    """As many images of every known class as the median new class has, drawn at random; all of a class with fewer.

    The balanced subset of end-to-end incremental learning (EEIL, Castro et al. 2018). There the old classes have few
    images and the new ones many; here it is the other way round.
    """
    data = collective.training_set(collective.known)
    count = median_low(len(rows) for rows in collective.rows_of(new))
    drawn = (rows[torch.randperm(len(rows), generator=generator)[:count]] for rows in data.rows)
    return replace(data, rows=tuple(drawn))
