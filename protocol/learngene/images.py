"""Images on the device: normalisation, random crops and flips; nothing is done image by image in Python."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from protocol.errors import InputError

CROP_PADDING = 4


@dataclass(frozen=True)
class Normalisation:
    """Channel means and standard deviations of images scaled to 0..1; both float32 ``[channels]``."""

    mean: NDArray[np.float32]
    std: NDArray[np.float32]

    @classmethod
    def of(cls, images: NDArray[np.uint8]) -> "Normalisation":
        """The normalisation measured on ``[N, H, W, C]`` uint8 images, from exact integer sums."""
        flat = images.reshape(-1, images.shape[-1])
        count = np.stack([np.bincount(flat[:, channel], minlength=256) for channel in range(flat.shape[1])])
        values = np.arange(256, dtype=np.float64) / 255
        mean = count @ values / len(flat)
        variance = count @ values**2 / len(flat) - mean**2
        return cls(mean.astype(np.float32), np.sqrt(np.maximum(variance, 1e-8)).astype(np.float32))

    @classmethod
    def fixed(cls, channels: int) -> "Normalisation":
        """A fixed normalisation, measured on no image: black becomes -2, white 2."""
        return cls(np.full(channels, 0.5, np.float32), np.full(channels, 0.25, np.float32))


@dataclass(frozen=True)
class CropAndFlip:
    """One draw of a random crop (zero padding 4) and a horizontal flip per image.

    Attributes:
        offsets: int64 ``[2, N]``, rows and columns, 0..8 (4: no shift).
        flip: bool ``[N]``.
    """

    offsets: Tensor
    flip: Tensor

    @classmethod
    def draw(cls, count: int, generator: torch.Generator) -> "CropAndFlip":
        """Independent draws for ``count`` images (CPU generator)."""
        offsets = torch.randint(0, 2 * CROP_PADDING + 1, (2, count), generator=generator)
        return cls(offsets, torch.rand(count, generator=generator) < 0.5)

    def split(self, sizes: Sequence[int]) -> "list[CropAndFlip]":
        """The draws for parts of a batch of these sizes."""
        return [
            CropAndFlip(offsets, flip)
            for offsets, flip in zip(self.offsets.split(sizes, 1), self.flip.split(sizes), strict=True)
        ]

    def __call__(self, x: Tensor) -> Tensor:
        """Crop and flip ``[N, C, H, W]``: one gather of rows and columns on the device."""
        height, width = x.shape[2:]
        rows = self.offsets[0][:, None] + torch.arange(height)
        columns = torch.arange(width).expand(len(x), width)
        columns = self.offsets[1][:, None] + torch.where(self.flip[:, None], width - 1 - columns, columns)
        padded = torch.nn.functional.pad(x, (CROP_PADDING,) * 4).permute(0, 2, 3, 1)
        index = torch.arange(len(x), device=x.device)[:, None, None]
        picked = padded[index, rows.to(x.device)[:, :, None], columns.to(x.device)[:, None, :]]
        return picked.permute(0, 3, 1, 2)


def choose_device(setting: str) -> torch.device:
    """``auto`` (CUDA if the machine has it), ``cpu``, ``cuda`` or ``cuda:<n>``; on CUDA with deterministic algorithms.

    Raises:
        InputError: the device is not there.
    """
    if setting == "auto":
        setting = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(setting)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"device {setting!r} is not one of auto, cpu, cuda, cuda:<n>")
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if (device.index or 0) >= count:
            raise InputError(f"device {setting!r} is not there: this machine has {count} CUDA devices")
        # One seed gives one result: no atomics in cuDNN's backward pass, a fixed workspace for cuBLAS.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    return device


def bfloat16_is_fast(device: torch.device) -> bool:
    """Whether the machine multiplies bfloat16 faster than float32: a GPU that has it, a processor with tiles (AMX).

    The dot products of AVX512-BF16 alone do not pay: with them, a product of matrices runs at half of float32's rate
    and a convolution at two thirds (Xeon of 2023 without AMX, oneDNN 3).
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    tiles: Callable[[], bool] | None = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return device.type == "cpu" and tiles is not None and tiles()


def autocast(device: torch.device) -> AbstractContextManager[object]:
    """bfloat16 autocast if the machine has it, float32 otherwise."""
    if bfloat16_is_fast(device):
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()


@contextmanager
def full_float32() -> Iterator[None]:
    """Compute float32 products in full precision: TF32, which rounds to ten bits, is off inside the ``with``."""
    cudnn, products = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, products.allow_tf32
    cudnn.allow_tf32 = products.allow_tf32 = False
    try:
        yield
    finally:
        cudnn.allow_tf32, products.allow_tf32 = before


@dataclass(frozen=True)
class DeviceImages:
    """Images and labels that stay on the device as bytes and leave it as normalised batches.

    Attributes:
        pixels: uint8 ``[N, H, W, C]``.
        labels: int64 ``[N]``.
        mean, std: float32 ``[C]``.
    """

    pixels: Tensor
    labels: Tensor
    mean: Tensor
    std: Tensor

    @classmethod
    def load(
        cls,
        images: NDArray[np.uint8],
        labels: NDArray[np.int64],
        normalisation: Normalisation,
        device: torch.device,
    ) -> "DeviceImages":
        """Copy images ``[N, H, W, C]`` and labels ``[N]`` to the device."""
        return cls(
            torch.from_numpy(np.array(images)).to(device),
            torch.from_numpy(np.array(labels)).to(device),
            torch.from_numpy(np.array(normalisation.mean)).to(device),
            torch.from_numpy(np.array(normalisation.std)).to(device),
        )

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised float32 ``[n, C, H, W]`` (channels-last memory) and labels ``[n]`` of the rows ``index``."""
        index = index.to(self.pixels.device)
        pixels = self.pixels[index].float().div_(255).sub_(self.mean).div_(self.std)
        return pixels.permute(0, 3, 1, 2), self.labels[index]

    def in_order(self, size: int = 500) -> Iterator[tuple[Tensor, Tensor]]:
        """Every image once, in order, in batches of ``size``."""
        for index in torch.arange(len(self)).split(size):
            yield self.batch(index)
