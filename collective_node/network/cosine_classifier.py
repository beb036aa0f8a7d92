"""The cosine classifier: what counts of features and of a class's weights is their direction, and not their length."""

import torch
from torch import Tensor, nn

#: Scale of a cosine classifier's similarities (Gidaris and Komodakis 2018 learn it and begin with 10).
COSINE_SCALE = 16.0


class UnitLength(nn.Module):
    """Features scaled to length 1, each image's on their own."""

    def forward(self, x: Tensor) -> Tensor:
        """``[N, features]``, likewise; zeros stay zeros."""
        return nn.functional.normalize(x)


class CosineClassifier(nn.Module):
    """Logits that are scaled cosines between features and one vector for each class (Gidaris and Komodakis 2018,
    *Dynamic few-shot visual learning without forgetting*, section 3.2)."""

    def __init__(self, features: int, outputs: int) -> None:
        super().__init__()
        self.directions = nn.Linear(features, outputs, bias=False)
        self.scale = nn.Parameter(torch.tensor(COSINE_SCALE))

    def forward(self, x: Tensor) -> Tensor:
        """``[N, features]`` to ``[N, outputs]``."""
        directions = nn.functional.normalize(self.directions.weight)
        return self.scale * nn.functional.linear(nn.functional.normalize(x), directions)

    @property
    def weights(self) -> Tensor:
        """What features of length 1 are multiplied by, ``[outputs, features]``."""
        return self.scale * nn.functional.normalize(self.directions.weight)
