"""What hides images: distributed as the proofs have it, and from no seed."""

import hashlib
import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import stats

from collective_node.differential_privacy.randomness import PrivateRandomness


def source(key: str = "test") -> Callable[[int], bytes]:
    """Bytes that are always the same ones, for tests that could fail by chance."""
    numbers = itertools.count()

    def draw(count: int) -> bytes:
        return hashlib.shake_256(f"{key} {next(numbers)}".encode()).digest(count)

    return draw


RANDOM = PrivateRandomness(source())


def test_noise_is_normal_with_the_deviation_that_was_asked_for() -> None:
    noise = RANDOM.normal((200, 100), 3.0)
    assert noise.shape == (200, 100)
    assert noise.dtype == torch.float64
    assert stats.kstest(noise.flatten().numpy() / 3.0, "norm").pvalue > 0.01
    assert stats.kstest(noise.flatten().numpy() / 3.1, "norm").pvalue < 0.01  # the test tells them apart


def test_noise_is_independent_from_value_to_value() -> None:
    noise = RANDOM.normal((4, 50_000), 1.0).numpy()
    assert np.abs(np.corrcoef(noise) - np.eye(4)).max() < 0.02
    flat = noise.flatten()
    assert abs(np.corrcoef(flat[:-1], flat[1:])[0, 1]) < 0.01


def test_uniform_values_are_below_one() -> None:
    """A value of one would make the noise infinite."""
    top = PrivateRandomness(lambda count: b"\xff" * count)
    assert top.uniform(3).max() < 1
    assert bool(torch.isfinite(top.normal((3,), 1.0)).all())
    bottom = PrivateRandomness(bytes)
    assert bool(torch.isfinite(bottom.normal((3,), 1.0)).all())
    assert bottom.noisy_count(10, 0.1) == 10


def test_every_image_takes_part_on_its_own() -> None:
    rows = torch.arange(5000, 7000)
    drawn = torch.stack([torch.isin(rows, RANDOM.sample(rows, 0.3)) for _ in range(400)]).double()
    assert stats.binomtest(int(drawn.sum()), drawn.numel(), 0.3).pvalue > 0.01
    sizes = drawn.sum(1).numpy()  # binomial: a fixed size would have no variance
    assert stats.chi2.cdf(sizes.var(ddof=1) * 399 / (2000 * 0.3 * 0.7), 399) == pytest.approx(0.5, abs=0.49)
    assert len(RANDOM.sample(rows, 1.0)) == 2000
    assert len(RANDOM.sample(rows, 0.0)) == 0


def test_labels_follow_the_model() -> None:
    probability = torch.tensor([[0.1, 0.6, 0.0, 0.3]], dtype=torch.float64).repeat(20_000, 1)
    counts = np.bincount(RANDOM.labels(probability).numpy(), minlength=4)
    assert counts[2] == 0
    assert stats.chisquare(counts[[0, 1, 3]], 20_000 * np.array([0.1, 0.6, 0.3])).pvalue > 0.01


def test_the_noisy_number_is_geometric_on_both_sides() -> None:
    epsilon = 0.5
    noise = np.array([RANDOM.noisy_count(1000, epsilon) - 1000 for _ in range(20_000)])
    values = np.arange(-4, 5)
    ratio = np.exp(-epsilon)
    expected = (1 - ratio) / (1 + ratio) * ratio ** np.abs(values)  # neighbours differ by e^epsilon at most
    counts = np.array([(noise == value).sum() for value in values])
    rest = len(noise) - counts.sum()
    assert stats.chisquare([*counts, rest], 20_000 * np.array([*expected, 1 - expected.sum()])).pvalue > 0.01
    assert PrivateRandomness(source("low")).noisy_count(1, 0.001) >= 1


def test_nothing_comes_from_a_seed() -> None:
    """Two that were made alike draw differently, and torch's and numpy's generators decide nothing."""
    drawn = []
    for _ in range(2):
        torch.manual_seed(0)
        np.random.seed(0)
        drawn.append(PrivateRandomness().normal((8,), 1.0))
    assert not torch.equal(*drawn)
