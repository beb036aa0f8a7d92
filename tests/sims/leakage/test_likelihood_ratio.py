"""LiRA and the shared shift against independent implementations, against the best that there is, and where there is
nothing to find."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import multivariate_normal, norm

from sims.leakage.attack_evaluation import Attack, Statistics, by_chance, evaluate, itself
from sims.leakage.attack_metrics import Mask, auroc, central_bounds
from sims.leakage.likelihood_ratio import offline, online, others, paired_halves, shared_shift

ONLINE = Attack("online", online, (0,), fisher=False)
SHARED = Attack("shared shift", shared_shift, (0,), fisher=False)
PLAIN = Attack("plain", itself, (0,), fisher=False)


def drawn(
    shadows: int, units: int, effect: float, rng: np.random.Generator, columns: int = 1
) -> tuple[NDArray[np.float64], Mask]:
    """Statistics of units that each have a level of their own, and rise by ``effect`` where the unit was used."""
    inside = paired_halves([units], shadows, rng)
    level = rng.normal(0, 5, (units, columns))
    return level + effect * inside[..., None] + rng.normal(0, 1, (shadows, units, columns)), inside


def test_halves_are_complementary_balanced_and_every_group_is_cut() -> None:
    inside = paired_halves([4, 6, 2], 8, np.random.default_rng(0))
    assert (inside[::2] == ~inside[1::2]).all()
    assert (inside.sum(0) == 4).all()
    for group in (slice(0, 4), slice(4, 10), slice(10, 12)):
        assert (inside[:, group].mean(1) == 0.5).all()
    assert not (inside[0] == inside[2]).all() or not (inside[0] == inside[4]).all()
    for number in range(8):
        assert (inside[others(number, 8)].sum(0) == 3).all()


@pytest.mark.parametrize(("groups", "shadows"), [([4], 3), ([3], 4), ([4], 0)])
def test_odd_halves_are_refused(groups: list[int], shadows: int) -> None:
    with pytest.raises(ValueError, match="pairs"):
        paired_halves(groups, shadows, np.random.default_rng(0))


def test_online_is_the_ratio_of_two_gaussian_densities() -> None:
    rng = np.random.default_rng(1)
    shadows, inside = drawn(10, 12, 1.0, rng, columns=2)
    target = rng.normal(0, 3, (12, 2))
    expected = np.zeros(12)
    for sign, counted in ((1, inside), (-1, ~inside)):
        means = np.array([shadows[counted[:, unit], unit].mean(0) for unit in range(12)])
        residuals = np.concatenate([shadows[counted[:, unit], unit] - means[unit] for unit in range(12)])
        covariance = residuals.T @ residuals / (len(residuals) - 12)
        expected += sign * np.array(
            [multivariate_normal(mean, covariance).logpdf(x) for mean, x in zip(means, target, strict=True)]
        )
    assert online(target, shadows, inside) == pytest.approx(expected, rel=1e-3, abs=1e-3)


def test_offline_ranks_as_the_one_sided_test() -> None:
    rng = np.random.default_rng(2)
    shadows, inside = drawn(8, 10, 1.0, rng)
    target = rng.normal(0, 3, (10, 1))
    means = np.array([shadows[~inside[:, unit], unit, 0].mean() for unit in range(10)])
    residuals = np.concatenate([shadows[~inside[:, unit], unit, 0] - means[unit] for unit in range(10)])
    spread = np.sqrt((residuals**2).sum() / (len(residuals) - 10))
    expected = norm.cdf((target[:, 0] - means) / spread)
    assert norm.cdf(offline(target, shadows, inside)) == pytest.approx(expected, abs=1e-5)


def test_the_shared_shift_is_the_ratio_of_its_models_densities() -> None:
    """Unit by unit, with shift and centres by least squares on indicators of membership and unit."""
    rng = np.random.default_rng(7)
    shadows, inside = drawn(10, 12, 1.0, rng, columns=2)
    target = rng.normal(0, 3, (12, 2))
    design = np.array(
        [[float(inside[k, i]), *(float(i == j) for j in range(12))] for k in range(10) for i in range(12)]
    )
    solved = np.linalg.lstsq(design, shadows.reshape(-1, 2), rcond=None)[0]
    shift, centres = solved[0], solved[1:]
    spread = []
    for counted in (inside, ~inside):
        groups = [shadows[counted[:, unit], unit] for unit in range(12)]
        residuals = np.concatenate([group - group.mean(0) for group in groups])
        spread.append(residuals.T @ residuals / (len(residuals) - 12))
    error = (5 * spread[0] + 5 * spread[1]) / 10**2
    expected = [
        multivariate_normal(centre + shift, spread[0] + error).logpdf(x)
        - multivariate_normal(centre, spread[1] + error).logpdf(x)
        for centre, x in zip(centres, target, strict=True)
    ]
    assert shared_shift(target, shadows, inside) == pytest.approx(np.array(expected), rel=1e-3, abs=1e-3)


def test_a_small_common_shift_is_seen_by_the_shared_shift_and_missed_online() -> None:
    """Eight shadows, a shift of 0.15 standard deviations. With six references, no test of a unit's distance from their
    mean has a larger AUROC than Phi(0.15 / sqrt(2 (1 + 1 / 6)))."""
    rng = np.random.default_rng(8)
    shadows, inside = drawn(8, 6000, 0.15, rng)
    found = Statistics(None, None, shadows, inside)
    best = norm.cdf(0.15 / np.sqrt(2 * (1 + 1 / 6)))
    reached = evaluate(SHARED, found, (0.1,), 20, rng).shadows["auroc"].value
    assert best - 0.012 < reached < best + 0.012
    assert evaluate(ONLINE, found, (0.1,), 20, rng).shadows["auroc"].value < best - 0.015
    nothing = Statistics(None, None, *drawn(8, 6000, 0.0, rng))
    assert abs(evaluate(SHARED, nothing, (0.1,), 20, rng).shadows["auroc"].value - 0.5) < 0.012


def test_the_shared_shift_finds_the_sign_of_the_shift_by_itself() -> None:
    rng = np.random.default_rng(9)
    shadows, inside = drawn(8, 3000, -1.0, rng)
    assert auroc(shared_shift(shadows[0], shadows[2:], inside[2:]), inside[0]) > 0.65


def test_the_shared_shift_sees_a_spread_that_changes_alone() -> None:
    """Training holds the statistic of a member still, and shifts none: what is far from its centre is no member."""
    rng = np.random.default_rng(10)
    shadows, inside = drawn(8, 3000, 0.0, rng)
    level = rng.normal(0, 5, (3000, 1))
    shadows = level + rng.normal(0, 1, shadows.shape) * np.where(inside, 0.4, 1.0)[..., None]
    assert auroc(shared_shift(shadows[0], shadows[2:], inside[2:]), inside[0]) > 0.6


def test_with_many_shadows_it_is_as_good_as_anything_can_be() -> None:
    """Two unit Gaussians one apart: no test has a larger AUROC than Phi(1 / sqrt 2); with K shadows, its own means
    cost it what their errors do."""
    rng = np.random.default_rng(3)
    shadows, inside = drawn(66, 6000, 1.0, rng)
    scores = online(shadows[0], shadows[2:], inside[2:])
    best = norm.cdf(1 / np.sqrt(2))
    reached = auroc(scores, inside[0])
    assert best - 0.02 < reached < best + 0.012
    # The level of each unit hides it from a common threshold.
    assert auroc(shadows[0, :, 0], inside[0]) < 0.58


def test_nothing_is_found_where_nothing_is() -> None:
    """Also not by the number of shadows that a unit is in: the complementary one is left out."""
    rng = np.random.default_rng(4)
    shadows, inside = drawn(8, 3000, 0.0, rng)
    found = evaluate(ONLINE, Statistics(None, None, shadows, inside), (0.1,), 20, rng)
    assert abs(found.shadows["auroc"].value - 0.5) < 0.012
    assert abs(found.shadows["balanced_accuracy"].value - 0.5) < 0.012
    assert found.curve[0] == pytest.approx(0.1, abs=0.02)


def test_without_leaving_the_pair_out_an_empty_release_would_look_otherwise() -> None:
    """Why it is left out: a member is then in fewer of the others than it is out of."""
    rng = np.random.default_rng(5)
    shadows, inside = drawn(6, 20_000, 0.0, rng)
    rest = np.arange(1, 6)
    assert auroc(online(shadows[0], shadows[rest], inside[rest]), inside[0]) < 0.49


def test_a_release_is_rated_by_its_own_truth_and_made_up_membership_finds_nothing() -> None:
    rng = np.random.default_rng(6)
    shadows, inside = drawn(18, 800, 2.0, rng)
    found = Statistics(shadows[0], inside[0], shadows[2:], inside[2:])
    result = evaluate(ONLINE, found, (0.01, 1.0), 50, rng)
    assert result.release is not None
    assert result.release["auroc"].low > 0.85
    assert result.shadows["auroc"].low > 0.85
    assert result.release["balanced_accuracy"].value > 0.75
    assert result.curve[1] == 1.0
    assert evaluate(PLAIN, found, (0.5,), 20, rng).shadows["auroc"].value < 0.7
    bounds = central_bounds(by_chance(ONLINE, found, [paired_halves([800], 16, rng) for _ in range(20)]))
    assert bounds.low < 0.5 < bounds.high < 0.6
    assert abs(bounds.value - 0.5) < 0.02


def test_a_unit_without_shadows_on_both_sides_is_refused() -> None:
    with pytest.raises(ValueError, match="every unit"):
        online(np.zeros((2, 1)), np.zeros((2, 2, 1)), np.array([[True, False], [True, True]]))
