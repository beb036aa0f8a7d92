"""Tests of the learning rate over the steps of a training."""

import pytest

from collective_node.training import FLOOR, one_cycle


def test_one_cycle_rises_to_the_peak_and_falls_to_the_floor() -> None:
    rates = [one_cycle(step, 100, 0.1) for step in range(100)]
    top = rates.index(max(rates))
    assert max(rates) == pytest.approx(0.1)
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert min(rates) >= 0.1 * FLOOR
