"""The gradient of one batch, from parts of it that are computed side by side."""

import copy
from typing import Self

import torch
from torch import Tensor, nn

from collective_node.augmentation import AugmentationPlan, Augmenter
from collective_node.network.dropout import Dropout
from collective_node.objectives import Batch, Objective
from collective_node.random_states import RandomStates
from collective_node.training_set import TrainingSet
from protocol.learngene.images import autocast
from protocol.learngene.side_by_side import side_by_side


class BatchGradient:
    """Computes the gradient of a batch's mean loss on several replicas of a model, each of which sees one part.

    BatchNorm normalises each part by the statistics of that part (ghost batches: Hoffer et al. 2017, *Train longer,
    generalize better*, algorithm 1). So the number of parts belongs to the result; how many of them run at once does
    not. One part alone is the ordinary gradient, with all the threads that an operation may use. All replicas share the
    weights of the model: a step of its optimiser moves them all. Used as a context manager: leaving it gives the model
    the mean of its replicas' running statistics, and takes the seeds of dropout away.

    Args:
        model: images to logits, in the mode that it is trained in.
        data: what the batches are of.
        parts: how many.
        objective: the mean loss of a part.
        random: draws augmentation and dropout.
        augmenter: draws the augmentation; None: crops and mirroring alone.
    """

    def __init__(
        self,
        model: nn.Module,
        data: TrainingSet,
        parts: int,
        objective: Objective,
        random: RandomStates,
        augmenter: Augmenter | None = None,
    ) -> None:
        self._model, self._data, self._objective = model, data, objective
        self._augmenter = augmenter or Augmenter(AugmentationPlan(), random)
        self._replicas = [model, *(_replica(model) for _ in range(parts - 1))]
        for replica in self._replicas:
            _seed_dropout(replica, random.draw_seed("dropout"))

    def __call__(self, index: Tensor) -> Tensor:
        """Put the gradient of the rows ``index [n]``, at least one for each part, into the model's parameters; returns
        their mean loss."""
        cuts = index.tensor_split(len(self._replicas))
        augmentations = self._augmenter.draw([len(cut) for cut in cuts])
        mean, std = self._data.images.mean, self._data.images.std

        def backward(number: int) -> Tensor:
            replica, rows = self._replicas[number], cuts[number]
            replica.zero_grad(set_to_none=True)
            x, outputs = self._data.batch(rows)
            drawn = augmentations[number]
            batch = Batch(drawn(x, mean, std), outputs, rows, drawn.crop.flip, drawn.turns, drawn.mix)
            with autocast(x.device):
                loss = self._objective(replica, batch)
            loss = loss * (len(rows) / len(index))
            loss.backward()
            return loss.detach()

        if len(cuts) == 1:
            return backward(0)
        losses = side_by_side(backward, range(len(cuts)))
        for replica in self._replicas[1:]:
            for parameter, other in zip(self._model.parameters(), replica.parameters(), strict=True):
                if parameter.grad is None:  # an objective may look at other weights in each part
                    parameter.grad = other.grad
                elif other.grad is not None:
                    parameter.grad.add_(other.grad)
        return torch.stack(losses).sum()

    def __enter__(self) -> Self:
        return self

    @torch.no_grad()
    def __exit__(self, *_: object) -> None:
        for buffer, *others in zip(*(replica.buffers() for replica in self._replicas), strict=True):
            if others and buffer.is_floating_point():
                buffer.copy_(torch.stack([buffer, *others]).mean(0))
        _seed_dropout(self._model, None)


def _replica(model: nn.Module) -> nn.Module:
    """A copy with gradients and running statistics of its own, and the weights of the model."""
    replica = copy.deepcopy(model)
    for parameter, own in zip(replica.parameters(), model.parameters(), strict=True):
        parameter.data = own.data
    return replica


def _seed_dropout(model: nn.Module, seed: int | None) -> None:
    generator = None
    if seed is not None:
        generator = torch.Generator(next(model.parameters()).device).manual_seed(seed)
    for module in model.modules():
        if isinstance(module, Dropout):
            module.generator = generator
