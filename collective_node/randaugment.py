"""RandAugment for a whole batch on its device: one affine resampling, one map of colours, one cutout."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

#: The operations that are drawn from; the last changes nothing.
OPERATIONS = (
    "brightness",
    "contrast",
    "colour",
    "shear-x",
    "shear-y",
    "translate-x",
    "translate-y",
    "rotate",
    "cutout",
    "identity",
)
_NUMBER = {name: number for number, name in enumerate(OPERATIONS)}
#: The largest magnitude, and what it is of each operation: a change of a factor from 1; a slope; a share of the image's
#: side; radians; the side of the square that is cut out, as a share of the image's.
LARGEST = 10.0
FACTOR, SLOPE, SHIFT, ANGLE, SIDE = 0.9, 0.3, 0.3, math.radians(30), 0.5
#: Weights of red, green and blue in an image's grey (ITU-R BT.601).
LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class RandAugment:
    """One draw of a few operations for each image (Cubuk et al. 2020, *RandAugment*).

    There operations follow each other in the order in which they are drawn, on bytes. Here the strengths of an
    operation that is drawn twice are added, and the order is fixed: colour, contrast and brightness, which together are
    one map of the pixels; shear, rotation and translation, which together are one affine map of the plane (bilinear,
    zeros outside); cutout (DeVries and Taylor 2017). So a batch takes a handful of operations on tensors, however many
    were drawn. Colours are not cut off at black and white.

    Attributes:
        strengths: float32 ``[N, operations]`` on the CPU: the magnitude over the largest one, with a random sign
            (cutout has none); 0 where the operation was not drawn.
        centres: of the cutouts, float32 ``[N, 2]``, row and column as shares of the sides.
    """

    strengths: Tensor
    centres: Tensor

    @classmethod
    def draw(cls, count: int, number: int, magnitude: float, generator: torch.Generator) -> "RandAugment":
        """Draw ``number`` operations for each of ``count`` images, with repetition, all at one magnitude (CPU)."""
        chosen = torch.randint(0, len(OPERATIONS), (count, number), generator=generator)
        sign = torch.randint(0, 2, (count, number), generator=generator).mul(2).sub(1).float()
        sign = torch.where(chosen == _NUMBER["cutout"], 1.0, sign)
        strengths = torch.zeros(count, len(OPERATIONS)).scatter_add_(1, chosen, sign * (magnitude / LARGEST))
        return cls(strengths, torch.rand((count, 2), generator=generator))

    def split(self, sizes: Sequence[int]) -> "list[RandAugment]":
        """The draws for parts of a batch of these sizes."""
        pairs = zip(self.strengths.split(sizes), self.centres.split(sizes), strict=True)
        return [RandAugment(strengths, centres) for strengths, centres in pairs]

    def __call__(self, x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        """Change normalised images ``[N, C, H, W]``; ``mean`` and ``std [C]`` are those of their normalisation."""
        return self._cut_out(self._move(self._colour(x, mean, std)))

    def _of(self, name: str, like: Tensor) -> Tensor:
        """An operation's strengths as ``[N, 1, 1, 1]``."""
        return self.strengths[:, _NUMBER[name], None, None, None].to(like)

    def _colour(self, x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        """With factors ``f`` and a pixel ``p`` from 0 to 1, of grey ``g(p)``: colour is ``g + f (p - g)``, contrast
        ``m + f (p - m)`` with the image's mean grey ``m``, brightness ``f p``."""
        # Repeated draws add up: a factor below 0 would turn an image into its negative.
        factors = (1 + FACTOR * self._of(name, x) for name in ("colour", "contrast", "brightness"))
        colour, contrast, brightness = (factor.clamp(min=0) for factor in factors)
        channels = x.shape[1]
        luma = x.new_tensor(LUMA if channels == len(LUMA) else [1 / channels] * channels)
        mean, std = mean[:, None, None], std[:, None, None]
        grey = torch.einsum("nchw,c->nhw", x, luma * std[:, 0, 0])[:, None] + (luma * mean[:, 0, 0]).sum()
        middle = grey.mean((2, 3), keepdim=True)
        scale = brightness * contrast * colour
        shift = brightness * (contrast * (1 - colour) * grey + (1 - contrast) * middle)
        # The pixel is x std + mean; so is the result.
        return scale * x + (shift + (scale - 1) * mean) / std

    def _move(self, x: Tensor) -> Tensor:
        grid = torch.nn.functional.affine_grid(self.planes(*x.shape[2:]).to(x), list(x.shape), align_corners=False)
        return torch.nn.functional.grid_sample(x, grid, padding_mode="zeros", align_corners=False)

    def planes(self, height: int, width: int) -> Tensor:
        """The affine maps ``[N, 2, 3]`` from a point of the new image to the point of the old one that is shown there;
        columns and rows from -1 to 1 over the image, as ``torch.nn.functional.affine_grid`` has them."""
        strengths = {name: self.strengths[:, number] for name, number in _NUMBER.items()}
        angle = ANGLE * strengths["rotate"]
        cosine, sine = angle.cos(), angle.sin()
        across, down = SLOPE * strengths["shear-x"], SLOPE * strengths["shear-y"]
        # First the shear, then the rotation, in pixels; the sides are not equally long.
        plane = torch.stack(
            [
                torch.stack([cosine - sine * down, (cosine * across - sine) * (height / width)], 1),
                torch.stack([(sine + cosine * down) * (width / height), sine * across + cosine], 1),
            ],
            1,
        )
        shift = 2 * SHIFT * torch.stack([strengths["translate-x"], strengths["translate-y"]], 1)
        return torch.cat([plane, shift[:, :, None]], 2)

    def _cut_out(self, x: Tensor) -> Tensor:
        """Put zeros, the mean colour, into a square around each centre; what lies outside the image is cut off."""
        half = self.strengths[:, _NUMBER["cutout"]].clamp(max=1) * (SIDE / 2)
        inside = []
        for side, centre in zip(x.shape[2:], self.centres.T, strict=True):
            place = (torch.arange(side) + 0.5) / side
            inside.append((place - centre[:, None]).abs() < half[:, None])
        rows, columns = inside
        return x.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None].to(x.device), 0.0)
