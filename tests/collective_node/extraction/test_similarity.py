"""Tests of the second criterion: linear CKA against a dense implementation, its invariances, and the descendant."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from collective_node.evaluation import accuracy
from collective_node.extraction.similarity import (
    DESCENDANT_WIDTHS,
    LinearAlignment,
    PseudoDescendant,
    compare,
    layer_features,
    train_descendant,
)
from collective_node.network.expandable_network import ExpandableNetwork
from collective_node.network.growth_steps import add_outputs, deepen
from collective_node.random_states import RandomStates
from collective_node.settings import CollectiveSettings
from collective_node.training_set import TrainingSet
from protocol.learngene.images import DeviceImages, Normalisation

CLASSES = 4
SETTINGS = CollectiveSettings(width=0.0625, batch_size=8, descendant_epochs=4)


def dense_cka(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """Kornblith et al. 2019, section 3: HSIC of the two Gram matrices, each centred on both sides, normalised."""
    count = len(x)
    centre = np.eye(count) - np.ones((count, count)) / count
    first, second = x @ x.T, y @ y.T

    def hsic(k: NDArray[np.float64], other: NDArray[np.float64]) -> float:
        return float(np.trace(k @ centre @ other @ centre)) / (count - 1) ** 2

    return hsic(first, second) / np.sqrt(hsic(first, first) * hsic(second, second))


def streamed(first: list[Tensor], second: list[Tensor], size: int = 7) -> Tensor:
    """CKA from batches of ``size``."""
    alignment = LinearAlignment()
    for start in range(0, len(first[0]), size):
        alignment.add([x[start : start + size] for x in first], [y[start : start + size] for y in second])
    return alignment.similarity()


def features(*widths: int, count: int = 50) -> list[Tensor]:
    """Representations that share something, with means away from zero."""
    generator = torch.Generator().manual_seed(sum(widths))
    shared = torch.randn((count, 3), generator=torch.Generator().manual_seed(0)).double()
    return [
        shared @ torch.randn((3, width), generator=generator).double()
        + torch.randn((count, width), generator=generator).double()
        + 5 * torch.rand(width, generator=generator).double()
        for width in widths
    ]


@pytest.mark.parametrize("size", [1, 7, 50])
def test_agrees_with_the_dense_independence_criterion_for_every_pair(size: int) -> None:
    first, second = features(4, 9), features(2, 5, 60)
    found = streamed(first, second, size)
    expected = [[dense_cka(x.numpy(), y.numpy()) for y in second] for x in first]
    assert 0.05 < np.min(expected) < np.max(expected) < 0.95
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-10)


def test_one_for_the_same_representation_turned_scaled_and_moved() -> None:
    (x,) = features(6)
    turn, _ = torch.linalg.qr(torch.randn((6, 6), generator=torch.Generator().manual_seed(1)).double())
    for y in (x, x @ turn, -3 * x, 0.01 * x @ turn + 40):
        torch.testing.assert_close(streamed([x], [y]), torch.ones(1, 1).double(), rtol=1e-9, atol=0)


def test_similarity_to_another_is_not_changed_by_turning_or_scaling_either_but_by_other_linear_maps() -> None:
    x, y = features(6)[0], features(8)[0]
    turn, _ = torch.linalg.qr(torch.randn((6, 6), generator=torch.Generator().manual_seed(1)).double())
    before = streamed([x], [y])
    torch.testing.assert_close(streamed([7 * x @ turn], [y]), before, rtol=1e-9, atol=0)
    torch.testing.assert_close(streamed([y], [7 * x @ turn]), before, rtol=1e-9, atol=0)
    stretched = streamed([x * torch.logspace(-2, 2, 6).double()], [y])
    assert abs(float(stretched - before)) > 0.01


def test_nothing_in_common_is_zero_and_so_is_a_constant_representation() -> None:
    waves = torch.arange(64) * 2 * torch.pi / 64
    x, y = waves.sin()[:, None], torch.stack([waves.cos(), (2 * waves).sin()], 1)
    assert float(streamed([x], [y])) < 1e-12
    assert float(streamed([x], [torch.full((64, 3), 1 / 3)])) == 0.0


def test_small_differences_between_large_features_are_not_lost() -> None:
    x, y = features(4)[0], features(5)[0]
    before = streamed([x], [y])
    torch.testing.assert_close(streamed([x + 1e6], [y - 1e6]), before, rtol=1e-7, atol=0)


def test_one_image_has_no_similarity() -> None:
    alignment = LinearAlignment()
    with pytest.raises(ValueError, match="two images"):
        alignment.similarity()
    alignment.add([torch.ones(1, 2)], [torch.ones(1, 2)])
    with pytest.raises(ValueError, match="two images"):
        alignment.similarity()


def images(count: int, seed: int = 0) -> DeviceImages:
    """Images whose class is their colour."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % CLASSES
    colours = np.random.default_rng(0).integers(0, 200, (CLASSES, 1, 1, 3))
    pixels = (colours[labels] + rng.integers(0, 56, (count, 32, 32, 3))).astype(np.uint8)
    return DeviceImages.load(pixels, labels, Normalisation.of(pixels), torch.device("cpu"))


