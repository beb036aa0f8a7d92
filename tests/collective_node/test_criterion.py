"""Tests of the gradient criterion, against Eq. 4 and 5 written out."""

import pytest
import torch
from torch import Tensor

from collective_node.criterion import GradientTrend


def rho(gradients: list[Tensor], sigma: float) -> float:
    """Eq. 5 over several batches of one layer."""
    size = torch.cat([gradient.flatten() for gradient in gradients]).abs()
    return float((size > sigma).double().mean())


def test_agrees_with_the_equation() -> None:
    torch.manual_seed(0)
    layers = [[torch.randn(8, 4, 3, 3) * scale for _ in range(5)] for scale in (1e-3, 1e-5, 3.0)]
    trend = GradientTrend(3, sigma=2e-4)
    for batch in range(5):
        trend.observe([layer[batch] for layer in layers])
    for found, layer in zip(trend.end_task(), layers, strict=True):
        # A bin is 1.1 % wide: an entry that close to sigma may fall on either side.
        assert rho(layer, 2e-4 * 1.012) <= found <= rho(layer, 2e-4 / 1.012)


def test_negative_gradients_count_as_much_as_positive_ones() -> None:
    gradient = torch.randn(1000)
    found = []
    for sign in (1, -1):
        trend = GradientTrend(1, sigma=0.5)
        trend.observe([gradient * sign])
        found.append(trend.end_task())
    assert found[0] == found[1]


def test_the_first_task_fixes_sigma_at_half_the_pooled_median() -> None:
    torch.manual_seed(0)
    trend = GradientTrend(2)
    batches = [[torch.randn(999), torch.randn(99) * 10] for _ in range(3)]
    for batch in batches:
        trend.observe(batch)
    trend.end_task()
    pooled = torch.cat([gradient.abs() for batch in batches for gradient in batch])
    assert trend.sigma == pytest.approx(float(pooled.median()) / 2, rel=0.012)
    first = trend.sigma
    trend.observe([torch.ones(3), torch.zeros(3)])
    assert trend.end_task() == [1.0, 0.0]
    assert trend.sigma == first


def test_a_sigma_below_every_bin_counts_every_gradient_that_is_not_zero() -> None:
    trend = GradientTrend(1, sigma=1e-30)
    trend.observe([torch.tensor([1.0, 1e-3, -1e-6, 0.0])])
    assert trend.end_task() == [0.75]


def test_a_gradient_that_is_not_finite_is_refused() -> None:
    with pytest.raises(ValueError, match="convolution 2 is not finite"):
        GradientTrend(2).observe([torch.ones(2), torch.tensor([1.0, float("nan")])])


def test_a_task_without_gradients_cannot_end() -> None:
    with pytest.raises(ValueError, match="no gradient"):
        GradientTrend(1).end_task()
