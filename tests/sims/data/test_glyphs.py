"""The stand-in images: reproducible, without repeats, hard for a network from scratch, and made of shared strokes."""

import hashlib

import numpy as np
import pytest
import torch
from torch import nn

from sims.data import glyphs


def test_drawn_pictures_have_the_promised_form() -> None:
    train, test = glyphs.draw(0, [3, 90], train=7, test=4)
    assert train.shape == (14, 32, 32, 3)
    assert test.shape == (8, 32, 32, 3)
    assert train.dtype == test.dtype == np.uint8
    # Colour: the channels differ, and both ends of the scale are used.
    assert (train[..., 0] != train[..., 1]).mean() > 0.5
    assert train.min() < 30
    assert train.max() > 225


def test_the_seed_decides_every_byte() -> None:
    first = glyphs.draw(5, [0, 99], train=300, test=20)  # more than one batch a class
    again = glyphs.draw(5, [0, 99], train=300, test=20)
    other = glyphs.draw(6, [0, 99], train=300, test=20)
    for drawn, repeated, different in zip(first, again, other, strict=True):
        np.testing.assert_array_equal(drawn, repeated)
        assert not np.array_equal(drawn, different)


def test_a_class_does_not_depend_on_the_others_drawn() -> None:
    alone, _ = glyphs.draw(1, [17], train=9, test=1)
    among, _ = glyphs.draw(1, [4, 17, 50], train=9, test=1)
    np.testing.assert_array_equal(among[9:18], alone)


def test_no_picture_is_drawn_twice() -> None:
    pictures = np.concatenate(glyphs.draw(0, range(0, 100, 10), train=300, test=60))
    digests = {hashlib.sha256(picture.tobytes()).digest() for picture in pictures}
    assert len(digests) == len(pictures)


def test_novel_classes_are_new_figures_of_strokes_that_base_classes_use() -> None:
    alphabet = glyphs.draw_alphabet(0)
    base, novel = alphabet.part[:64], alphabet.part[80:]
    assert set(novel.ravel()) <= set(base.ravel())
    figures = {(*map(int, part), *map(float, angle)) for part, angle in zip(alphabet.part, alphabet.angle, strict=True)}
    assert len(figures) == glyphs.CLASSES


def test_strokes_fade_before_their_border() -> None:
    # Sampling clamps to the border, so ink there would be smeared over the whole picture.
    strokes = glyphs.draw_alphabet(0).strokes
    border = np.concatenate([strokes[:, 0], strokes[:, -1], strokes[:, :, 0], strokes[:, :, -1]], axis=1)
    assert border.max() == 0
    assert (strokes.max(axis=(1, 2)) == 1).all()


def _scratch_network() -> nn.Sequential:
    """Seven convolutions, 16 32 64 128 | 128 128 128, as an individual that inherits nothing would have."""
    layers: list[nn.Module] = []
    before = 3
    for index, width in enumerate((16, 32, 64, 128, 128, 128, 128)):
        layers += [nn.Conv2d(before, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        if index < 4:
            layers.append(nn.MaxPool2d(2))
        before = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, 5))


def _scratch_accuracy(seed: int) -> float:
    """Per cent on the test pictures of one 5-way task of 10 shots, after 30 epochs from scratch."""
    torch.manual_seed(seed)
    classes = np.random.default_rng(seed).choice(np.arange(80, 100), 5, replace=False).tolist()
    train, test = (
        torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 128 - 1 for pictures in glyphs.draw(0, classes, 10, 40)
    )
    labels = torch.arange(5)
    network = _scratch_network()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.02, momentum=0.9, weight_decay=5e-4)
    for _ in range(30):
        for batch in torch.randperm(50).split(25):
            flipped = torch.where(torch.rand(25, 1, 1, 1) < 0.5, train[batch], train[batch].flip(3))
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(flipped), labels.repeat_interleave(10)[batch]).backward()
            optimizer.step()
    network.eval()
    with torch.no_grad():
        hits = network(test).argmax(1) == labels.repeat_interleave(40)
    return 100 * hits.float().mean().item()


@pytest.mark.slow
def test_a_network_from_scratch_gets_between_40_and_70_per_cent_at_ten_shots() -> None:
    accuracy = np.mean([_scratch_accuracy(seed) for seed in range(6)])
    assert 40 < accuracy < 70
