"""Intervals and paired differences against scipy.stats and against what an interval promises."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from sims.results.statistics import mean_interval, paired_difference

VALUES = st.lists(st.floats(0, 100, allow_subnormal=False), min_size=2, max_size=60)


@given(VALUES)
def test_the_interval_is_students(values: list[float]) -> None:
    found = mean_interval(values)
    assert found.count == len(values)
    assert found.mean == pytest.approx(np.mean(values))
    expected = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
    assert found.ci95 == pytest.approx(expected, abs=1e-9)


@given(VALUES, st.floats(-50, 50))
def test_a_shift_moves_the_mean_and_keeps_the_width(values: list[float], shift: float) -> None:
    found, moved = mean_interval(values), mean_interval([value + shift for value in values])
    assert moved.mean == pytest.approx(found.mean + shift, abs=1e-9)
    assert moved.ci95 == pytest.approx(found.ci95, abs=1e-9)


def test_it_covers_the_true_mean_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(2000):
        found = mean_interval(list(generator.normal(3.0, 7.0, size=5)))
        assert found.ci95 is not None
        covered += abs(found.mean - 3.0) <= found.ci95
    # Five standard deviations of a binomial around 0.95; the normal quantile instead of Student's would give 0.88.
    assert abs(covered / 2000 - 0.95) < 5 * np.sqrt(0.95 * 0.05 / 2000)


def test_one_value_has_no_interval() -> None:
    found = mean_interval([42.0])
    assert (found.mean, found.ci95, found.count) == (42.0, None, 1)


@pytest.mark.parametrize("values", [[], [1.0, float("nan")], [float("inf")]])
def test_nothing_and_what_is_not_finite_is_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match="finite"):
        mean_interval(values)


def test_a_paired_difference_is_the_interval_of_the_differences_on_common_tasks() -> None:
    first, second = {0: 70.0, 1: 55.0, 2: 80.0, 7: 1.0}, {2: 71.0, 1: 50.0, 0: 60.0, 9: 99.0}
    found = paired_difference(first, second)
    assert found is not None
    assert found.ci95 is not None
    expected = stats.ttest_rel([70.0, 55.0, 80.0], [60.0, 50.0, 71.0]).confidence_interval(0.95)
    assert (found.mean - found.ci95, found.mean + found.ci95) == pytest.approx((expected.low, expected.high))
    assert found.count == 3


def test_pairing_removes_what_the_tasks_differ_by() -> None:
    generator = np.random.default_rng(1)
    tasks = generator.normal(60, 8, size=40)
    first = {index: value + 2 + generator.normal(0, 0.5) for index, value in enumerate(tasks)}
    second = dict(enumerate(tasks))
    paired, alone = paired_difference(first, second), mean_interval(list(first.values()))
    assert paired is not None
    assert paired.ci95 is not None
    assert alone.ci95 is not None
    assert paired.ci95 < alone.ci95 / 5


def test_no_common_task_gives_no_difference() -> None:
    assert paired_difference({0: 1.0}, {1: 1.0}) is None
