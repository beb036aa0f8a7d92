"""Attacks on units with shadows: their list, and how well each separates members from others on a release, on every
shadow as a target, and with made-up membership.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sims.leakage.attack_metrics import (
    Bounds,
    Mask,
    Rates,
    Scores,
    auroc,
    best_threshold,
    bootstrap,
    over_targets,
    rates,
    tpr_at_fpr,
)
from sims.leakage.likelihood_ratio import offline, online, others

#: Fewest units of each kind for a release's own rates.
FEWEST = 10


@dataclass(frozen=True)
class Attack:
    """One way to turn statistics into a score.

    Attributes:
        name: its name in tables.
        test: ``plain``: the statistic itself; ``online`` and ``offline``: LiRA.
        columns: the statistics that it reads.
        fisher: whether one of them needs the Fisher diagonal.
    """

    name: str
    test: Literal["plain", "online", "offline"]
    columns: tuple[int, ...]
    fisher: bool

    def score(self, target: Scores, shadows: Scores, inside: Mask) -> Scores:
        """Of each unit, ``[N]``, from statistics ``[N, D]`` of the target and ``[K, N, D]`` of the shadows."""
        columns = list(self.columns)
        if self.test == "plain":
            return target[:, columns[0]]
        test = online if self.test == "online" else offline
        return test(target[:, columns], shadows[:, :, columns], inside)


@dataclass(frozen=True)
class Statistics:
    """Statistics of the same units on a release and on every shadow.

    Attributes:
        release: ``[N, D]``; None if there is no release besides the shadows.
        truth: of the release: which units it was trained on, bool ``[N]``; None as above.
        shadows: ``[K, N, D]``.
        inside: bool ``[K, N]``.
    """

    release: Scores | None
    truth: Mask | None
    shadows: Scores
    inside: Mask


@dataclass(frozen=True)
class Evaluation:
    """The success of an attack.

    Attributes:
        release: each rate with its bootstrap interval over units; None if no release was attacked, or if a kind has too
            few units for a meaningful interval.
        shadows: each rate as a mean over the shadows as targets, with Student's interval over them.
        curve: mean true positive rate over the shadows at each rate of ``grid``.
    """

    release: dict[str, Bounds] | None
    shadows: dict[str, Bounds]
    curve: tuple[float, ...]


def evaluate(
    attack: Attack, found: Statistics, grid: Sequence[float], resamples: int, rng: np.random.Generator
) -> Evaluation:
    """Attack the release with all shadows, and each shadow with all others but the one with the complementary half.

    The threshold of the balanced accuracy comes from other targets: for the release from all shadows, for a shadow from
    all others.
    """
    scores = _shadow_scores(attack, found)
    each: list[Rates] = []
    for number, own in enumerate(scores):
        rest = others(number, len(scores))
        threshold = best_threshold(np.concatenate(scores[rest]), np.concatenate(found.inside[rest]))
        each.append(rates(own, found.inside[number], threshold))
    release = None
    if found.release is not None and found.truth is not None and _enough(found.truth):
        threshold = best_threshold(scores.ravel(), found.inside.ravel())
        own = attack.score(found.release, found.shadows, found.inside)
        release = bootstrap(own, found.truth, threshold, resamples, rng)
    curve = [[tpr_at_fpr(own, inside, fpr) for fpr in grid] for own, inside in zip(scores, found.inside, strict=True)]
    return Evaluation(release, over_targets(each), tuple(float(value) for value in np.mean(curve, axis=0)))


def by_chance(attack: Attack, found: Statistics, made_up: Sequence[Mask]) -> Bounds:
    """Mean AUROC over the shadows with made-up membership, where there is nothing to find.

    Student's interval over targets assumes that they are independent, but they are not: each serves as a reference for
    all others, and all hold the same units. The result by chance on the same shadows includes these dependences.

    Args:
        made_up: made-up membership of the units in the shadows, each bool ``[K, N]`` in complementary pairs.

    Returns:
        The mean over ``made_up``, and the bounds between which 95 % of them lie.
    """
    means = []
    for halves in made_up:
        scores = _shadow_scores(attack, Statistics(None, None, found.shadows, halves))
        means.append(np.mean([auroc(own, inside) for own, inside in zip(scores, halves, strict=True)]))
    low, high = np.percentile(means, (2.5, 97.5))
    return Bounds(float(np.mean(means)), float(low), float(high))


def _enough(truth: Mask) -> bool:
    return min(int(truth.sum()), int((~truth).sum())) >= FEWEST


def _shadow_scores(attack: Attack, found: Statistics) -> NDArray[np.float64]:
    """Scores of every unit on every shadow as a target, ``[K, N]``."""
    scores = []
    for number, own in enumerate(found.shadows):
        rest = others(number, len(found.shadows))
        scores.append(attack.score(own, found.shadows[rest], found.inside[rest]))
    return np.array(scores)
