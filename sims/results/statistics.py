"""Means over target tasks, their two 95 % intervals, and differences of two methods on the same tasks."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

from sims.results.class_interval import over_new_classes


@dataclass(frozen=True)
class Interval:
    """A mean and the half widths of its 95 % confidence intervals.

    Attributes:
        mean: arithmetic mean of the values.
        ci95: half width by Student's t with ``count - 1`` degrees of freedom; None for a single value. It is over what
            the values are: over target tasks, it holds for these classes and images.
        count: number of values.
        ci95_classes: half width over new classes and images; None where the tasks' classes were not given or say
            nothing.
    """

    mean: float
    ci95: float | None
    count: int
    ci95_classes: float | None = None


def mean_interval(values: Sequence[float], classes: Sequence[tuple[str, ...]] = ()) -> Interval:
    """Mean and 95 % interval of independent values (``t(0.975, n - 1) * s / sqrt(n)``, s with n - 1).

    Args:
        values: for example the accuracy of each target task.
        classes: of each target task, for the interval over new classes
            (:func:`sims.results.class_interval.over_new_classes`).

    Raises:
        ValueError: no value, one that is not finite, or not as many as there are tasks in ``classes``.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0 or not np.isfinite(array).all():
        raise ValueError(f"a mean needs a list of finite values, got shape {array.shape}")
    mean = float(array.mean())
    if array.size == 1:
        return Interval(mean, None, 1)
    quantile = float(stdtrit(array.size - 1, 0.975))
    half = quantile * float(array.std(ddof=1)) / math.sqrt(array.size)
    return Interval(mean, half, int(array.size), over_new_classes(values, classes))


def paired_difference(
    first: Mapping[int, float], second: Mapping[int, float], classes: Mapping[int, tuple[str, ...]] | None = None
) -> Interval | None:
    """Interval of ``first - second`` over the tasks that both have; None if there are none.

    Pairing removes the differences between tasks, so far fewer tasks are enough to separate methods.

    Args:
        first, second: run-wide task number -> accuracy.
        classes: run-wide task number -> the task's classes, for the interval over new classes.
    """
    common = sorted(first.keys() & second.keys())
    if not common:
        return None
    of_each = [classes[task] for task in common] if classes else []
    return mean_interval([first[task] - second[task] for task in common], of_each)
