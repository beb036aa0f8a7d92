"""The attack RMIA: a unit's probability, relative to its own mean over references, against that of a population.

Zarifzadeh, Liu and Shokri 2024, "Low-Cost High-Power Membership Inference Attacks", arXiv:2312.03262. With ``f(x)``
the attacked release's probability of the label of ``x``, and ``p(x)`` its mean over releases that may have been made
instead (the references: shadows), the score of ``x`` is

    Pr over z in the population [ (f(x) / p(x)) / (f(z) / p(z)) >= gamma ]

Online, ``p(x) = (p_in(x) + p_out(x)) / 2``, means over the shadows with and without ``x``. Offline, no shadow holds
``x``, and ``p_in`` is taken to be ``a p_out + 1 - a``: ``p(x) = ((1 + a) p_out(x) + 1 - a) / 2``. A population image
``z`` is in no shadow and was not used for the release. On one release the order of units is that of ``f(x) / p(x)``:
the population says what is unusual, and so makes the scores of several releases comparable.

All take log-probabilities of units, and behind them of the population: ``[N + Z, 1]`` on the target, ``[K, N + Z, 1]``
on the shadows; ``inside`` says which units each shadow was trained on, bool ``[K, N]``.
"""

import numpy as np
from numpy.typing import NDArray

from sims.leakage.attack_metrics import Mask, Scores
from sims.leakage.likelihood_ratio import check_references


def online(target: Scores, shadows: Scores, inside: Mask, *, gamma: float) -> Scores:
    """Score of each unit, ``[N]``, with references that were trained on it and others that were not.

    Args:
        target, shadows, inside: see above.
        gamma: 1 or more.

    Raises:
        ValueError: a unit is in no shadow or in all, there is no population, or the shapes do not fit.
    """
    _check(target, shadows, inside)
    units, log_probability = inside.shape[1], shadows[:, :, 0]
    with_unit, without = (_log_mean(log_probability[:, :units], counted) for counted in (inside, ~inside))
    everywhere = np.ones_like(log_probability[:, units:], dtype=np.bool_)
    expected = [np.logaddexp(with_unit, without) - np.log(2), _log_mean(log_probability[:, units:], everywhere)]
    return _scores(target[:, 0] - np.concatenate(expected), units, gamma)


def offline(target: Scores, shadows: Scores, inside: Mask, *, gamma: float, a: float) -> Scores:
    """Score of each unit, ``[N]``, with references that were not trained on it.

    Units and population have the same ``p``: the authors' own program does it so, too.

    Args:
        target, shadows, inside, gamma: as of :func:`online`.
        a: between 0 (a used image would have probability 1) and 1 (use changes nothing).
    """
    _check(target, shadows, inside)
    units = inside.shape[1]
    outside = np.pad(~inside, ((0, 0), (0, len(target) - units)), constant_values=True)
    without = _log_mean(shadows[:, :, 0], outside)
    with np.errstate(divide="ignore"):  # a = 1: no second part
        expected = np.logaddexp(np.log((1 + a) / 2) + without, np.log((1 - a) / 2))
    return _scores(target[:, 0] - expected, units, gamma)


def _log_mean(log_probability: Scores, counted: Mask) -> NDArray[np.float64]:
    """Logarithm of the mean probability of each row over the shadows that count for it."""
    summed = np.logaddexp.reduce(np.where(counted, log_probability, -np.inf), axis=0)
    return np.asarray(summed - np.log(counted.sum(0)), dtype=np.float64)


def _scores(log_ratio: Scores, units: int, gamma: float) -> Scores:
    population = np.sort(log_ratio[units:])
    beaten = np.searchsorted(population, log_ratio[:units] - np.log(gamma), side="right")
    return np.asarray(beaten / len(population), dtype=np.float64)


def _check(target: Scores, shadows: Scores, inside: Mask) -> None:
    units = inside.shape[1]
    check_references(target[:units], shadows[:, :units], inside)
    if target.shape[1] != 1 or shadows.shape[1:] != target.shape:
        raise ValueError(f"log-probabilities {target.shape} do not fit those of the shadows {shadows.shape}")
    if len(target) == units:
        raise ValueError("there is no population behind the units")
