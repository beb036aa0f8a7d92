"""Tests of the open-world metrics against scikit-learn and against loops over every threshold."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve
from torch import Tensor

from collective_node.open_world.metrics import (
    auroc,
    average_precision,
    chance_levels,
    fpr_at_tpr,
    open_set_accuracy,
    oscr,
    stream_metrics,
)
from collective_node.records import StreamMetrics

Stream = tuple[Tensor, Tensor, Tensor]


def random_stream(seed: int, count: int, share: float, levels: int | None) -> Stream:
    """Scores, unknown and correct; ``levels`` rounds the scores to so many values, so that they tie."""
    generator = torch.Generator().manual_seed(seed)
    unknown = torch.rand(count, generator=generator) < share
    unknown[:2] = torch.tensor([True, False])
    scores = torch.randn(count, generator=generator, dtype=torch.float64) + unknown.double()
    if levels is not None:
        scores = (scores * levels / 4).round()
    return scores, unknown, torch.rand(count, generator=generator) < 0.6


def made(scores: list[float], unknown: str, correct: str) -> Stream:
    """A stream by hand: `1` for true."""
    return (
        torch.tensor(scores, dtype=torch.float64),
        torch.tensor([letter == "1" for letter in unknown], dtype=torch.bool),
        torch.tensor([letter == "1" for letter in correct], dtype=torch.bool),
    )


STREAMS = {
    "without ties": random_stream(0, 700, 0.5, None),
    "with ties": random_stream(1, 701, 0.4, 12),
    "with many ties": random_stream(2, 500, 0.6, 2),
    "few unknown": random_stream(3, 400, 0.02, 40),
    "few known": random_stream(4, 400, 0.98, 40),
    "float32": (random_stream(5, 300, 0.5, None)[0].float(), *random_stream(5, 300, 0.5, None)[1:]),
    "one of each": made([0.2, 0.1], "10", "01"),
    "all tie": made([3.0] * 6, "101001", "010110"),
    "the wrong way round": made([1, 2, 3, 4, 5], "11000", "00111"),
    "perfect": made([1, 2, 3, 4, 5], "00011", "11100"),
    "none named rightly": (*random_stream(6, 50, 0.5, 10)[:2], torch.zeros(50, dtype=torch.bool)),
    "twenty unknown, so that 19 are exactly 95 %": made(
        [*map(float, range(20)), *(x + 0.5 for x in range(20))], "1" * 20 + "0" * 20, "01" * 20
    ),
    "zeros of either sign": made([0.0, -0.0, 0.0, -0.0, 1.0], "01010", "11111"),
    "infinite scores": made([math.inf, math.inf, 0.0, -math.inf, -math.inf], "10110", "01001"),
}
each_stream = pytest.mark.parametrize("stream", STREAMS.values(), ids=STREAMS.keys())


def finite(scores: Tensor) -> np.ndarray:
    """What scikit-learn takes: the same order and the same ties."""
    return scores.double().clamp(-1e9, 1e9).numpy()


@each_stream
def test_auroc_agrees_with_scikit_learn(stream: Stream) -> None:
    scores, unknown, _ = stream
    assert auroc(scores, unknown) == pytest.approx(roc_auc_score(unknown.numpy(), finite(scores)), abs=1e-9)


@each_stream
@pytest.mark.parametrize("tpr", [0.95, 0.5, 1.0, 0.001])
def test_fpr_agrees_with_scikit_learn(stream: Stream, tpr: float) -> None:
    scores, unknown, _ = stream
    rates, found, _ = roc_curve(unknown.numpy(), finite(scores), drop_intermediate=False)
    assert fpr_at_tpr(scores, unknown, tpr) == pytest.approx(rates[found >= tpr][0], abs=1e-9)


@each_stream
def test_average_precision_agrees_with_scikit_learn(stream: Stream) -> None:
    scores, unknown, _ = stream
    expected = average_precision_score(unknown.numpy(), finite(scores))
    assert average_precision(scores, unknown) == pytest.approx(expected, abs=1e-9)


@each_stream
def test_oscr_agrees_with_a_walk_over_all_thresholds(stream: Stream) -> None:
    """The curve of Dhamija et al., point by point: an image passes as known up to the threshold."""
    scores, unknown, correct = (part.tolist() for part in stream)
    known_count, unknown_count = unknown.count(False), unknown.count(True)
    points = [(0.0, 0.0)]
    for threshold in sorted(set(scores)):
        passed = [(u, c) for s, u, c in zip(scores, unknown, correct, strict=True) if s <= threshold]
        false_positives = sum(u for u, _ in passed) / unknown_count
        points.append((false_positives, sum(c and not u for u, c in passed) / known_count))
    area = sum((x2 - x1) * (y1 + y2) / 2 for (x1, y1), (x2, y2) in pairwise(points))
    assert oscr(*stream) == pytest.approx(area, abs=1e-9)


@each_stream
def test_open_set_accuracy_agrees_with_a_loop(stream: Stream) -> None:
    images = list(zip(*(part.tolist() for part in stream), strict=True))
    for threshold in [-math.inf, math.inf, *stream[0].double().unique().tolist()[:30]]:
        right = 0
        for score, unknown, correct in images:
            flagged = score > threshold
            right += flagged if unknown else correct and not flagged
        assert open_set_accuracy(*stream, threshold) == pytest.approx(right / len(images), abs=1e-9)


@each_stream
def test_what_is_said_of_unknown_images_named_rightly_is_not_read(stream: Stream) -> None:
    scores, unknown, correct = stream
    assert stream_metrics(scores, unknown, correct | unknown, 0.5) == stream_metrics(
        scores, unknown, correct & ~unknown, 0.5
    )


@each_stream
def test_oscr_is_the_auroc_of_a_perfect_classifier_and_never_above_it_or_the_accuracy(stream: Stream) -> None:
    scores, unknown, correct = stream
    assert oscr(scores, unknown, torch.ones_like(unknown)) == auroc(scores, unknown)
    assert oscr(*stream) <= auroc(scores, unknown)
    assert oscr(*stream) <= float(correct[~unknown].double().mean()) + 1e-12


@given(
    st.lists(st.tuples(st.integers(-3, 3), st.booleans(), st.booleans()), min_size=2, max_size=40).filter(
        lambda images: len({unknown for _, unknown, _ in images}) == 2
    )
)
def test_pairs_and_symmetries(images: list[tuple[int, bool, bool]]) -> None:
    """AUROC and OSCR counted over pairs; the order of scores alone decides; swapping the two kinds mirrors AUROC."""
    scores, unknown, correct = (torch.tensor(column) for column in zip(*images, strict=True))
    pairs = [
        (right, (ours < theirs) + (ours == theirs) / 2)
        for ours, is_unknown, right in images
        if not is_unknown
        for theirs, other_is_unknown, _ in images
        if other_is_unknown
    ]
    assert auroc(scores, unknown) == pytest.approx(sum(won for _, won in pairs) / len(pairs), abs=1e-12)
    assert oscr(scores, unknown, correct) == pytest.approx(sum(r * won for r, won in pairs) / len(pairs), abs=1e-12)
    assert auroc(-scores, ~unknown) == pytest.approx(auroc(scores, unknown), abs=1e-12)
    assert auroc(scores, ~unknown) == pytest.approx(1 - auroc(scores, unknown), abs=1e-12)
    assert stream_metrics(scores.double().exp(), unknown, correct, math.exp(1)) == stream_metrics(
        scores, unknown, correct, 1.0
    )


def test_stream_metrics_are_the_metrics_in_per_cent() -> None:
    scores, unknown, correct = STREAMS["with ties"]
    found = stream_metrics(scores, unknown, correct, 1.0)
    assert found == StreamMetrics(
        known=int((~unknown).sum()),
        unknown=int(unknown.sum()),
        auroc=100 * auroc(scores, unknown),
        fpr95=100 * fpr_at_tpr(scores, unknown, 0.95),
        aupr=100 * average_precision(scores, unknown),
        oscr=100 * oscr(scores, unknown, correct),
        open_set_accuracy=100 * open_set_accuracy(scores, unknown, correct, 1.0),
        chance=chance_levels(unknown, correct),
    )
    assert StreamMetrics.model_validate_json(found.model_dump_json()) == found


def test_a_perfect_stream_is_all_hundreds_and_its_reverse_is_not() -> None:
    perfect = stream_metrics(*STREAMS["perfect"], 3.0)
    assert perfect is not None
    assert perfect.model_dump(exclude={"known", "unknown", "chance"}) == {
        "auroc": 100.0, "fpr95": 0.0, "aupr": 100.0, "oscr": 100.0, "open_set_accuracy": 100.0
    }  # fmt: skip
    worst = stream_metrics(*STREAMS["the wrong way round"], 2.5)
    assert worst is not None
    assert (worst.auroc, worst.fpr95, worst.oscr, worst.open_set_accuracy) == (0.0, 100.0, 0.0, 0.0)


@each_stream
def test_chance_levels_are_what_one_score_for_all_images_has(stream: Stream) -> None:
    _, unknown, correct = stream
    same, chance = torch.zeros(len(unknown)), chance_levels(unknown, correct)
    assert chance.auroc == pytest.approx(100 * auroc(same, unknown), abs=1e-9)
    assert chance.aupr == pytest.approx(100 * average_precision(same, unknown), abs=1e-9)
    assert chance.oscr == pytest.approx(100 * oscr(same, unknown, correct), abs=1e-9)
    for threshold, level in ((-1.0, chance.all_flagged), (1.0, chance.none_flagged)):
        assert level == pytest.approx(100 * open_set_accuracy(same, unknown, correct, threshold), abs=1e-9)


def test_chance_levels_are_the_means_over_scores_that_say_nothing() -> None:
    _, unknown, correct = STREAMS["without ties"]
    generator, chance = torch.Generator().manual_seed(7), chance_levels(unknown, correct)
    drawn = [stream_metrics(torch.rand(len(unknown), generator=generator), unknown, correct, 0.5) for _ in range(200)]
    for metric, near in (("auroc", 0.6), ("fpr95", 0.6), ("aupr", 0.9), ("oscr", 0.6)):
        values = [getattr(found, metric) for found in drawn]
        assert sum(values) / len(values) == pytest.approx(getattr(chance, metric), abs=near)


@pytest.mark.parametrize("unknown", ["0000", "1111", ""])
def test_a_stream_of_one_kind_has_no_metrics(unknown: str) -> None:
    stream = made([1.0, 2.0, 3.0, 4.0][: len(unknown)], unknown, unknown)
    assert stream_metrics(*stream, 2.0) is None
    with pytest.raises(ValueError, match="both must be there"):
        auroc(*stream[:2])


@pytest.mark.parametrize(
    ("scores", "unknown", "correct", "threshold", "message"),
    [
        (torch.zeros(3), torch.ones(2) > 0, torch.ones(3) > 0, 0.0, r"\[N\] each"),
        (torch.zeros(3, 1), torch.ones(3, 1) > 0, torch.ones(3, 1) > 0, 0.0, r"\[N\] each"),
        (torch.zeros(2), torch.tensor([0, 1]), torch.ones(2) > 0, 0.0, "true or false"),
        (torch.tensor([0.0, math.nan]), torch.tensor([False, True]), torch.ones(2) > 0, 0.0, "not a number"),
        (torch.zeros(2), torch.tensor([False, True]), torch.ones(2) > 0, math.nan, "threshold"),
    ],
)
def test_what_is_no_stream_is_refused(
    scores: Tensor, unknown: Tensor, correct: Tensor, threshold: float, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        stream_metrics(scores, unknown, correct, threshold)


@pytest.mark.parametrize("tpr", [0.0, -0.1, 1.01, math.nan])
def test_a_true_positive_rate_that_no_threshold_reaches_is_refused(tpr: float) -> None:
    with pytest.raises(ValueError, match="true positive rate"):
        fpr_at_tpr(*STREAMS["perfect"][:2], tpr)


def test_a_share_outside_0_to_100_is_no_metric() -> None:
    found = stream_metrics(*STREAMS["with ties"], 1.0)
    assert found is not None
    for wrong in (-0.1, 100.1, math.nan):
        with pytest.raises(ValidationError):
            StreamMetrics.model_validate(found.model_dump() | {"auroc": wrong})
