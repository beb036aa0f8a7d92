"""The retain loss: a quadratic penalty on moving parameters away from their earlier values, weighted by their
importance.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from protocol.learngene.learngene import Learngene
from protocol.learngene.network import ConvolutionBlock, block_tensors


@dataclass(frozen=True)
class RetainLoss:
    """Eq. 8, ``1/2 sum_i F_i (theta_i - theta*_i)^2`` over the named parameters and nothing else.

    The individual holds its inherited layers with it; the collective holds its whole network over its own past tasks,
    where it is the penalty of elastic weight consolidation (Kirkpatrick et al. 2017, equation 3).

    Attributes:
        parameters: the live parameters by name.
        anchors: the values to which they are held, ``theta*``, by the same names and in the same shapes.
        fisher: the Fisher diagonal ``F``, likewise; at least 0.

    Raises:
        ValueError: names or shapes differ.
    """

    parameters: Mapping[str, Tensor]
    anchors: Mapping[str, Tensor]
    fisher: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        for what, tensors in (("anchors", self.anchors), ("Fisher diagonal", self.fisher)):
            if tensors.keys() != self.parameters.keys():
                raise ValueError(f"parameters and {what} have different names")
            for name, parameter in self.parameters.items():
                if tensors[name].shape != parameter.shape:
                    raise ValueError(
                        f"{name}: the parameter is {tuple(parameter.shape)}, its {what} {tuple(tensors[name].shape)}"
                    )

    @classmethod
    def anchored(cls, parameters: Mapping[str, Tensor], fisher: Mapping[str, Tensor]) -> "RetainLoss":
        """A loss anchored at the parameters' present values."""
        return cls(dict(parameters), {n: t.detach().clone() for n, t in parameters.items()}, dict(fisher))

    @classmethod
    def of(cls, blocks: Sequence[ConvolutionBlock], learngene: Learngene) -> "RetainLoss":
        """A loss anchored at the blocks' present values. The learngene must carry a Fisher diagonal, which is repeated
        if the blocks hold several networks side by side.
        """
        named = {n: t for n, t in block_tensors(blocks).items() if f"fisher.{n}" in learngene.tensors}
        networks = blocks[0].networks
        return cls.anchored(
            named, {name: _repeated(learngene.tensors[f"fisher.{name}"], networks, t) for name, t in named.items()}
        )

    def __call__(self) -> Tensor:
        """The loss, summed over all parameters (and networks); a scalar, 0 at the anchors."""
        terms = [(self.fisher[name] * (p - self.anchors[name]).square()).sum() for name, p in self.parameters.items()]
        return 0.5 * torch.stack(terms).sum()

    @torch.no_grad()
    def add_gradient(self, weight: float) -> None:
        """Add ``weight F_i (theta_i - theta*_i)``, the gradient of ``weight`` times the loss, to each ``.grad``.

        In closed form it takes a third of the passes over the weights that automatic differentiation takes.
        """
        for name, p in self.parameters.items():
            assert p.grad is not None
            p.grad.addcmul_(self.fisher[name], p - self.anchors[name], value=weight)

    @torch.no_grad()
    def proximal_step(self, step: float) -> None:
        """Move the parameters to ``argmin_theta 1/2 |theta - theta_now|^2 + step loss(theta)`` (Moreau 1965).

        In closed form ``theta <- (theta + step F theta*) / (1 + step F)``, parameter by parameter: an implicit step of
        gradient descent. Each comes nearer to its anchor and none passes it, however large ``step`` is.
        """
        for name, p in self.parameters.items():
            # step F / (1 + step F), which is 0 where F is, and 1 where step F is infinite.
            share = (step * self.fisher[name]).reciprocal_().add_(1).reciprocal_()
            p.addcmul_(share, self.anchors[name] - p)


def _repeated(values: NDArray[np.float32], networks: int, like: Tensor) -> Tensor:
    value = torch.from_numpy(np.array(values)).to(like)
    return value.repeat(networks, *([1] * (value.ndim - 1)))


def largest_stable_weight(learning_rate: float, largest: float, momentum: float) -> float:
    """The weight (lambda of Eq. 9) above which a step must diverge, for a largest Fisher entry ``largest``.

    Along one parameter the retain loss is a parabola of curvature ``lambda F``. With momentum ``m`` an error is
    multiplied by the roots ``z`` of ``z^2 - (1 + m - a) z + m``, ``a = learning_rate lambda F`` (Polyak 1964). The
    first root to leave the unit circle does so at -1, where ``a`` is ``2 (1 + m)``.
    """
    return 2 * (1 + momentum) / (learning_rate * largest) if largest > 0 else float("inf")