def network(seed: int = 0) -> ExpandableNetwork:
    generator = torch.Generator().manual_seed(seed)
    made = ExpandableNetwork((4, 4, 4, 4, 8, 8, 8, 8, 8, 8, 8, 8, 8), hidden=16, dropout=0.0, generator=generator)
    add_outputs(made, CLASSES, generator)
    return made.eval()


def descendant() -> PseudoDescendant:
    return PseudoDescendant(3, CLASSES, 0.0625, torch.Generator().manual_seed(3)).eval()


def test_every_layer_is_compared_with_every_layer_and_its_largest_similarity_counts() -> None:
    collective, small, pictures = network(), descendant(), images(60)
    found = compare(collective, small, pictures)
    x, _ = pictures.batch(torch.arange(60))
    with torch.no_grad():
        maps = collective.blocks[:5](x), small.blocks[:3](x)
    expected = dense_cka(*(values.double().mean((2, 3)).numpy() for values in maps))
    assert found.layers[4][2] == pytest.approx(expected, rel=1e-5)
    assert [len(row) for row in found.layers] == [len(DESCENDANT_WIDTHS)] * 13
    assert found.per_layer == tuple(max(row) for row in found.layers)
    assert all(0 < value <= 1 for value in found.per_layer)


def test_a_network_is_most_like_itself() -> None:
    collective, pictures = network(), images(40)
    twin = descendant()
    twin.blocks = collective.blocks
    found = torch.tensor(compare(collective, twin, pictures).layers)
    torch.testing.assert_close(found.diagonal(), torch.ones(13), rtol=1e-6, atol=0)
    assert (found <= 1 + 1e-6).all()
    assert found.min() < 0.99


def test_a_layer_that_passes_its_input_on_is_as_similar_as_the_one_before_it() -> None:
    collective, pictures = network(), images(40)
    deepen(collective, 4, "identity")
    found = compare(collective, descendant(), pictures)
    assert len(found.layers) == 14
    np.testing.assert_allclose(found.layers[5], found.layers[4], rtol=1e-4)


def test_features_are_the_blocks_outputs_averaged_over_positions() -> None:
    collective, (x, _) = network(), images(4).batch(torch.arange(4))
    with torch.no_grad():
        found = layer_features(collective.layers, x)
    assert [tuple(values.shape) for values in found] == [(4, width) for width in collective.widths]
    torch.testing.assert_close(found[1], collective.blocks[:2](x).mean((2, 3)))


def test_the_descendant_learns_the_known_classes_and_one_seed_gives_one_descendant() -> None:
    pictures = images(64)
    # Only the last two classes are known, the last one first.
    rows = [torch.nonzero(pictures.labels == label)[:, 0] for label in (3, 2)]
    target = torch.tensor([-1, -1, 1, 0])
    data = TrainingSet(pictures, tuple(rows), target)
    trained = [train_descendant(data, 2, SETTINGS, RandomStates(5)) for _ in range(2)]
    for name, value in trained[0].state_dict().items():
        assert torch.equal(value, trained[1].state_dict()[name])
    known = images(40, seed=1)
    wanted = target[known.labels] >= 0
    known = DeviceImages(known.pixels[wanted], known.labels[wanted], known.mean, known.std)
    assert accuracy(trained[0], known, target) == 100
    assert not trained[0].training
