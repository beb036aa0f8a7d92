"""What a network says of images while it is trained."""

from typing import NamedTuple

from torch import Tensor


class Answers(NamedTuple):
    """Answers to images, float32; None: it was not asked for.

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
