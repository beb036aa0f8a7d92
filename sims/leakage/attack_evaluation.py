"""Attacks on units with shadows: their list, and how well each separates members from others on a release, on every
shadow as a target, and with made-up membership.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

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
from sims.leakage.likelihood_ratio import others

#: A score of each unit, ``[N]``, from statistics ``[N, D]`` on the target, ``[K, N, D]`` on the shadows, and which
#: units each shadow was trained on, bool ``[K, N]``. A larger score means that the unit was more likely used.
Rule = Callable[[Scores, Scores, Mask], Scores]

#: Fewest units of each kind for a release's own rates.
FEWEST = 10


@dataclass(frozen=True)
class Attack:
    """One way to turn statistics into a score.

    Attributes:
        name: its name in tables.
        rule: from its statistics to a score.
        columns: the statistics that it reads.
        fisher: whether one of them needs the Fisher diagonal.
        population: whether its rule takes the population's statistics too, behind those of the units.
    """

    name: str
    rule: Rule
    columns: tuple[int, ...]
    fisher: bool
    population: bool = False

    def score(self, target: Scores, shadows: Scores, inside: Mask) -> Scores:
        """Of each unit, ``[N]``, from statistics ``[N + Z, D]`` of the target and ``[K, N + Z, D]`` of the shadows."""
        rows = len(target) if self.population else inside.shape[1]
        columns = list(self.columns)
        return self.rule(target[:rows, columns], shadows[:, :rows, columns], inside)


def itself(target: Scores, shadows: Scores, inside: Mask) -> Scores:
    """The rule without shadows: one statistic itself, compared with one threshold (Yeom et al. 2018 for the loss)."""
    return target[:, 0]


@dataclass(frozen=True)
class Statistics:
    """Statistics of the same N units, and of a population of Z others behind them, on a release and on every shadow.

    Attributes:
        release: ``[N + Z, D]``; None if there is no release besides the shadows.
        truth: of the release: which units it was trained on, bool ``[N]``; None as above.
        shadows: ``[K, N + Z, D]``.
        inside: bool ``[K, N]``. The population is in no shadow and not in the release.
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


def by_chance(attack: Attack, found: Statistics, made_up: Sequence[Mask]) -> Scores:
    """Mean AUROC over the shadows with each made-up membership, ``[M]``, where there is nothing to find.

    Student's interval over targets assumes that they are independent, but they are not: each serves as a reference for
    all others, and all hold the same units. The result by chance on the same shadows includes these dependences.

    Args:
        made_up: made-up membership of the units in the shadows, each bool ``[K, N]`` in complementary pairs.
    """
    means = []
    for halves in made_up:
        scores = _shadow_scores(attack, Statistics(None, None, found.shadows, halves))
        means.append(np.mean([auroc(own, inside) for own, inside in zip(scores, halves, strict=True)]))
    return np.array(means, dtype=np.float64)


def _enough(truth: Mask) -> bool:
    return min(int(truth.sum()), int((~truth).sum())) >= FEWEST


def _shadow_scores(attack: Attack, found: Statistics) -> NDArray[np.float64]:
    """Scores of every unit on every shadow as a target, ``[K, N]``."""
    scores = []
    for number, own in enumerate(found.shadows):
        rest = others(number, len(found.shadows))
        scores.append(attack.score(own, found.shadows[rest], found.inside[rest]))
    return np.array(scores)
