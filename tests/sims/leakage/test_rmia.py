"""RMIA against the paper's equations written out unit by unit, on probabilities with and without anything to find."""

from functools import partial

import numpy as np
import pytest
from numpy.typing import NDArray

from sims.leakage import rmia
from sims.leakage.attack_evaluation import Attack, Statistics, evaluate
from sims.leakage.attack_metrics import Mask, auroc
from sims.leakage.likelihood_ratio import paired_halves

ONLINE = Attack("online", partial(rmia.online, gamma=1.0), (0,), fisher=False, population=True)
OFFLINE = Attack("offline", partial(rmia.offline, gamma=1.0, a=0.5), (0,), fisher=False, population=True)


def drawn(
    shadows: int, units: int, population: int, effect: float, rng: np.random.Generator
) -> tuple[NDArray[np.float64], Mask]:
    """Log-probabilities of images that are each as hard as they are; use adds ``effect`` to a unit's log-odds."""
    inside = paired_halves([units], shadows, rng)
    rows = units + population
    odds = rng.normal(0, 2, rows) + rng.normal(0, 0.7, (shadows, rows))
    odds[:, :units] += effect * inside
    return -np.log1p(np.exp(-odds))[..., None], inside


def by_the_paper(
    target: NDArray[np.float64], shadows: NDArray[np.float64], inside: Mask, gamma: float, a: float | None
) -> list[float]:
    """The share of the population that each unit beats by ``gamma``; offline with ``a``, online without."""
    units, rows = inside.shape[1], len(target)
    ratio = []
    for row in range(rows):
        probabilities = np.exp(shadows[:, row, 0])
        used = inside[:, row] if row < units else np.zeros(len(inside), dtype=np.bool_)
        out = probabilities[~used].mean()
        if a is not None:
            expected = ((1 + a) * out + (1 - a)) / 2
        else:
            expected = (probabilities[used].mean() + out) / 2 if row < units else out
        ratio.append(np.exp(target[row, 0]) / expected)
    return [float(np.mean([ratio[x] / ratio[z] >= gamma for z in range(units, rows)])) for x in range(units)]


@pytest.mark.parametrize("gamma", [1.0, 1.3])
@pytest.mark.parametrize("a", [None, 0.0, 0.3, 1.0])
def test_scores_are_the_papers(gamma: float, a: float | None) -> None:
    rng = np.random.default_rng(0)
    shadows, inside = drawn(7 + 1, 20, 33, 1.0, rng)
    target = shadows[0]
    if a is None:
        scores = rmia.online(target, shadows[2:], inside[2:], gamma=gamma)
    else:
        scores = rmia.offline(target, shadows[2:], inside[2:], gamma=gamma, a=a)
    expected = by_the_paper(target, shadows[2:], inside[2:], gamma, a)
    assert scores == pytest.approx(np.array(expected))
    assert 0 < scores.mean() < 1


@pytest.mark.parametrize("attack", [ONLINE, OFFLINE])
def test_members_are_found_where_use_leaves_a_trace_and_not_where_it_leaves_none(attack: Attack) -> None:
    rng = np.random.default_rng(1)
    found = Statistics(None, None, *drawn(8, 2000, 1000, 0.7, rng))
    assert evaluate(attack, found, (0.1,), 20, rng).shadows["auroc"].low > 0.58
    nothing = Statistics(None, None, *drawn(8, 2000, 1000, 0.0, rng))
    assert abs(evaluate(attack, nothing, (0.1,), 20, rng).shadows["auroc"].value - 0.5) < 0.02


def test_offline_never_reads_a_shadow_that_holds_the_unit() -> None:
    rng = np.random.default_rng(2)
    shadows, inside = drawn(8, 20, 30, 1.0, rng)
    changed = shadows.copy()
    changed[:, :20][inside] = -9.0
    first, second = (rmia.offline(shadows[0], one, inside, gamma=1.0, a=0.3) for one in (shadows, changed))
    assert (first == second).all()


def test_on_one_release_the_order_is_that_of_the_ratio_alone() -> None:
    """The population makes scores of several releases comparable; a fine one changes no order on one of them."""
    rng = np.random.default_rng(3)
    shadows, inside = drawn(8, 200, 5000, 1.0, rng)
    scores = rmia.online(shadows[0], shadows[2:], inside[2:], gamma=1.0)
    ratio = shadows[0, :200, 0] - np.log(np.exp(shadows[2:, :200, 0]).mean(0))
    assert auroc(scores, inside[0]) == pytest.approx(auroc(ratio, inside[0]), abs=2e-3)


def test_tiny_probabilities_stay_numbers() -> None:
    shadows = np.full((4, 6, 1), -2000.0)
    inside = np.array([[True, False, True, False], [False, True, False, True]] * 2)
    target = np.full((6, 1), -1990.0)
    assert np.isfinite(rmia.online(target, shadows, inside, gamma=1.0)).all()
    assert np.isfinite(rmia.offline(target, shadows, inside, gamma=1.0, a=1.0)).all()


@pytest.mark.parametrize(
    ("rows", "inside", "says"),
    [
        (2, [[True, False], [False, True]], "no population"),
        (3, [[True, False], [True, True]], "every unit"),
        (1, [[True, False], [False, True]], "do not fit"),
    ],
)
def test_what_cannot_be_compared_is_refused(rows: int, inside: list[list[bool]], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        rmia.online(np.zeros((rows, 1)), np.zeros((2, rows, 1)), np.array(inside), gamma=1.0)
