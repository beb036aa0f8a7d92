"""Mixup and manifold mixup: a batch's images, or their features in some layer, are mixed with those of other images."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from protocol.learngene.network import ConvolutionBlock


class Mix(NamedTuple):
    """What is mixed: ``share h + (1 - share) h[partners]`` of the inputs ``h`` of one block.

    Attributes:
        share: lambda, of the images themselves.
        partners: the other image of each, positions int64 ``[n]`` in the batch (CPU).
        layer: number of the block, 0 the first: the images.
    """

    share: float
    partners: Tensor
    layer: int

    def of(self, values: Tensor) -> Tensor:
        """Values ``[n, ...]``, mixed."""
        return self.share * values + (1 - self.share) * values[self.partners.to(values.device)]

    @contextmanager
    def inside(self, model: nn.Module) -> Iterator[None]:
        """Mix the inputs of the block while the ``with`` lasts; not those of block 0, which are the images."""
        if self.layer == 0:
            yield
            return
        block = blocks_of(model)[self.layer]
        handle = block.register_forward_pre_hook(lambda _, inputs: (self.of(inputs[0]),))
        try:
            yield
        finally:
            handle.remove()


def blocks_of(model: nn.Module) -> list[ConvolutionBlock]:
    """Every convolution block of a model, in order."""
    return [module for module in model.modules() if isinstance(module, ConvolutionBlock)]


@dataclass(frozen=True)
class Mixer:
    """Draws what is mixed: one share and one layer for a batch, partners within each part of it.

    Attributes:
        alpha: the share is drawn from ``Beta(alpha, alpha)``.
        layers: from how many layers one is drawn, each as often; 1: the images alone (mixup, Zhang et al. 2018, instead
            of manifold mixup, Verma et al. 2019).
    """

    alpha: float
    layers: int = 1

    def draw(self, sizes: list[int], generator: torch.Generator, shares: np.random.Generator) -> list[Mix]:
        """The mix of each part of a batch.

        Args:
            sizes: of the parts.
            generator: draws layer and partners (CPU).
            shares: draws the share.
        """
        share = float(shares.beta(self.alpha, self.alpha))
        layer = int(torch.randint(self.layers, (1,), generator=generator))
        return [Mix(share, torch.randperm(size, generator=generator), layer) for size in sizes]
