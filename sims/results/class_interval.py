"""The 95 % interval of a mean over new classes and images, from target tasks that share classes: a mixed model."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr, stdtrit

Floats = NDArray[np.float64]

#: Steps of the integral over the classes' share of the variance, and halvings of the search for the quantile.
_STEPS, _HALVINGS = 256, 50
#: Eigenvalues and weights below it are nothing but rounding.
_NOTHING = 1e-12


def over_new_classes(values: Sequence[float], classes: Sequence[tuple[str, ...]]) -> float | None:
    """Half width of the 95 % interval of a mean for tasks of other classes from the same population, with other images.

    Tasks that share a class are not independent: a class that is hard is hard in each of its tasks, with the same test
    images, and for its neighbours. Student's interval over tasks leaves that out and becomes arbitrarily narrow with
    more tasks of the same classes (Lafargue et al. 2024, on few-shot learning).

    The model: ``value of a task = mean + sum of its classes' effects / sqrt(ways) + rest``, a random effect for each
    class, of which a task holds several (multiple membership: Browne, Goldstein, Rasbash 2001). A class's effect is
    all that its presence does: to its own accuracy, with its own test images, and to its neighbours'. Images are nested
    in classes, so their variation is part of it and needs no level of its own. ``share`` is the classes' part of the
    variance of one task. Given the share, the mean has Student's distribution with ``tasks - 1`` degrees of freedom
    (generalised least squares); the share is integrated out with its restricted likelihood (Patterson, Thompson 1971)
    and a flat prior. So few tasks, which can hardly tell the share, give a wide interval instead of one that believes
    an estimate of zero. Effects of pairs of classes count twice in it, once by each class: it is rather too wide there.

    Why no bootstrap over classes: with five classes a task, the weight of a task in the pigeonhole bootstrap (Owen
    2007) is a product of five counts, so that nine tasks of ten get no weight and noise counts about 2^5 times.

    Args:
        values: one of each task, for example its accuracy, or the difference of two methods on it.
        classes: of each task, the names of its classes.

    Returns:
        The half width, at least Student's over tasks; None where nothing can be said: fewer than two tasks, all tasks
        of the same classes, or classes that are not known (an empty list).

    Raises:
        ValueError: the lengths differ, or a value is not finite.
    """
    if not classes:
        return None
    array = np.asarray(values, dtype=np.float64)
    if array.shape != (len(classes),) or not np.isfinite(array).all():
        raise ValueError(f"{len(classes)} tasks need as many finite values, got shape {array.shape}")
    if len(array) < 2 or all(set(one) == set(classes[0]) for one in classes):
        return None
    centred = array - array.mean()
    if float(centred @ centred) <= _NOTHING * float(array @ array):
        return 0.0
    student = float(stdtrit(len(array) - 1, 0.975)) * float(array.std(ddof=1)) / float(np.sqrt(len(array)))
    weights, widths = _mean_given_share(centred, _overlap(tuple(classes)))
    return max(student, _quantile(weights, widths, len(array) - 1))


@dataclass(frozen=True)
class _Overlap:
    """How tasks share classes. With ``Z[t, c] = 1 / sqrt(ways)`` where task t holds class c, ``Z Z'`` is the correlation
    of tasks if all variance is of classes.

    Attributes:
        values: the ``r`` eigenvalues of ``Z Z'`` that are not zero.
        vectors: their eigenvectors ``[tasks, r]``.
        of_mean: ``|Z' 1|^2 / tasks^2``, the variance of the mean if all variance is of classes.
    """

    values: Floats
    vectors: Floats
    of_mean: float


@lru_cache(maxsize=16)
def _overlap(classes: tuple[tuple[str, ...], ...]) -> _Overlap:
    """Every method has the same tasks, so it is worked out once."""
    column = {name: place for place, name in enumerate(sorted({name for one in classes for name in one}))}
    holds = np.zeros((len(classes), len(column)))
    for task, one in enumerate(classes):
        holds[task, [column[name] for name in one]] = 1 / np.sqrt(len(one))
    values, vectors = np.linalg.eigh(holds.T @ holds)
    kept = values > _NOTHING * values[-1]
    total = holds.sum(0)
    return _Overlap(
        values=values[kept],
        vectors=holds @ vectors[:, kept] / np.sqrt(values[kept]),
        of_mean=float(total @ total) / len(classes) ** 2,
    )


def _mean_given_share(centred: Floats, overlap: _Overlap) -> tuple[Floats, Floats]:
    """Weight of each share of the classes, and the standard error of the mean given that share, ``[steps]`` each."""
    tasks, rank = overlap.vectors.shape
    # Denser towards 0 and 1, where the likelihood can be steep: share = (1 - cos(angle)) / 2.
    angle = np.pi * (np.arange(_STEPS) + 0.5) / _STEPS
    share = ((1 - np.cos(angle)) / 2)[:, None]
    inside = (1 - share) + share * overlap.values  # eigenvalues of the tasks' correlation [steps, r]
    outside = 1 - share[:, 0]  # its value on everything else
    ones, found = overlap.vectors.sum(0), centred @ overlap.vectors

    def product(left: Floats, right: Floats, whole: float) -> Floats:
        """``x' V^-1 y`` for every share, of coordinates along the eigenvectors and the whole ``x' y``."""
        along = left * right
        rest = whole - along.sum()
        rest = 0.0 if abs(rest) <= _NOTHING * max(abs(whole), 1.0) else rest
        result: Floats = (along / inside).sum(1) + rest / outside
        return result

    information = product(ones, ones, float(tasks))
    mixed = product(ones, found, 0.0)
    squares = product(found, found, float(centred @ centred)) - mixed**2 / information
    squares = np.maximum(squares, _NOTHING * float(centred @ centred))
    logdet = np.log(inside).sum(1) + (tasks - rank) * np.log(outside)
    likelihood = -0.5 * (logdet + np.log(information) + (tasks - 1) * np.log(squares))
    weights = np.exp(likelihood - likelihood.max()) * np.sin(angle)
    variance = squares / (tasks - 1)
    return weights / weights.sum(), np.sqrt(variance * (outside / tasks + share[:, 0] * overlap.of_mean))


def _quantile(weights: Floats, widths: Floats, degrees: int) -> float:
    """Half width that holds 95 % of a mixture of Student distributions around one centre."""
    counted = weights > _NOTHING
    weights, widths = weights[counted] / weights[counted].sum(), widths[counted]
    student = float(stdtrit(degrees, 0.975))
    low, high = student * float(widths.min()), student * float(widths.max())
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        inside = float(weights @ (1 - 2 * stdtr(degrees, -middle / widths)))
        low, high = (low, middle) if inside > 0.95 else (middle, high)
    return (low + high) / 2
