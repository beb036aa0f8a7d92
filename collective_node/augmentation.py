"""How the images of a batch are changed before they are learned from: everything random about it is drawn here."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from collective_node.mixing import Mix, Mixer
from collective_node.randaugment import RandAugment
from collective_node.random_states import RandomStates
from protocol.learngene.images import CropAndFlip


@dataclass(frozen=True)
class Augmentation:
    """What is drawn for some images, which are a part of a batch.

    Attributes:
        crop: random crop and mirroring.
        colours: RandAugment; None: no such thing.
        turns: quarter turns of each image, 0 to 3, int64 ``[n]`` (CPU); None: no image is turned.
        mix: which images are mixed; None: none are.
    """

    crop: CropAndFlip
    colours: RandAugment | None = None
    turns: Tensor | None = None
    mix: Mix | None = None

    def __call__(self, x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        """Change normalised images ``[n, C, H, W]``, all but for mixing; ``mean`` and ``std [C]``: of normalisation."""
        if self.colours is not None:
            x = self.colours(x, mean, std)
        x = self.crop(x)
        return x if self.turns is None else turned(x, self.turns)


def turned(x: Tensor, turns: Tensor) -> Tensor:
    """Turn square images ``[n, C, S, S]`` by quarter turns ``[n]``, in the sense of ``torch.rot90``; changes ``x``."""
    for quarter in (1, 2, 3):
        rows = torch.nonzero(turns == quarter)[:, 0].to(x.device)
        x[rows] = torch.rot90(x[rows], quarter, (2, 3))
    return x


@dataclass(frozen=True)
class AugmentationPlan:
    """What is drawn for a batch besides crops and mirroring; nothing, as it stands.

    Attributes:
        operations: of RandAugment for each image.
        magnitude: of all of them, up to 10.
        turned: share of the images of a part that are turned, rounded down, by one, two or three quarters; None: there
            is no second task of telling turns.
        mixer: draws mixes.
    """

    operations: int = 0
    magnitude: float = 0.0
    turned: float | None = None
    mixer: Mixer | None = None


class Augmenter:
    """Draws the augmentation of batches.

    Args:
        plan: what is drawn.
        random: crops and mirroring come from its stream ``augmentation``, and are the same under every plan; what the
            plan asks for besides comes from a generator that is seeded by the state of that stream.
    """

    def __init__(self, plan: AugmentationPlan, random: RandomStates) -> None:
        self._plan, self._crops = plan, random["augmentation"]
        self._generator, self._shares = torch.Generator(), np.random.default_rng()
        if plan != AugmentationPlan():
            seed = random.copy().draw_seed("augmentation")
            self._generator.manual_seed(seed)
            self._shares = np.random.default_rng(seed)

    def draw(self, sizes: Sequence[int]) -> list[Augmentation]:
        """The augmentation of each part of a batch."""
        plan, count = self._plan, sum(sizes)
        crops = CropAndFlip.draw(count, self._crops).split(sizes)
        colours: Sequence[RandAugment | None] = [None] * len(sizes)
        mixes: Sequence[Mix | None] = [None] * len(sizes)
        turns: Sequence[Tensor | None] = [None] * len(sizes)
        if plan.operations:
            colours = RandAugment.draw(count, plan.operations, plan.magnitude, self._generator).split(sizes)
        if plan.turned is not None:
            turns = [self._turns(size, plan.turned) for size in sizes]
        if plan.mixer is not None:
            mixes = plan.mixer.draw(list(sizes), self._generator, self._shares)
        return [Augmentation(*drawn) for drawn in zip(crops, colours, turns, mixes, strict=True)]

    def _turns(self, size: int, share: float) -> Tensor:
        count = int(share * size)
        turns = torch.zeros(size, dtype=torch.int64)
        drawn = torch.randint(1, 4, (count,), generator=self._generator)
        turns[torch.randperm(size, generator=self._generator)[:count]] = drawn
        return turns
