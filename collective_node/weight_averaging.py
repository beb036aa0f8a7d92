"""Averages of a training's weights over its steps, and BatchNorm statistics that fit them."""

from collections.abc import Mapping

import torch
from torch import nn

from collective_node.network.compact_network import CompactNetwork
from collective_node.training_set import TrainingSet
from protocol.learngene.images import autocast
from protocol.learngene.network import average_statistics

#: Batches of 250 images that the BatchNorm statistics of a compact network are averaged over.
STATISTICS_BATCHES = 40
#: Averaged weights: batches for their statistics, as a share of the training's steps; and at least and at most so many.
STATISTICS_SHARE, FEWEST_BATCHES, MOST_BATCHES = 0.1, 10, 160


class WeightAverage:
    """An average of parameters over the steps of a training, taken beside it; at its end they are replaced by it.

    Exponential (EMA): ``a <- d a + (1 - d) w`` after each step, which begins at the weights before the first one. ``d``
    is the decay, but in step ``t`` (from 0) at most ``(1 + t) / (10 + t)``, so that a short training forgets its start
    too. Stochastic weight averaging (SWA, Izmailov et al. 2018): the plain mean of the weights after the steps of the
    last share of the training.

    Args:
        parameters: by name; they are read after each step.
        steps: of the training.
        decay: of the exponential average; 0: there is none.
        share: of the steps that the plain average is over, at least one step; 0: there is none either.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], steps: int, *, decay: float, share: float) -> None:
        self._parameters = [parameter.detach() for parameter in parameters.values()] if decay or share else []
        self._average = [parameter.clone(memory_format=torch.preserve_format) for parameter in self._parameters]
        self._steps, self._decay, self._first = steps, decay, min(steps - 1, int((1 - share) * steps))

    def update(self, step: int) -> None:
        """Count the weights after a step, numbered from 0."""
        weight = self._weight(step)
        if self._average and weight > 0:
            torch._foreach_lerp_(self._average, self._parameters, weight)

    def _weight(self, step: int) -> float:
        """Weight of the newest weights in the average."""
        if self._decay:
            return 1 - min(self._decay, (1 + step) / (10 + step))
        return 0.0 if step < self._first else 1 / (step - self._first + 1)

    @torch.no_grad()
    def finish(self, model: nn.Module, data: TrainingSet, generator: torch.Generator, batch_size: int) -> None:
        """Replace the weights of a model in training mode by their average, and estimate its BatchNorm statistics: over
        a tenth as many batches as the training had, but at least 10 and at most 160."""
        if not self._average:
            return
        for parameter, average in zip(self._parameters, self._average, strict=True):
            parameter.copy_(average)
        batches = min(MOST_BATCHES, max(FEWEST_BATCHES, int(STATISTICS_SHARE * self._steps)))
        estimate_statistics(model, data, generator, batches, batch_size)


@torch.no_grad()
def estimate_statistics(
    model: nn.Module, data: TrainingSet, generator: torch.Generator, batches: int | None = None, size: int = 250
) -> None:
    """Replace every BatchNorm's running statistics by plain averages over balanced batches without augmentation; those
    of each smaller network in a compact one too.

    Args:
        model: in training mode.
        batches, size: how many, and images in each; None: 40.
    """
    norms = average_statistics(model)
    sized = [module for module in model.modules() if isinstance(module, CompactNetwork)]
    for index in data.balanced(STATISTICS_BATCHES if batches is None else batches, size, generator):
        x, _ = data.batch(index)
        with autocast(data.device):
            model(x)
            for network in sized:
                for number in range(len(network.sizes)):
                    network.logits_of(x, number)
    for norm in norms:
        norm.momentum = 0.1
