"""The 95 % interval of a mean over new classes and images, from target tasks that share classes: a mixed model."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, stdtr, stdtrit

Floats = NDArray[np.float64]

#: Steps of the integral over the classes' share of the variance, and halvings of the search for the quantile.
_STEPS, _HALVINGS = 200, 24
#: Eigenvalues and sums of squares below this part of the whole are rounding; weights below the other count nothing.
_NOTHING, _NO_WEIGHT = 1e-12, 1e-7


def over_new_classes(values: Sequence[float], classes: Sequence[tuple[str, ...]]) -> float | None:
    """Half width of the 95 % interval of a mean for tasks of other classes from the same population, with other images.

    Tasks that share a class are not independent: a class that is hard is hard in each of its tasks, with the same test
    images, and for its neighbours. Student's interval over tasks leaves that out and becomes arbitrarily narrow with
    more tasks of the same classes (Lafargue et al. 2024, on few-shot learning).

    The model: ``value of a task = mean + sum of its classes' effects / sqrt(ways) + rest``, a random effect for each
    class, of which a task holds several (multiple membership: Browne, Goldstein, Rasbash 2001). A class's effect is
    all that its presence does: to its own accuracy, with its own test images, and to its neighbours'. Images are nested
    in classes, so their variation is part of it and needs no level of its own. Given the classes' share of the variance
    of one task, the mean has Student's distribution with ``tasks - 1`` degrees of freedom (generalised least squares).
    The share is integrated out with its restricted likelihood (Patterson, Thompson 1971); its prior is flat in
    ``sqrt(1 - share)``, the part of the standard deviation that is not of classes. So few tasks, which can hardly tell
    the share, give a wide interval instead of one that believes an estimate of zero. Effects of pairs of classes count
    twice in it, once by each class: it is rather too wide there.

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
    """How tasks share classes. With ``Z[t, c] = 1 / sqrt(ways)`` where task t holds class c, ``Z Z'`` is how tasks
    correlate if all variance is of classes.

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
    rest = expit(np.linspace(-17, 11, _STEPS))  # part of the standard deviation; in equal steps of its logit
    outside = rest**2  # eigenvalue of the tasks' correlation for what no class explains
    share = 1 - outside
    inside = outside[:, None] + share[:, None] * overlap.values  # its other eigenvalues [steps, r]

    def parts(vector: Floats) -> tuple[Floats, Floats]:
        """Coordinates along the eigenvectors, and what is left of the vector."""
        along = vector @ overlap.vectors
        left = vector - overlap.vectors @ along
        return along, left if left @ left > _NOTHING * (vector @ vector) else np.zeros_like(left)

    (ones, ones_left), (found, found_left) = parts(np.ones(tasks)), parts(centred)
    information = (ones**2 / inside).sum(1) + float(ones_left @ ones_left) / outside
    mixed = (ones * found / inside).sum(1) + float(ones_left @ found_left) / outside
    # Classes that explain everything leave rounding, which must not count as no variance at all.
    unexplained = max(float(found_left @ found_left), _NOTHING * float(centred @ centred)) if tasks > rank else 0.0
    squares = (found**2 / inside).sum(1) + unexplained / outside - mixed**2 / information
    logdet = np.log(inside).sum(1) + (tasks - rank) * np.log(outside)
    likelihood = -0.5 * (logdet + np.log(information) + (tasks - 1) * np.log(squares))
    # Each step is as long as the derivative of the logit's inverse.
    weights = np.exp(likelihood - likelihood.max()) * rest * (1 - rest)
    widths = np.sqrt(squares / (tasks - 1) * (outside / tasks + share * overlap.of_mean))
    return weights / weights.sum(), widths


def _quantile(weights: Floats, widths: Floats, degrees: int) -> float:
    """Half width that holds 95 % of a mixture of Student distributions around one centre."""
    counted = weights > _NO_WEIGHT
    weights, widths = weights[counted] / weights[counted].sum(), widths[counted]
    student = float(stdtrit(degrees, 0.975))
    low, high = student * float(widths.min()), student * float(widths.max())
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        inside = float(weights @ (1 - 2 * stdtr(degrees, -middle / widths)))
        low, high = (low, middle) if inside > 0.95 else (middle, high)
    return (low + high) / 2
