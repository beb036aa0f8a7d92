"""Tests of images on the device, each against the same thing done image by image."""

import numpy as np
import pytest
import torch

from protocol.errors import InputError
from protocol.learngene.images import CROP_PADDING, CropAndFlip, DeviceImages, Normalisation, choose_device

CPU = torch.device("cpu")


def pixels(count: int = 6, side: int = 8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def test_normalisation_is_mean_and_deviation_of_the_pixels() -> None:
    images = pixels(20)
    found = Normalisation.of(images)
    np.testing.assert_allclose(found.mean, (images / 255).mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(found.std, (images / 255).std((0, 1, 2)), rtol=1e-6)


def test_batches_are_normalised_and_channels_last() -> None:
    images, labels = pixels(), np.arange(6)
    normalisation = Normalisation.of(images)
    x, y = DeviceImages.load(images, labels, normalisation, CPU).batch(torch.tensor([4, 1]))
    assert y.tolist() == [4, 1]
    assert x.is_contiguous(memory_format=torch.channels_last)
    expected = (images[[4, 1]] / 255 - normalisation.mean) / normalisation.std
    np.testing.assert_allclose(x.permute(0, 2, 3, 1).numpy(), expected, atol=1e-5)


def test_a_crop_and_flip_is_the_same_as_one_image_at_a_time() -> None:
    x = torch.randn(40, 2, 8, 8)
    draw = CropAndFlip.draw(40, torch.Generator().manual_seed(0))
    found = draw(x)
    assert set(draw.offsets.flatten().tolist()) == set(range(2 * CROP_PADDING + 1))
    assert 0 < int(draw.flip.sum()) < 40
    for n in range(40):
        padded = torch.nn.functional.pad(x[n], (CROP_PADDING,) * 4)
        row, column = int(draw.offsets[0, n]), int(draw.offsets[1, n])
        crop = padded[:, row : row + 8, column : column + 8]
        torch.testing.assert_close(found[n], crop.flip(2) if draw.flip[n] else crop)


def test_the_middle_offset_without_a_flip_is_the_image_itself() -> None:
    x = torch.randn(3, 2, 8, 8)
    still = CropAndFlip(torch.full((2, 3), CROP_PADDING), torch.zeros(3, dtype=torch.bool))
    torch.testing.assert_close(still(x), x)


def test_devices() -> None:
    assert choose_device("cpu") == CPU
    assert choose_device("auto").type in ("cpu", "cuda")
    with pytest.raises(InputError, match="is not there"):
        choose_device("cuda:99")
    with pytest.raises(InputError, match="not one of"):
        choose_device("quantum")
    with pytest.raises(InputError, match="not one of"):
        choose_device("meta")
