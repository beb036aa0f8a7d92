"""Means over target tasks, their 95 % intervals, and differences of two methods on the same tasks."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit


@dataclass(frozen=True)
class Interval:
    """A mean and the half width of its 95 % confidence interval.

    Attributes:
        mean: arithmetic mean of the values.
        ci95: half width by Student's t with ``count - 1`` degrees of freedom; None for a single value.
        count: number of values.
    """

    mean: float
    ci95: float | None
    count: int


def mean_interval(values: Sequence[float]) -> Interval:
    """Mean and 95 % interval of independent values (``t(0.975, n - 1) * s / sqrt(n)``, s with n - 1).

    Raises:
        ValueError: no value, or one that is not finite.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0 or not np.isfinite(array).all():
        raise ValueError(f"a mean needs a list of finite values, got shape {array.shape}")
    mean = float(array.mean())
    if array.size == 1:
        return Interval(mean, None, 1)
    quantile = float(stdtrit(array.size - 1, 0.975))
    return Interval(mean, quantile * float(array.std(ddof=1)) / math.sqrt(array.size), int(array.size))


def paired_difference(first: Mapping[int, float], second: Mapping[int, float]) -> Interval | None:
    """Interval of ``first - second`` over the tasks that both have; None if there are none.

    Pairing removes the differences between tasks, so far fewer tasks are enough to separate methods.

    Args:
        first, second: run-wide task number -> accuracy.
    """
    common = sorted(first.keys() & second.keys())
    if not common:
        return None
    return mean_interval([first[task] - second[task] for task in common])
