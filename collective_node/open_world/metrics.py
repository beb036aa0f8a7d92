"""Metrics of open-set recognition: how well unknown images of a stream are separated from known ones, and known ones
named.

Scores are the larger, the more unknown. Throughout, the positive class is *unknown*, as in OpenOOD (Yang et al. 2022):
the true positive rate (TPR) is the share of unknown images that are flagged as unknown, the false positive rate (FPR)
the share of known images that are. Equal scores are flagged together. Every metric sorts once, O(N log N), and counts
in integers.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from collective_node.open_world.scores import is_unknown
from collective_node.records import ChanceLevels, StreamMetrics


def stream_metrics(scores: Tensor, unknown: Tensor, correct: Tensor, threshold: float) -> StreamMetrics | None:
    """All metrics of one stream; None if it has no known or no unknown image.

    Args:
        scores: ``[N]``, the larger, the more unknown.
        unknown: bool ``[N]``, whether the image is of no known class.
        correct: bool ``[N]``, whether a known image is named rightly by its largest logit; read for known images only.
        threshold: an image is flagged when its score is greater (Eq. 3).

    Raises:
        ValueError: shapes or types are not these, or a score or the threshold is not a number.
    """
    scores, unknown, correct = _checked(scores, unknown, correct)
    positives = int(unknown.sum())
    if positives in (0, len(unknown)):
        return None
    return StreamMetrics(
        known=len(unknown) - positives,
        unknown=positives,
        auroc=100 * auroc(scores, unknown),
        fpr95=100 * fpr_at_tpr(scores, unknown, 0.95),
        aupr=100 * average_precision(scores, unknown),
        oscr=100 * oscr(scores, unknown, correct),
        open_set_accuracy=100 * open_set_accuracy(scores, unknown, correct, threshold),
        chance=chance_levels(unknown, correct),
    )


def chance_levels(unknown: Tensor, correct: Tensor) -> ChanceLevels:
    """The metrics of a score that says nothing about an image.

    AUROC, FPR95 and OSCR are expectations over all orders of the images; so is AUPR in the limit of many images (for
    few it is a little higher), and it is what one score for all images has.

    Args:
        unknown: bool ``[N]``; both kinds must occur.
        correct: bool ``[N]``, read for known images only.
    """
    images, positives, right = len(unknown), int(unknown.sum()), int((correct & ~unknown).sum())
    return ChanceLevels(
        aupr=100 * positives / images,
        oscr=50 * right / (images - positives),
        all_flagged=100 * positives / images,
        none_flagged=100 * right / images,
    )


def auroc(scores: Tensor, unknown: Tensor) -> float:
    """Area under TPR against FPR: how often an unknown image scores higher than a known one, ties counting half.

    Args:
        scores: ``[N]``.
        unknown: bool ``[N]``; both kinds must occur, here and below.
    """
    return oscr(scores, unknown, torch.ones_like(unknown))


def fpr_at_tpr(scores: Tensor, unknown: Tensor, tpr: float) -> float:
    """Share of known images flagged at the highest threshold that flags at least a share ``tpr`` of the unknown.

    There is no interpolation: the threshold is one of the scores. (With known as the positive class, as in some papers,
        this
    would be another figure: the share of unknown images that pass when 95 % of the known do.)
    """
    if not 0 < tpr <= 1:
        raise ValueError(f"a true positive rate to reach is above 0 and at most 1, not {tpr}")
    levels = _Levels.of(scores, unknown, torch.ones_like(unknown))
    flagged = levels.unknown.flip(0).cumsum(0)
    highest = int((flagged.double() / flagged[-1] < tpr).sum())
    return int(levels.known.flip(0)[: highest + 1].sum()) / int(levels.known.sum())


def average_precision(scores: Tensor, unknown: Tensor) -> float:
    """Area under precision against TPR (AUPR, unknown positive), as the sum of steps ``(TPR_i - TPR_{i-1}) P_i``.

    The precision ``P_i`` is the share of truly unknown images among the flagged; no interpolation, which would flatter.
    """
    levels = _Levels.of(scores, unknown, torch.ones_like(unknown))
    step, known = levels.unknown.flip(0), levels.known.flip(0)
    flagged = step.cumsum(0)
    precision = flagged.double() / (flagged + known.cumsum(0))
    return float((step * precision).sum()) / int(flagged[-1])


def oscr(scores: Tensor, unknown: Tensor, correct: Tensor) -> float:
    """Area under the open-set classification rate curve (Dhamija et al. 2018, arXiv 1811.04110).

    At each threshold: the share of known images that are named rightly *and* pass as known, against the share of
    unknown images that pass as known, which is what that paper calls the false positive rate; with straight lines
    between the thresholds that there are. So it is how often, of a known and an unknown image, the known one is named
    rightly and scores lower, ties counting half; at most the accuracy on known images, at most the AUROC, and the AUROC
    if all known images are named rightly.

    Args:
        scores: ``[N]``.
        unknown: bool ``[N]``.
        correct: bool ``[N]``, read for known images only.
    """
    levels = _Levels.of(scores, unknown, correct)
    lower = levels.correct.cumsum(0) - levels.correct
    half_pairs = (levels.unknown * (2 * lower + levels.correct)).sum()
    return int(half_pairs) / int(2 * levels.unknown.sum() * levels.known.sum())


def open_set_accuracy(scores: Tensor, unknown: Tensor, correct: Tensor, threshold: float) -> float:
    """Share of all images treated rightly: known, named rightly and not flagged; or unknown and flagged.

    Args:
        scores: ``[N]``.
        unknown: bool ``[N]``; one of the two kinds is enough here.
        correct: bool ``[N]``, read for known images only.
        threshold: an image is flagged when its score is greater (Eq. 3).
    """
    scores, unknown, correct = _checked(scores, unknown, correct)
    if math.isnan(threshold):
        raise ValueError("the threshold is not a number")
    if len(scores) == 0:
        raise ValueError("a stream without images has no accuracy")
    flagged = is_unknown(scores, threshold)
    return int(torch.where(unknown, flagged, correct & ~flagged).sum()) / len(scores)


@dataclass(frozen=True)
class _Levels:
    """How many images share each score: unknown, known, and known ones named rightly, each int64 ``[levels]``, from the
    lowest score to the highest."""

    unknown: Tensor
    known: Tensor
    correct: Tensor

    @classmethod
    def of(cls, scores: Tensor, unknown: Tensor, correct: Tensor) -> "_Levels":
        scores, unknown, correct = _checked(scores, unknown, correct)
        if bool(unknown.all()) or not bool(unknown.any()):
            raise ValueError("known and unknown images are told apart, so both must be there")
        values, level = scores.unique(sorted=True, return_inverse=True)
        count = [level[chosen].bincount(minlength=len(values)) for chosen in (unknown, ~unknown, correct & ~unknown)]
        return cls(*count)


def _checked(scores: Tensor, unknown: Tensor, correct: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The three on the CPU, scores in float64."""
    if scores.ndim != 1 or not scores.shape == unknown.shape == correct.shape:
        raise ValueError(
            "scores, unknown and correct are [N] each, "
            f"not {list(scores.shape)}, {list(unknown.shape)}, {list(correct.shape)}"
        )
    if unknown.dtype != torch.bool or correct.dtype != torch.bool:
        raise ValueError(f"unknown and correct are true or false, not {unknown.dtype} and {correct.dtype}")
    scores = scores.detach().cpu().double()
    if scores.isnan().any():
        raise ValueError("a score is not a number")
    return scores, unknown.cpu(), correct.cpu()
