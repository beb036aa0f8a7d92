"""RandAugment on a batch, each operation against its definition or another library's."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from collective_node.randaugment import ANGLE, FACTOR, OPERATIONS, SHIFT, SIDE, SLOPE, RandAugment

MEAN, STD = torch.tensor([0.5, 0.4, 0.45]), torch.tensor([0.25, 0.2, 0.3])


def images(height: int = 8, width: int = 8, channels: int = 3) -> Tensor:
    """Pixels between 0.3 and 0.7, which no operation here drives to black or white."""
    generator = torch.Generator().manual_seed(0)
    return 0.3 + 0.4 * torch.rand((5, channels, height, width), generator=generator)


def normalised(pixels: Tensor) -> Tensor:
    return (pixels - MEAN[:, None, None]) / STD[:, None, None]


def one(count: int = 5, **strengths: float) -> RandAugment:
    """The same operations for every image; the centres of cutouts in the middle."""
    values = torch.zeros(count, len(OPERATIONS))
    for name, strength in strengths.items():
        values[:, OPERATIONS.index(name.replace("_", "-"))] = strength
    return RandAugment(values, torch.full((count, 2), 0.5))


def test_without_strength_nothing_changes() -> None:
    x = normalised(images(8, 6))
    torch.testing.assert_close(one()(x, MEAN, STD), x)


@pytest.mark.parametrize(
    ("name", "theirs"),
    [("brightness", "adjust_brightness"), ("contrast", "adjust_contrast"), ("colour", "adjust_saturation")],
)
@pytest.mark.parametrize("strength", [-0.3, 0.4])
def test_colours_are_those_of_torchvision(name: str, theirs: str, strength: float) -> None:
    functional = pytest.importorskip("torchvision.transforms.functional")
    pixels = images()
    expected = getattr(functional, theirs)(pixels, 1 + FACTOR * strength)
    found = one(**{name: strength})(normalised(pixels), MEAN, STD)
    torch.testing.assert_close(found, normalised(expected), rtol=0, atol=2e-3)  # its weights of green have three digits


def test_all_colours_together_are_colour_then_contrast_then_brightness() -> None:
    x = normalised(images())
    step_by_step = x
    for name, strength in (("colour", 0.3), ("contrast", -0.2), ("brightness", 0.1)):
        step_by_step = one(**{name: strength})(step_by_step, MEAN, STD)
    together = one(colour=0.3, contrast=-0.2, brightness=0.1)(x, MEAN, STD)
    torch.testing.assert_close(together, step_by_step, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 2])
def test_images_of_other_channels_have_the_mean_of_them_as_grey(channels: int) -> None:
    pixels = images(channels=channels)
    mean, std = MEAN[:channels], STD[:channels]
    x = (pixels - mean[:, None, None]) / std[:, None, None]
    grey = pixels.mean(1, keepdim=True)
    expected = (grey + (1 + FACTOR * 0.5) * (pixels - grey) - mean[:, None, None]) / std[:, None, None]
    torch.testing.assert_close(one(colour=0.5)(x, mean, std), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (8, 4)])
@pytest.mark.parametrize("pixels", [-2, 1])
def test_a_translation_by_whole_pixels_shifts_and_leaves_zeros(height: int, width: int, pixels: int) -> None:
    x = images(height, width)
    found = one(translate_x=pixels / width / SHIFT)(x, MEAN * 0, STD * 0 + 1)
    expected = torch.zeros_like(x)
    for column in range(width):
        if 0 <= column + pixels < width:
            expected[..., column] = x[..., column + pixels]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_a_quarter_turn_is_that_of_torch() -> None:
    x = images()
    for quarter in (1, -1):
        found = one(rotate=quarter * math.pi / 2 / ANGLE)(x, MEAN * 0, STD * 0 + 1)
        torch.testing.assert_close(found, torch.rot90(x, quarter, (2, 3)), rtol=0, atol=1e-4)


def test_a_shear_moves_every_row_by_its_distance_from_the_middle() -> None:
    x = images()
    found = one(shear_x=2 / SLOPE)(x, MEAN * 0, STD * 0 + 1)
    expected = torch.zeros_like(x)
    for row in range(8):
        for column in range(8):
            source = column + 2 * row - 7
            if 0 <= source < 8:
                expected[..., row, column] = x[..., row, source]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_the_plane_is_the_product_of_its_maps_whatever_the_sides() -> None:
    height, width = 6, 10
    strengths = {"shear_x": 0.4, "shear_y": -0.7, "rotate": 0.9, "translate_x": 0.2, "translate_y": -0.5}
    found = one(**strengths).planes(height, width)[0].double().numpy()
    angle = ANGLE * 0.9
    rotation = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    shear = np.array([[1, SLOPE * 0.4], [-SLOPE * 0.7, 1]])
    pixels = np.diag([width / 2, height / 2])
    np.testing.assert_allclose(found[:, :2], np.linalg.inv(pixels) @ rotation @ shear @ pixels, rtol=1e-5)
    np.testing.assert_allclose(found[:, 2], [2 * SHIFT * 0.2, -2 * SHIFT * 0.5], rtol=1e-5)


def test_a_cutout_is_a_square_of_zeros_around_its_centre_cut_off_at_the_border() -> None:
    x = images(32, 32)
    draw = RandAugment(one(cutout=0.5).strengths, torch.tensor([[0.5, 0.25]] * 4 + [[0.0, 1.0]]))
    found = draw(x, MEAN, STD)
    side = int(0.5 * SIDE * 32)
    expected = x.clone()
    expected[:4, :, 16 - side // 2 : 16 + side // 2, 8 - side // 2 : 8 + side // 2] = 0
    expected[4, :, : side // 2, 32 - side // 2 :] = 0
    torch.testing.assert_close(found, expected)


def test_a_part_of_a_batch_is_changed_as_the_whole_is() -> None:
    draw = RandAugment.draw(5, 3, 7.0, torch.Generator().manual_seed(0))
    x = normalised(images())
    whole = draw(x, MEAN, STD)
    parts = [part(some, MEAN, STD) for part, some in zip(draw.split([2, 3]), x.split([2, 3]), strict=True)]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(whole, x)


def test_each_image_draws_so_many_operations_at_one_magnitude_each_as_often() -> None:
    draw = RandAugment.draw(4000, 1, 5.0, torch.Generator().manual_seed(0))
    assert torch.equal((draw.strengths != 0).sum(1), torch.ones(4000, dtype=torch.int64))
    assert torch.equal(draw.strengths.abs().amax(1), torch.full((4000,), 0.5))
    often = (draw.strengths != 0).float().mean(0)
    torch.testing.assert_close(often, torch.full_like(often, 0.1), rtol=0, atol=0.03)
    signed = draw.strengths.sum(0) / draw.strengths.abs().sum(0)
    cutout = OPERATIONS.index("cutout")
    assert float(signed[cutout]) == 1.0
    assert float(signed[torch.arange(len(OPERATIONS)) != cutout].abs().max()) < 0.25
