"""How well an attack tells two kinds apart: AUROC, true positives at few false ones, advantage, and their intervals.

A larger score means the unit (an image, a class) was more likely used in training; ``positive`` says whether it was.
Equal scores are flagged together.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from collective_node.open_world import metrics
from sims.results.statistics import mean_interval

Scores = NDArray[np.float64]
Mask = NDArray[np.bool_]

#: Percentiles of a bootstrap distribution that hold 95 % of it.
_CENTRAL = (2.5, 97.5)


@dataclass(frozen=True)
class Rates:
    """Shares between 0 and 1 that describe one attack on one target; ``balanced_accuracy`` is at a given threshold."""

    auroc: float
    tpr_at_1_percent: float
    tpr_at_01_percent: float
    advantage: float
    balanced_accuracy: float


#: The names of ``Rates``, in order.
RATES = ("auroc", "tpr_at_1_percent", "tpr_at_01_percent", "advantage", "balanced_accuracy")


@dataclass(frozen=True)
class Bounds:
    """A value and the ends of its 95 % interval; the ends are equal to it if there is none."""

    value: float
    low: float
    high: float


def auroc(scores: Scores, positive: Mask) -> float:
    """How often a positive scores above a negative, ties counting half: the area that the collective measures, too.

    Raises:
        ValueError: a score is not finite, or one kind is missing; here and below.
    """
    _check(scores, positive)
    return metrics.auroc(torch.tensor(scores), torch.tensor(positive))


def tpr_at_fpr(scores: Scores, positive: Mask, fpr: float) -> float:
    """The largest true positive rate of a threshold whose false positive rate is at most ``fpr``; no interpolation."""
    _check(scores, positive)
    negatives = np.sort(scores[~positive])[::-1]
    allowed = int(np.floor(fpr * len(negatives) + 1e-9))
    if allowed >= len(negatives):
        return 1.0
    return float((scores[positive] > negatives[allowed]).mean())


def advantage(scores: Scores, positive: Mask) -> float:
    """The largest ``TPR - FPR`` over all thresholds (Yeom et al. 2018), at least 0.

    The threshold is the best in hindsight, so it is above 0 by chance alone: compare it with its negative control.
    """
    positives = _check(scores, positive)
    order = np.argsort(-scores, kind="stable")
    last_of_level = np.append(np.diff(scores[order]) != 0, True)
    flagged = positive[order].cumsum() / positives
    wrong = (~positive[order]).cumsum() / (len(scores) - positives)
    return max(0.0, float((flagged - wrong)[last_of_level].max()))


def balanced_accuracy(scores: Scores, positive: Mask, threshold: float) -> float:
    """Mean of the shares of positives above ``threshold`` and of negatives that are not."""
    _check(scores, positive)
    return float(((scores[positive] > threshold).mean() + (scores[~positive] <= threshold).mean()) / 2)


def best_threshold(scores: Scores, positive: Mask) -> float:
    """The threshold with the best balanced accuracy on these scores, to be used on others."""
    _check(scores, positive)
    order = np.argsort(-scores, kind="stable")
    ranked, flags = scores[order], positive[order]
    gain = np.where(flags, 1 / flags.sum(), -1 / (~flags).sum()).cumsum()
    last_of_level = np.append(np.diff(ranked) != 0, True)
    best = int(np.where(last_of_level, gain, -np.inf).argmax())
    return float(ranked[best] + ranked[best + 1]) / 2 if best + 1 < len(ranked) else float(ranked[best] - 1)


def rates(scores: Scores, positive: Mask, threshold: float) -> Rates:
    """All of them; ``threshold`` is the balanced accuracy's and must not come from these scores."""
    return Rates(
        auroc=auroc(scores, positive),
        tpr_at_1_percent=tpr_at_fpr(scores, positive, 0.01),
        tpr_at_01_percent=tpr_at_fpr(scores, positive, 0.001),
        advantage=advantage(scores, positive),
        balanced_accuracy=balanced_accuracy(scores, positive, threshold),
    )


def bootstrap(
    scores: Scores, positive: Mask, threshold: float, resamples: int, rng: np.random.Generator
) -> dict[str, Bounds]:
    """Each rate with its 95 % percentile interval over resampled units, positives and negatives separately."""
    own = rates(scores, positive, threshold)
    kinds = np.flatnonzero(positive), np.flatnonzero(~positive)
    drawn = []
    for _ in range(resamples):
        rows = np.concatenate([rng.choice(rows, len(rows)) for rows in kinds])
        found = rates(scores[rows], positive[rows], threshold)
        drawn.append([getattr(found, name) for name in RATES])
    ends = np.percentile(np.array(drawn), _CENTRAL, axis=0)
    return {
        name: Bounds(float(getattr(own, name)), float(low), float(high))
        for name, low, high in zip(RATES, *ends, strict=True)
    }


def over_targets(found: Sequence[Rates]) -> dict[str, Bounds]:
    """Mean of each rate over several targets, with Student's 95 % interval over them."""
    return {name: mean_bounds([getattr(one, name) for one in found]) for name in RATES}


def mean_bounds(values: Sequence[float]) -> Bounds:
    """Mean and Student's 95 % interval of some values."""
    interval = mean_interval(values)
    half = interval.ci95 or 0.0
    return Bounds(interval.mean, interval.mean - half, interval.mean + half)


def central_bounds(values: Scores) -> Bounds:
    """Mean of some draws, and the bounds between which 95 % of them lie."""
    low, high = np.percentile(values, _CENTRAL)
    return Bounds(float(np.mean(values)), float(low), float(high))


def _check(scores: Scores, positive: Mask) -> int:
    if scores.ndim != 1 or scores.shape != positive.shape or positive.dtype != np.bool_:
        raise ValueError(f"scores [N] go with booleans [N], not {scores.shape} with {positive.dtype}{positive.shape}")
    if not np.isfinite(scores).all():
        raise ValueError("a score is not finite")
    count = int(positive.sum())
    if count in (0, len(positive)):
        raise ValueError("scores of both kinds are needed: used in training, and not")
    return count
