"""Dropout that draws from a generator of its own, so that networks side by side do not share one."""

import torch
from torch import Tensor, nn


class Dropout(nn.Module):
    """Zeroes each value with a probability in training, and scales the others up (Srivastava et al. 2014).

    Attributes:
        p: the probability.
        generator: draws what is zeroed, on the device of the values; None: torch's own.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.generator: torch.Generator | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Values of any shape; in evaluation mode they stay as they are."""
        if not self.training or self.p == 0:
            return x
        kept = torch.empty_like(x).bernoulli_(1 - self.p, generator=self.generator)
        return x * kept.div_(1 - self.p)

    def extra_repr(self) -> str:
        """What it shows of itself."""
        return f"p={self.p}"
