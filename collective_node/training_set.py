"""The images that a network is trained on, with the output that each of them stands for."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from protocol.learngene.images import DeviceImages


@dataclass(frozen=True)
class TrainingSet:
    """Labelled images, those of them that are trained on, and the table from label to output.

    Attributes:
        images: on the device.
        rows: row numbers in ``images``, int64 ``[n]`` for each class that is trained on.
        targets: the network's output for each label, int64 ``[labels]`` on the device; -1 if it has none.
        unlabelled: row numbers of images without a label, int64 ``[m]``; their output is -1.
        share: of each batch that is drawn from those.
        by_class: whether every class occurs equally often in the batches, else every image (class- and
            instance-balanced sampling: Kang et al. 2020, *Decoupling representation and classifier*, section 3).
    """

    images: DeviceImages
    rows: tuple[Tensor, ...]
    targets: Tensor
    unlabelled: Tensor | None = None
    share: float = 0.0
    by_class: bool = True

    def with_unlabelled(self, pixels: NDArray[np.uint8], share: float) -> "TrainingSet":
        """The same images and further ones ``[m, H, W, C]`` that nobody named."""
        images, labels = self.images, self.images.labels
        more = torch.from_numpy(np.array(pixels)).to(self.device)
        nameless = labels.new_full((len(more),), len(self.targets))
        joined = DeviceImages(torch.cat([images.pixels, more]), torch.cat([labels, nameless]), images.mean, images.std)
        targets = torch.cat([self.targets, self.targets.new_full((1,), -1)])
        return replace(
            self, images=joined, targets=targets, unlabelled=torch.arange(len(images), len(joined)), share=share
        )

    def __len__(self) -> int:
        return sum(len(rows) for rows in self.rows)

    @property
    def device(self) -> torch.device:
        """Where the images are."""
        return self.images.pixels.device

    @property
    def every_row(self) -> Tensor:
        """All row numbers ``[N]``, class by class, then those of images without a label."""
        return torch.cat([*self.rows, *([] if self.unlabelled is None else [self.unlabelled])])

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised images ``[n, C, H, W]`` of the rows ``index [n]``, and their outputs ``[n]``."""
        x, labels = self.images.batch(index)
        return x, self.targets[labels]

    def batches(self, rows: Tensor, size: int = 64) -> Iterator[tuple[Tensor, Tensor]]:
        """The rows ``[N]`` in order, ``size`` at once, each batch as :meth:`batch` gives it."""
        for index in rows.split(size):
            yield self.batch(index)

    def balanced(self, steps: int, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
        """Batches of row numbers, see :func:`class_balanced_batches`; of them ``share`` without a label."""
        rows = self.rows if self.by_class else (torch.cat(self.rows),)
        if self.unlabelled is None:
            yield from class_balanced_batches(rows, steps, batch_size, generator)
            return
        nameless = round(self.share * batch_size)
        labelled = class_balanced_batches(rows, steps, batch_size - nameless, generator)
        others = class_balanced_batches([self.unlabelled], steps, nameless, generator)
        for ours, theirs in zip(labelled, others, strict=True):
            # Mixed, so that every part of a batch has its share of them.
            yield torch.cat([ours, theirs])[torch.randperm(batch_size, generator=generator)]

    def distinct(self, count: int, generator: torch.Generator) -> Tensor:
        """``count`` different row numbers, or all if there are fewer: one class after the other in turn.

        A Fisher diagonal states how many images it was taken from, so no image may count twice.
        """
        assert self.unlabelled is None
        wanted = min(count, len(self))
        drawn = list(dict.fromkeys(torch.cat(list(self.balanced(1, count, generator))).tolist()))
        if len(drawn) < wanted:  # some class ran out
            everything = self.every_row
            order = everything[torch.randperm(len(everything), generator=generator)].tolist()
            drawn = list(dict.fromkeys([*drawn, *order]))[:wanted]
        return torch.tensor(drawn)


def class_balanced_batches(
    rows_by_class: Sequence[Tensor], steps: int, batch_size: int, generator: torch.Generator
) -> Iterator[Tensor]:
    """Batches of row numbers in which every class occurs equally often.

    Each class is walked through in a random order, again and again, so no image is drawn twice before all images of
    its class were drawn; the classes are interleaved in a new random order in each round.

    Args:
        rows_by_class: row numbers ``[n]`` of each class.
        steps: number of batches.
        batch_size: row numbers in a batch.
        generator: of the orders (CPU).
    """
    wanted = -(-steps * batch_size // len(rows_by_class))
    columns = []
    for pool in rows_by_class:
        rounds = -(-wanted // len(pool))
        order = torch.cat([torch.randperm(len(pool), generator=generator) for _ in range(rounds)])[:wanted]
        columns.append(pool[order])
    order = torch.stack([torch.randperm(len(rows_by_class), generator=generator) for _ in range(wanted)])
    mixed = torch.stack(columns, 1).gather(1, order).flatten()
    for step in range(steps):
        yield mixed[step * batch_size : (step + 1) * batch_size]
