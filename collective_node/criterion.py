"""The criterion that finds the learngene: the share of large gradients per layer and task (Eq. 4 and 5)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

#: Bins per factor of two, and the exponents of two that the histogram spans.
BINS_PER_OCTAVE = 64
SMALLEST, LARGEST = -80, 20


@dataclass
class GradientTrend:
    """The layers x tasks matrix of ``rho``, streamed: counts are kept, gradients are not.

    ``g = |dL/dw|`` of the batch-mean loss (Eq. 4); ``rho`` is the share of a layer's parameters with ``g > sigma``
    (Eq. 5), over the batches seen. The first task fixes ``sigma``, where it is not given, at half the pooled median of
    its ``g``, found from a histogram on a logarithmic grid (64 bins per factor of two, so within 0.6 %).

    Attributes:
        layers: number of convolutions.
        sigma: threshold, or None until the first task ended.
        rho: one list per finished task, a share per layer.
    """

    layers: int
    sigma: float | None = None
    rho: list[list[float]] = field(default_factory=list)
    _histogram: Tensor | None = None

    def observe(self, gradients: Sequence[Tensor]) -> None:
        """Count one batch: the weight gradient of every convolution, any shape, in order.

        Raises:
            ValueError: not one gradient per layer, or a gradient that is not finite.
        """
        if len(gradients) != self.layers:
            raise ValueError(f"{len(gradients)} gradients for {self.layers} layers")
        bins = (LARGEST - SMALLEST) * BINS_PER_OCTAVE
        rows = []
        for number, gradient in enumerate(gradients):
            size = gradient.detach().abs().flatten()
            if not torch.isfinite(size).all():
                raise ValueError(f"the gradient of convolution {number + 1} is not finite")
            place = (torch.log2(size) - SMALLEST).mul_(BINS_PER_OCTAVE).clamp_(0, bins - 1)
            rows.append(torch.bincount(place.long(), minlength=bins).cpu())
        counts = torch.stack(rows)
        self._histogram = counts if self._histogram is None else self._histogram + counts

    def end_task(self) -> list[float]:
        """Close the task: fixes ``sigma`` if it is open and appends the task's ``rho`` (one share per layer)."""
        if self._histogram is None:
            raise ValueError("no gradient was observed in this task")
        histogram, self._histogram = self._histogram, None
        if self.sigma is None:
            cumulated = histogram.sum(0).cumsum(0)
            middle = int(torch.searchsorted(cumulated, int(cumulated[-1] + 1) // 2))
            self.sigma = float(2.0 ** (SMALLEST + (middle + 0.5) / BINS_PER_OCTAVE)) / 2
        threshold = max(0, math.floor((math.log2(self.sigma) - SMALLEST) * BINS_PER_OCTAVE))
        large = histogram[:, threshold + 1 :].sum(1).double() / histogram.sum(1)
        self.rho.append([float(share) for share in large])
        return self.rho[-1]
