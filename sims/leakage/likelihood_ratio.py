"""Likelihood-ratio attacks with Gaussians: LiRA (Carlini et al. 2022, arXiv:2112.03570) and the shared shift; and the
membership of units in shadows.

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
    check_references(target, shadows, inside)
    with_unit, without = _moments(shadows, inside), _moments(shadows, ~inside)
    return _log_density(target - with_unit[0], with_unit[1]) - _log_density(target - without[0], without[1])


def offline(target: Scores, shadows: Scores, inside: Mask) -> Scores:
    """Distance of the release above the shadows *without* the unit, in standard deviations, ``[N]``.

    The paper's one-sided test: ``1 - Pr[N(mean_out, s_out) > x]`` grows with it. For one statistic whose larger values
    mean that the unit was more likely used; arguments as of :func:`online`.
    """
    check_references(target, shadows, inside)
    if target.shape[1] != 1:
        raise ValueError("the offline test is of one statistic")
    mean, covariance = _moments(shadows, ~inside)
    return np.asarray((target - mean)[:, 0] / np.sqrt(covariance[0, 0]), dtype=np.float64)


def shared_shift(target: Scores, shadows: Scores, inside: Mask) -> Scores:
    """Log-likelihood ratio of each unit, ``[N]``, where training shifts the statistics of all units alike.

    The model, with ``m_ki`` = 1 where shadow ``k`` was trained on unit ``i``, else 0:

        s_ki = c_i + m_ki d + e_ki,    e_ki ~ N(0, S_in) where m_ki = 1, N(0, S_out) where m_ki = 0

    Only the centre ``c_i`` is a unit's own; the shift ``d`` and both covariances are those of all units. Least squares
    over all K shadows (K_in of them with the unit) give

        d = mean over units of (mean_in - mean_out),    c_i = mean of s_ki over k - (K_in / K) d

    and the error of ``c_i`` has the covariance ``E = (K_in S_in + K_out S_out) / K^2``. The score is

        log N(x_i; c_i + d, S_in + E) - log N(x_i; c_i, S_out + E)

    :func:`online` estimates a shift for each unit from its few shadows, with the covariance ``S_in / K_in + S_out /
    K_out``: a common shift smaller than this error is lost there. Here N units estimate it together. For one statistic
    with ``S_in = S_out`` the order is that of ``x_i - mean of s_ki``: difficulty calibration (Watson et al. 2022,
    arXiv:2111.08440), with the sign found by the shadows. Arguments and errors as of :func:`online`.
    """
    check_references(target, shadows, inside)
    (mean_in, spread_in), (mean_out, spread_out) = _moments(shadows, inside), _moments(shadows, ~inside)
    count, held = len(inside), inside.sum(0).astype(np.float64)
    shift = np.average(mean_in - mean_out, axis=0, weights=held * (count - held))
    own = target - (shadows.mean(0) - (held / count)[:, None] * shift)
    share = float(held.mean()) / count
    error = (share * spread_in + (1 - share) * spread_out) / count
    return _log_density(own - shift, spread_in + error) - _log_density(own, spread_out + error)


def _log_density(differences: Scores, covariance: Scores) -> Scores:
    """Logarithm of the density of ``differences [N, D]`` from the mean, up to a constant of all Gaussians."""
    factor = np.linalg.cholesky(covariance)
    standardised = np.linalg.solve(factor, differences.T)
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


def check_references(target: Scores, shadows: Scores, inside: Mask) -> None:
    """Check statistics ``[N, D]``, ``[K, N, D]`` and memberships ``[K, N]``.

    Raises:
        ValueError: a unit is in no shadow or in all, or the shapes do not fit.
    """
    if target.ndim != 2 or shadows.shape[1:] != target.shape or inside.shape != shadows.shape[:2]:
        raise ValueError(f"statistics {target.shape} do not fit shadows {shadows.shape} with {inside.shape}")
    held = inside.sum(0)
    if held.min() < 1 or held.max() > len(inside) - 1:
        raise ValueError("every unit must be in one shadow at least, and out of one")
