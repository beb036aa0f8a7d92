"""Averages of weights: the recurrence and the mean written out, and statistics that fit them."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from collective_node.training_set import TrainingSet
from collective_node.weight_averaging import WeightAverage, estimate_statistics
from protocol.learngene.images import DeviceImages, Normalisation, autocast

STEPS = 20


def made_data() -> TrainingSet:
    rng = np.random.default_rng(0)
    pixels, labels = rng.integers(0, 256, (12, 8, 8, 3), dtype=np.uint8), np.arange(12) % 3
    images = DeviceImages.load(pixels, labels, Normalisation.fixed(3), torch.device("cpu"))
    return TrainingSet(images, tuple(torch.arange(label, 12, 3) for label in range(3)), torch.arange(3))


def made() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).train()


def walk(model: nn.Module, average: WeightAverage) -> Iterator[list[Tensor]]:
    """Weights that move by random steps; the values after each step."""
    generator = torch.Generator().manual_seed(1)
    for step in range(STEPS):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += torch.randn(parameter.shape, generator=generator)
        average.update(step)
        yield [parameter.detach().double() for parameter in model.parameters()]


def ended(decay: float, share: float) -> tuple[list[Tensor], list[list[Tensor]], list[Tensor]]:
    """The weights before, after each step, and in the end."""
    model = made()
    begin = [parameter.detach().double() for parameter in model.parameters()]
    average = WeightAverage(dict(model.named_parameters()), STEPS, decay=decay, share=share)
    path = list(walk(model, average))
    average.finish(model, made_data(), torch.Generator().manual_seed(0), 4)
    return begin, path, [parameter.detach().double() for parameter in model.parameters()]


@pytest.mark.parametrize("decay", [0.3, 0.9])
def test_the_exponential_average_is_its_recurrence(decay: float) -> None:
    begin, path, found = ended(decay, 0.0)
    expected = begin
    for step, weights in enumerate(path):
        d = min(decay, (1 + step) / (10 + step))
        expected = [d * a + (1 - d) * w for a, w in zip(expected, weights, strict=True)]
    for value, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(value, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("share", "count"), [(0.25, 5), (1.0, 20), (0.001, 1)])
def test_the_plain_average_is_the_mean_over_the_last_steps(share: float, count: int) -> None:
    _, path, found = ended(0.0, share)
    for number, value in enumerate(found):
        mean = torch.stack([weights[number] for weights in path[-count:]]).mean(0)
        torch.testing.assert_close(value, mean, rtol=1e-5, atol=1e-5)


def test_when_it_is_off_weights_and_statistics_stay_as_they_are() -> None:
    _, path, found = ended(0.0, 0.0)
    assert all(torch.equal(value, last) for value, last in zip(found, path[-1], strict=True))


def test_statistics_are_the_means_over_batches_of_images_as_they_are() -> None:
    model, data = made(), made_data()
    estimate_statistics(model, data, torch.Generator().manual_seed(0), 3, 4)
    conv, norm = model[0], model[1]
    order = data.balanced(3, 4, torch.Generator().manual_seed(0))
    with torch.no_grad(), autocast(torch.device("cpu")):
        maps = [conv(data.batch(index)[0]).float() for index in order]
    torch.testing.assert_close(norm.running_mean, torch.stack([found.mean((0, 2, 3)) for found in maps]).mean(0))
    variance = torch.stack([found.var((0, 2, 3)) for found in maps]).mean(0)
    torch.testing.assert_close(norm.running_var, variance, rtol=1e-3, atol=1e-4)
    assert norm.momentum == 0.1
