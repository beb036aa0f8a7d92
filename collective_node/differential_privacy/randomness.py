"""Randomness that hides images: drawn from the operating system, never from a run's seed."""

import math
import os
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

#: Returns the given number of random bytes, fit for keys.
Source = Callable[[int], bytes]


class PrivateRandomness:
    """Draws which images take part, and the noise that hides them.

    A reader who knows a seed can draw the same noise again and subtract it, and seeds are easily guessed. So nothing
    here comes from a seed, and a private evolution cannot be repeated bit by bit.

    Args:
        source: of bytes; only tests use another source than the operating system's.
    """

    def __init__(self, source: Source = os.urandom) -> None:
        self._source = source

    def uniform(self, count: int) -> NDArray[np.float64]:
        """Draw ``[count]`` values in [0, 1), each a multiple of 2^-53."""
        words = np.frombuffer(self._source(8 * count), dtype=np.uint64)
        return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53

    def normal(self, shape: Sequence[int], deviation: float) -> Tensor:
        """Gaussian values of mean 0, float64 on the CPU.

        Each value is half the sum of four independent ones (Box and Muller 1958): what is left of a single float's
        rounding could tell which value the noise was added to (Mironov 2012; Holohan and Braghin, arXiv 2107.10138,
        section 5).
        """
        count = math.prod(shape)
        radius = np.sqrt(-2 * np.log1p(-self.uniform(2 * count)))
        angle = 2 * np.pi * self.uniform(2 * count)
        total = (radius * np.cos(angle) + radius * np.sin(angle)).reshape(2, count).sum(0)
        return torch.from_numpy(total * (deviation / 2)).reshape(tuple(shape))

    def sample(self, rows: Tensor, rate: float) -> Tensor:
        """Draw which of ``rows [N]`` take part: each with the probability ``rate``, independently of the others."""
        return rows[torch.from_numpy(self.uniform(len(rows)) < rate)]

    def labels(self, probability: Tensor) -> Tensor:
        """Draw one label for each row of ``[n, labels]`` probabilities on the CPU; int64 ``[n]``.

        Each image's label is its own draw. With a stream that all images share, one image more would change the labels
        of those behind it, and with them more than its own part of a sum.
        """
        summed = probability.double().cumsum(1)
        drawn = torch.from_numpy(self.uniform(len(probability)))[:, None] * summed[:, -1:]
        return (summed <= drawn).sum(1).clamp(max=probability.shape[1] - 1)

    def noisy_count(self, count: int, epsilon: float) -> int:
        """``count`` plus noise of the two-sided geometric distribution, at least 1: epsilon-differentially private
        (Ghosh, Roughgarden and Sundararajan 2009, for neighbours that differ by one)."""
        steps = np.floor(np.log1p(-self.uniform(2)) / -epsilon)
        return max(1, count + int(steps[0] - steps[1]))
