"""Tests of a training: its learning rate over the steps, and the size of a penalty's proximal steps."""

from pathlib import Path

import pytest

from collective_node.training import FLOOR, fit, one_cycle
from tests.collective_node.made_evolution import SETTINGS, evolution


def test_one_cycle_rises_to_the_peak_and_falls_to_the_floor() -> None:
    rates = [one_cycle(step, 100, 0.1) for step in range(100)]
    top = rates.index(max(rates))
    assert max(rates) == pytest.approx(0.1)
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert min(rates) >= 0.1 * FLOOR


@pytest.mark.parametrize("momentum", [0.0, 0.75])
def test_a_penalty_gets_the_rate_over_one_minus_the_momentum_after_each_step(tmp_path: Path, momentum: float) -> None:
    made = evolution(tmp_path / "state")
    collective = made.plan.begin(made.train)
    collective.learn_classes(range(8))
    settings = SETTINGS.model_copy(update={"momentum": momentum})
    sizes: list[float] = []
    steps, _ = fit(
        collective.network,
        dict(collective.network.named_parameters()),
        collective.training_set(collective.known),
        0.5,
        settings=settings,
        learning_rate=0.08,
        random=collective.random,
        proximal=sizes.append,
    )
    assert sizes == [one_cycle(step, steps, 0.08) / (1 - momentum) for step in range(steps)]
