"""A loss that fits an individual's own front layers to what the inherited layers expect."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from protocol.learngene.network import ConvolutionBlock


class StatisticsMatching:
    """Distance of a batch's statistics from the running statistics that the inherited layers came with.

    At the input of the BatchNorm of each inherited layer ``l``, with means ``m`` and standard deviations ``s`` of the
    batch and the inherited ones ``m*`` and ``s*``, by channels ``c``:

        ``sum_l mean_c ((m - m*) / s*)^2 + (s / s* - 1)^2``

    It is the feature distribution regulariser of DeepInversion (Yin et al. 2020, equation 4), with each channel
    measured in its own standard deviations; there it fits images to a network, here the layers in front of it. The sum
    is over networks too, so each network gets the gradient that it would get alone. Layers with GroupNorm have no such
    statistics, and add nothing.

    Args:
        blocks: the inherited ones, with the statistics that they came with. Until :meth:`close` each forward pass with
            gradients is recorded.
    """

    def __init__(self, blocks: Sequence[ConvolutionBlock]) -> None:
        self._terms: dict[int, Tensor] = {}
        self._hooks = [
            block.norm.register_forward_pre_hook(self._recording(index, block.norm, block.networks))
            for index, block in enumerate(blocks)
            if isinstance(block.norm, nn.BatchNorm2d)
        ]

    def __call__(self) -> Tensor:
        """The distance in the last forward pass with gradients: a scalar."""
        return torch.stack([*self._terms.values()]).sum() if self._terms else torch.zeros(())

    def close(self) -> None:
        """Record no more."""
        for hook in self._hooks:
            hook.remove()

    def _recording(
        self, index: int, norm: nn.BatchNorm2d, networks: int
    ) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        mean, deviation = norm.running_mean.clone(), (norm.running_var + norm.eps).sqrt()

        def record(_: nn.Module, given: tuple[Tensor, ...]) -> None:
            if torch.is_grad_enabled():
                x = given[0].float()
                shift = (x.mean((0, 2, 3)) - mean) / deviation
                spread = (x.var((0, 2, 3), unbiased=False) + norm.eps).sqrt() / deviation - 1
                by_channel = shift.square() + spread.square()
                self._terms[index] = by_channel.unflatten(0, (networks, -1)).mean(1).sum()

        return record
