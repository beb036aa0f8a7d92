"""The likelihood-ratio attack LiRA (Carlini et al. 2022, arXiv:2112.03570) with Gaussians, and the membership of units
in shadows.

A *unit* is what may or may not have been used in training: an image, or a class. A *shadow* is a collective that the
attacker trained, knowing which units went in.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sims.leakage.attack_metrics import Mask, Scores

#: Added to a covariance's diagonal, as a share of its mean: statistics that depend on each other must not break it.
_RIDGE = 1e-6


def paired_halves(groups: Sequence[int], shadows: int, rng: np.random.Generator) -> Mask:
    """Which units each shadow is trained on, bool ``[shadows, units]``.

    Shadows come in pairs, 2j and 2j + 1, that hold complementary halves of every group: each unit is in exactly half
    of the shadows, and every shadow is as large as the next. To attack a shadow of known contents, leave out its pair
    (:func:`others`): then half of the other shadows contain each unit, and only the scores can show its membership.

    Args:
        groups: units of each group, even numbers; they stand one group after the other.
        shadows: an even number.

    Raises:
        ValueError: an odd number.
    """
    if shadows < 2 or shadows % 2 or any(size % 2 for size in groups):
        raise ValueError("shadows come in pairs, and every group must be even")
    rows = []
    for _ in range(shadows // 2):
        inside = np.concatenate([rng.permutation(np.arange(size) < size // 2) for size in groups])
        rows += [inside, ~inside]
    return np.array(rows, dtype=np.bool_)


def others(shadow: int, shadows: int) -> NDArray[np.int64]:
    """All shadows but ``shadow`` and the one with the complementary half."""
    return np.array([number for number in range(shadows) if number // 2 != shadow // 2], dtype=np.int64)


def online(target: Scores, shadows: Scores, inside: Mask) -> Scores:
    """``log N(x; mean_in, S_in) - log N(x; mean_out, S_out)`` of each unit, ``[N]``.

    The means are each unit's own over the shadows with and without it; the covariances are pooled over units, as the
    paper advises for fewer than 64 shadows.

    Args:
        target: statistics of each unit on the attacked release, ``[N, D]``.
        shadows: the same on each shadow, ``[K, N, D]``.
        inside: which units each shadow was trained on, bool ``[K, N]``.

    Raises:
        ValueError: a unit is in no shadow or in all, or the shapes do not fit.
    """
    _check(target, shadows, inside)
    return _log_density(target, shadows, inside) - _log_density(target, shadows, ~inside)


def offline(target: Scores, shadows: Scores, inside: Mask) -> Scores:
    """Distance of the release above the shadows *without* the unit, in standard deviations, ``[N]``.

    The paper's one-sided test: ``1 - Pr[N(mean_out, s_out) > x]`` grows with it. For one statistic whose larger values
    mean that the unit was more likely used; arguments as of :func:`online`.
    """
    _check(target, shadows, inside)
    if target.shape[1] != 1:
        raise ValueError("the offline test is of one statistic")
    mean, covariance = _moments(shadows, ~inside)
    return np.asarray((target - mean)[:, 0] / np.sqrt(covariance[0, 0]), dtype=np.float64)


def _log_density(target: Scores, shadows: Scores, counted: Mask) -> Scores:
    """Logarithm of the density, up to a constant that is the same for both hypotheses."""
    mean, covariance = _moments(shadows, counted)
    factor = np.linalg.cholesky(covariance)
    standardised = np.linalg.solve(factor, (target - mean).T)
    return np.asarray(-0.5 * (standardised**2).sum(0) - np.log(np.diag(factor)).sum(), dtype=np.float64)


def _moments(shadows: Scores, counted: Mask) -> tuple[Scores, Scores]:
    """Mean of each unit over the shadows that count for it, ``[N, D]``, and the pooled covariance ``[D, D]``."""
    weight = counted[..., None].astype(np.float64)
    count = weight.sum(0)
    mean = (shadows * weight).sum(0) / count
    residuals = ((shadows - mean) * weight).reshape(-1, shadows.shape[-1])
    # Each unit's mean took one degree of freedom.
    freedom = max(1.0, float((count - 1).sum()))
    covariance = residuals.T @ residuals / freedom
    ridge = _RIDGE * max(float(np.trace(covariance)) / len(covariance), 1e-30)
    return mean, covariance + ridge * np.eye(len(covariance))


def _check(target: Scores, shadows: Scores, inside: Mask) -> None:
    if target.ndim != 2 or shadows.shape[1:] != target.shape or inside.shape != shadows.shape[:2]:
        raise ValueError(f"statistics {target.shape} do not fit shadows {shadows.shape} with {inside.shape}")
    held = inside.sum(0)
    if held.min() < 1 or held.max() > len(inside) - 1:
        raise ValueError("every unit must be in one shadow at least, and out of one")
