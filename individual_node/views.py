"""Two views of an image, on which a logistic head stands: what the last part of a network takes, and what it makes."""

from collections.abc import Sequence
from functools import reduce

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from protocol.learngene.images import DeviceImages, autocast
from protocol.learngene.network import ConvolutionBlock

#: Shifts of an image in pixels, rows and columns: the image itself, then its neighbours.
SHIFTS = ((0, 0), (0, 2), (0, -2), (2, 0), (-2, 0), (2, 2), (-2, -2), (2, -2), (-2, 2))
MOST_PIXELS = 2


def two_views(stem: nn.Module, top: nn.Module, x: Tensor, view_shifts: int = 0) -> list[Tensor]:
    """Two views of each image: the output of the stem, which is the top's input, and the output of the top.

    Each is summed over :func:`pictures_of` the image, then its square root is taken, which tames the long tail
    that features have after a ReLU (a power transform, Hu, Gripon and Pateux 2021, section 3.2).

    Args:
        stem, top: the two parts of a network, in evaluation mode.
        x: normalised images ``[n, C, H, W]``.
        view_shifts: shifted copies beside the image.

    Returns:
        float32 ``[n, F]`` for the stem's and for the top's features.
    """
    front = [stem(picture) for picture in pictures_of(x, view_shifts)]
    deep = [top(features) for features in front]
    return [reduce(torch.add, parts).float().flatten(1).clamp(min=0).sqrt() for parts in (front, deep)]


def shifted(x: Tensor, shift: tuple[int, int]) -> Tensor:
    """Images ``[n, C, H, W]`` cut out so many rows and columns further on, with zeros beyond their edge."""
    if shift == (0, 0):
        return x
    (down, right), (height, width) = shift, x.shape[2:]
    padded = nn.functional.pad(x, (MOST_PIXELS,) * 4)[:, :, MOST_PIXELS + down :, MOST_PIXELS + right :]
    return padded[:, :, :height, :width]


def pictures_of(x: Tensor, view_shifts: int) -> list[Tensor]:
    """What is looked at of images ``[n, C, H, W]``: the images and so many shifted copies, and the mirror images of
    all of them."""
    copies = [shifted(x, shift) for shift in SHIFTS[: 1 + view_shifts]]
    return [picture for copy in copies for picture in (copy, copy.flip(3))]


@torch.no_grad()
def inherited_features(
    blocks: Sequence[ConvolutionBlock],
    handover: int,
    images: DeviceImages,
    rows: NDArray[np.int64],
    shift: tuple[int, int] = (0, 0),
    view_shifts: int = 0,
) -> list[Tensor]:
    """Both views of many images, as :func:`two_views` has them, in bfloat16 if the machine has it.

    Args:
        blocks: the inherited blocks, in evaluation mode.
        handover: number of blocks in the stem.
        rows: which images.
        shift: of each image, see :func:`shifted`.
        view_shifts: as :func:`two_views` takes it.

    Returns:
        float32 ``[len(rows), F]`` for the stem's and for the top's features.
    """
    stem, top = nn.Sequential(*blocks[:handover]), nn.Sequential(*blocks[handover:])
    views: list[list[Tensor]] = [[], []]
    for index in torch.from_numpy(rows).split(256):
        x, _ = images.batch(index)
        with autocast(images.pixels.device):
            found = two_views(stem, top, shifted(x, shift), view_shifts)
        for view, part in zip(views, found, strict=True):
            view.append(part)
    return [torch.cat(view) for view in views]


def centred_and_normalised(views: Sequence[Tensor], centres: Sequence[Tensor]) -> Tensor:
    """``(f - centre) / |f - centre|`` of each view ``[..., n, F]`` less its centre ``[..., 1, F]``, side by side."""
    parts = [nn.functional.normalize(f - c, dim=-1) for f, c in zip(views, centres, strict=True)]
    return torch.cat(parts, -1)
