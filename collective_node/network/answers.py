"""What a network says of images while it is trained."""

from typing import NamedTuple

import torch
from torch import Tensor


def full(x: Tensor) -> Tensor:
    """Values in float32 at least: what autocast made of them does not do for losses."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class Answers(NamedTuple):
    """Answers to images, in float32 at least; None: it was not asked for.

    Attributes:
        logits: ``[n, outputs]``.
        features: the last feature map, flattened, ``[n, F]``.
        projected: the features under the linear map to a teacher's, ``[n, G]``.
        turns: logits of the four turns of an image, ``[n, 4]``.
    """

    logits: Tensor
    features: Tensor | None = None
    projected: Tensor | None = None
    turns: Tensor | None = None

    def at(self, index: Tensor) -> "Answers":
        """The answers at these positions ``[m]``."""

        def cut(value: Tensor | None) -> Tensor | None:
            return None if value is None else value[index.to(value.device)]

        return Answers(
            self.logits[index.to(self.logits.device)], cut(self.features), cut(self.projected), cut(self.turns)
        )
