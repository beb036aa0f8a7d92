"""Elastic weight consolidation (EWC): a penalty that holds the weights that mattered to the collective's past tasks."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

import torch
from torch import Tensor, nn

from collective_node.network.growth_of_tensors import Growth
from protocol.learngene.fisher import Batches, fisher_of_network
from protocol.learngene.learngene import Estimator
from protocol.learngene.retain_loss import RetainLoss


@dataclass(frozen=True)
class EwcPenalty:
    """Quadratic penalty on moving away from the weights of the last task, weighted by the Fisher diagonals so far.

    Elastic weight consolidation (Kirkpatrick et al. 2017) in its accumulated form: the diagonals of all tasks are
    added and there is one anchor, the weights after the last task, as the Laplace approximation of a posterior that is
    carried from task to task has it (Huszar 2018); with one penalty and one anchor per task the first tasks would be
    counted twice. It is the online form of Schwarz et al. 2018 with nothing forgotten (``gamma`` 1).

    It holds every parameter: convolutions, BatchNorm, the classifier's hidden layers and its outputs. Those that came
    later - new outputs, an inserted layer - are free until the next task has been added; the copies that widening
    makes are held as their originals were, see :meth:`grow`.

    A training takes the penalty's proximal step after each step of its optimiser, see
    :func:`collective_node.training.fit`: stable at any weight, although the summed diagonal grows with every task.

    Attributes:
        anchors: the parameters after the last task, by the names of ``network.named_parameters()``.
        fisher: the sum of the tasks' Fisher diagonals (each a mean over images), likewise.
    """

    anchors: Mapping[str, Tensor] = field(default_factory=dict)
    fisher: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.anchors.keys() != self.fisher.keys():
            raise ValueError("every anchor needs its Fisher diagonal")

    def after_task(
        self, network: nn.Module, batches: Batches, estimator: Estimator, generator: torch.Generator
    ) -> Self:
        """Add the Fisher diagonal of a finished task, and anchor at the weights that the network has now.

        Args:
            network: as after the task; it is put in evaluation mode while the diagonal is taken.
            batches: images of the task, each once, and their outputs (only ``empirical`` reads them).
            generator: draws the labels of ``sampled`` (CPU).

        Raises:
            ValueError: there is no image, or the parameters are not those of the penalty so far.
        """
        training = network.training
        network.eval()
        try:
            found, _ = fisher_of_network(network, batches, estimator, generator)
        finally:
            network.train(training)
        for name, value in self.fisher.items():
            if name not in found or found[name].shape != value.shape:
                raise ValueError(f"the network has changed at {name}: follow its growth before the next task is added")
        # A second head is no part of the answer whose Fisher information this is: it is not held.
        held = {name: parameter for name, parameter in network.named_parameters() if name in found}
        anchors = {name: parameter.detach().clone() for name, parameter in held.items()}
        fisher = {name: value + self.fisher[name] if name in self.fisher else value for name, value in found.items()}
        return type(self)(anchors, fisher)

    def grow(self, growth: Growth) -> Self:
        """The penalty for the network after a growth.

        Through a growth that preserves the function the diagonal follows exactly: it is that of the grown network on
        the same images. New outputs have Fisher 0.
        """
        return type(self)(growth.follow_all(self.anchors, "value"), growth.follow_all(self.fisher, "square"))

    def of(self, network: nn.Module) -> RetainLoss:
        """The penalty on a network: ``1/2 sum_i F_i (theta_i - theta*_i)^2``, with its proximal step in closed form.

        Raises:
            ValueError: the network has grown since, see :meth:`grow`.
        """
        parameters = dict(network.named_parameters())
        if not self.anchors.keys() <= parameters.keys():
            raise ValueError(f"the network has no {min(self.anchors.keys() - parameters.keys())} any more")
        return RetainLoss({name: parameters[name] for name in self.anchors}, self.anchors, self.fisher)

    def tensors(self) -> dict[str, Tensor]:
        """Everything, for a checkpoint: ``anchor.<parameter>`` and ``fisher.<parameter>``, contiguous."""
        return {
            **{f"anchor.{name}": value.contiguous() for name, value in self.anchors.items()},
            **{f"fisher.{name}": value.contiguous() for name, value in self.fisher.items()},
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Self:
        """The penalty from what :meth:`tensors` gave.

        Raises:
            ValueError: a parameter has an anchor without a Fisher diagonal, or the reverse.
        """
        anchors = {name.removeprefix("anchor."): t for name, t in tensors.items() if name.startswith("anchor.")}
        fisher = {name.removeprefix("fisher."): t for name, t in tensors.items() if name.startswith("fisher.")}
        return cls(anchors, fisher)
