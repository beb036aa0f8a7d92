"""Tests of the scores of unknown images and of the calibrated threshold, against second implementations."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import logsumexp, softmax
from scipy.stats import multivariate_normal
from sklearn.covariance import EmpiricalCovariance
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from collective_node.open_world.scores import (
    GEN_LARGEST,
    GEN_POWER,
    RIDGE,
    ROWS,
    RelativeMahalanobis,
    Responses,
    calibrated_threshold,
    fit_score,
    is_unknown,
)
from collective_node.settings import SCORES, Score
from protocol.errors import InputError, RunFailedError

LABELS = torch.arange(120) % 4 * 10 + 3  # any numbering of the classes will do
#: How much a score changes for each 1 that is added to all logits.
ON_LOGITS: dict[Score, float] = {"msp": 0.0, "max-logit": -1.0, "energy": -1.0, "gen": 0.0}


def responses(count: int, seed: int, *, spread: float = 1.0) -> Responses:
    """Features like those after a ReLU, one unit always 0, the others around one of four class means."""
    generator = torch.Generator().manual_seed(seed)
    means = torch.rand((4, 6), generator=torch.Generator().manual_seed(99)) * 3
    features = means[torch.arange(count) % 4] + spread * torch.randn((count, 6), generator=generator)
    features[:, 5] = 0
    return Responses(torch.randn((count, 4), generator=generator) * 4, features.relu())


KNOWN, OTHERS = responses(120, 0), responses(50, 1, spread=3.0)
#: Of an output layer, and its biases.
WEIGHTS, BIASES = torch.randn((4, 6), generator=torch.Generator().manual_seed(8)), torch.tensor([0.5, -1.0, 0.0, 2.0])


def fitted(score: Score, neighbours: int = 7) -> Callable[[Responses], Tensor]:
    return fit_score(score, KNOWN, LABELS, weights=WEIGHTS, neighbours=neighbours)


def gaussians(ridge_share: float) -> tuple[list[np.ndarray], np.ndarray, np.ndarray, np.ndarray]:
    """Class means, their shared covariance, the mean and covariance of all, by scikit-learn; both with the ridge."""
    features, labels = KNOWN.features.double().numpy(), LABELS.numpy()
    means = [features[labels == label].mean(0) for label in np.unique(labels)]
    residuals = np.concatenate(
        [features[labels == label] - mean for label, mean in zip(np.unique(labels), means, strict=True)]
    )
    within = EmpiricalCovariance(assume_centered=True).fit(residuals).covariance_
    background = EmpiricalCovariance().fit(features).covariance_
    ridge = ridge_share * np.trace(background) / len(background) * np.eye(len(background))
    return means, within + ridge, features.mean(0), background + ridge


def test_paper_is_one_minus_the_largest_softmax() -> None:
    expected = 1 - softmax(OTHERS.logits.double().numpy(), axis=1).max(1)
    np.testing.assert_allclose(fitted("msp")(OTHERS), expected, rtol=0, atol=1e-12)


def test_paper_still_ranks_images_that_the_network_is_very_sure_of() -> None:
    sure = Responses(torch.tensor([[60.0, 0.0, 0.0], [70.0, 0.0, 0.0], [70.0, 1.0, 0.0]]), torch.zeros(3, 1))
    surest, less, least = (float(fitted("msp")(sure)[image]) for image in (1, 2, 0))
    assert surest < less < least
    assert least == pytest.approx(2 * math.exp(-60), rel=1e-12)


def test_max_logit_is_the_negated_largest_logit() -> None:
    assert fitted("max-logit")(OTHERS).tolist() == [-max(row) for row in OTHERS.logits.double().tolist()]


def test_energy_is_the_free_energy() -> None:
    np.testing.assert_allclose(
        fitted("energy")(OTHERS), -logsumexp(OTHERS.logits.double().numpy(), axis=1), rtol=1e-14, atol=0
    )


@pytest.mark.parametrize("classes", [1, 2, 4, 250])
def test_gen_agrees_with_a_sum_written_out(classes: int) -> None:
    """Over the hundred largest probabilities, or all if there are fewer."""
    logits = torch.randn((30, classes), generator=torch.Generator().manual_seed(7)).double() * 4
    expected = []
    for row in softmax(logits.numpy(), axis=1).tolist():
        largest = sorted(row, reverse=True)[:GEN_LARGEST]
        expected.append(math.fsum(p**GEN_POWER * (1 - p) ** GEN_POWER for p in largest))
    found = fitted("gen")(Responses(logits, torch.zeros(30, 1)))
    # One class: 1 - p is 0 here, and in the sum written out the rounding of 1 - p.
    np.testing.assert_allclose(found, [0.0] * 30 if classes == 1 else expected, rtol=1e-9, atol=0)


def test_gen_still_ranks_images_that_the_network_is_very_sure_of() -> None:
    sure = Responses(torch.tensor([[60.0, 0.0, 0.0], [70.0, 0.0, 0.0], [70.0, 1.0, 0.0]]), torch.zeros(3, 1))
    surest, less, least = (float(fitted("gen")(sure)[image]) for image in (1, 2, 0))
    assert surest < less < least
    # (1 - p)^g of the largest is (2 e^-60)^g, which is not 0 although p is 1 in floating point.
    assert least == pytest.approx((2 * math.exp(-60)) ** GEN_POWER + 2 * math.exp(-60) ** GEN_POWER, rel=1e-9)


def answered(features: Tensor) -> Responses:
    """What an output layer makes of the features, in double precision."""
    return Responses(features.double() @ WEIGHTS.double().T + BIASES.double(), features.double())


def test_fdbd_agrees_with_the_feet_of_the_perpendiculars_on_the_decision_boundaries() -> None:
    """On each foot the network gives both classes one logit; how far it lies is the distance that the paper means."""
    weights, biases = WEIGHTS.double().numpy(), BIASES.double().numpy()
    mean = KNOWN.features.double().numpy().mean(0)
    expected = []
    for z in OTHERS.features.double().numpy():
        logits = weights @ z + biases
        named = int(logits.argmax())
        distances = []
        for other in set(range(4)) - {named}:
            normal = weights[named] - weights[other]
            foot = z - (logits[named] - logits[other]) / (normal @ normal) * normal
            at_foot = weights @ foot + biases
            assert at_foot[named] == pytest.approx(at_foot[other], abs=1e-9)
            distances.append(np.linalg.norm(z - foot))
        expected.append(-np.mean(distances) / np.linalg.norm(z - mean))
    score = fit_score("fdbd", answered(KNOWN.features), LABELS, weights=WEIGHTS, neighbours=1)
    np.testing.assert_allclose(score(answered(OTHERS.features)), expected, rtol=1e-9, atol=0)


def test_fdbd_keeps_its_value_when_features_and_weights_are_scaled_or_a_constant_is_added_to_all_logits() -> None:
    known, others = answered(KNOWN.features), answered(OTHERS.features)
    before = fit_score("fdbd", known, LABELS, weights=WEIGHTS, neighbours=1)(others)

    def moved(found: Responses) -> Responses:
        return Responses(found.logits + 7, found.features * 1e3)

    after = fit_score("fdbd", moved(known), LABELS, weights=WEIGHTS.double() / 1e3, neighbours=1)(moved(others))
    torch.testing.assert_close(after, before, rtol=1e-9, atol=0)


def test_fdbd_of_one_class_or_of_two_with_the_same_weights_is_a_number() -> None:
    features = OTHERS.features
    alone = Responses(torch.ones(50, 1), features)
    assert fit_score("fdbd", alone, LABELS[:50], weights=WEIGHTS[:1], neighbours=1)(alone).tolist() == [0.0] * 50
    twins = Responses(OTHERS.logits[:, :1].expand(50, 2), features)
    found = fit_score("fdbd", twins, LABELS[:50], weights=WEIGHTS[:1].expand(2, 6), neighbours=1)(twins)
    assert not found.isnan().any()


@pytest.mark.parametrize("weights", [torch.zeros(4, 5), torch.zeros(3, 6), torch.zeros(6)])
def test_weights_that_do_not_fit_logits_and_features_are_refused(weights: Tensor) -> None:
    with pytest.raises(ValueError, match="weights for"):
        fit_score("fdbd", KNOWN, LABELS, weights=weights, neighbours=1)


@pytest.mark.parametrize("shift", [-300.0, 7.0, 5000.0])
def test_a_shift_of_all_logits_lowers_max_logit_and_energy_by_it_and_leaves_the_softmax_score(shift: float) -> None:
    logits = OTHERS.logits.double()
    before, after = Responses(logits, OTHERS.features), Responses(logits + shift, OTHERS.features)
    for score, change in ON_LOGITS.items():
        by_name = fitted(score)
        torch.testing.assert_close(by_name(after) - by_name(before), torch.full((50,), change * shift).double())


@pytest.mark.parametrize("score", ON_LOGITS)
def test_a_larger_largest_logit_is_less_unknown(score: Score) -> None:
    logits = OTHERS.logits.clone()
    logits[torch.arange(50), logits.argmax(1)] += 0.5
    by_name = fitted(score)
    assert (by_name(Responses(logits, OTHERS.features)) < by_name(OTHERS)).all()


def test_relative_mahalanobis_agrees_with_inverses_written_out() -> None:
    means, within, mean, background = gaussians(RIDGE)
    within_inverse, background_inverse = np.linalg.inv(within), np.linalg.inv(background)
    expected = []
    for z in OTHERS.features.double().numpy():
        to_all = (z - mean) @ background_inverse @ (z - mean)
        expected.append(min((z - centre) @ within_inverse @ (z - centre) - to_all for centre in means))
    np.testing.assert_allclose(fitted("relative-mahalanobis")(OTHERS), expected, rtol=1e-9, atol=1e-9)


def test_relative_mahalanobis_is_a_ratio_of_gaussian_likelihoods() -> None:
    means, within, mean, background = gaussians(RIDGE)
    features = OTHERS.features.double().numpy()
    best = np.max([multivariate_normal(centre, within).logpdf(features) for centre in means], axis=0)
    constant = np.linalg.slogdet(background)[1] - np.linalg.slogdet(within)[1]
    expected = constant - 2 * (best - multivariate_normal(mean, background).logpdf(features))
    np.testing.assert_allclose(fitted("relative-mahalanobis")(OTHERS), expected, rtol=1e-9, atol=1e-9)


def test_relative_mahalanobis_keeps_its_value_when_features_are_scaled_turned_and_moved() -> None:
    generator = torch.Generator().manual_seed(2)
    turn = torch.linalg.qr(torch.randn((6, 6), generator=generator, dtype=torch.float64)).Q
    offset = torch.randn(6, generator=generator, dtype=torch.float64)

    def moved(features: Tensor) -> Tensor:
        turned: Tensor = features.double() @ turn
        return 1e4 * (turned + offset)

    before = RelativeMahalanobis.fit(KNOWN.features, LABELS)(OTHERS.features)
    after = RelativeMahalanobis.fit(moved(KNOWN.features), LABELS)(moved(OTHERS.features))
    torch.testing.assert_close(after, before, rtol=1e-8, atol=1e-8)


def test_a_unit_that_no_known_image_excites_says_nothing_in_relative_mahalanobis() -> None:
    excited = OTHERS.features.clone()
    excited[:, 5] = 100
    score = RelativeMahalanobis.fit(KNOWN.features, LABELS)
    # Distances are of the order of 1e7 here, and only their difference is compared.
    torch.testing.assert_close(score(excited), score(OTHERS.features), rtol=0, atol=1e-6)


def test_relative_mahalanobis_works_with_fewer_images_than_features_and_one_image_of_a_class() -> None:
    generator = torch.Generator().manual_seed(3)
    score = RelativeMahalanobis.fit(torch.randn((9, 40), generator=generator), torch.tensor([0] * 4 + [1] * 4 + [2]))
    assert torch.isfinite(score(torch.randn((20, 40), generator=generator))).all()


@pytest.mark.parametrize("neighbours", [1, 7, 120])
def test_nearest_neighbour_agrees_with_a_search_over_all(neighbours: int) -> None:
    known, others = KNOWN.features.double().numpy(), OTHERS.features.double().numpy()
    reference = NearestNeighbors(n_neighbors=neighbours, algorithm="ball_tree")
    reference.fit(known / np.linalg.norm(known, axis=1, keepdims=True))
    expected = reference.kneighbors(others / np.linalg.norm(others, axis=1, keepdims=True))[0][:, -1]
    np.testing.assert_allclose(fitted("nearest-neighbour", neighbours)(OTHERS), expected, rtol=1e-9, atol=1e-7)


def test_nearest_neighbour_looks_at_directions_only_and_at_all_images_however_many() -> None:
    many = torch.rand((2 * ROWS + 3, 6), generator=torch.Generator().manual_seed(4)) + 0.01
    score = fitted("nearest-neighbour")
    logits = torch.zeros(len(many), 4)
    whole = score(Responses(logits, many))
    assert whole.shape == (len(many),)
    torch.testing.assert_close(score(Responses(logits, many * 1e5)), whole)
    one_by_one = torch.cat([score(Responses(logits[:1], row[None])) for row in many])
    torch.testing.assert_close(one_by_one, whole, rtol=0, atol=1e-9)


def test_an_image_without_any_active_feature_is_at_distance_one() -> None:
    nothing = Responses(torch.zeros(2, 4), torch.zeros(2, 6))
    torch.testing.assert_close(fitted("nearest-neighbour")(nothing), torch.ones(2).double())


def test_more_neighbours_than_known_images_are_refused() -> None:
    with pytest.raises(InputError, match="set neighbours to 120 or less"):
        fitted("nearest-neighbour", 121)
    with pytest.raises(ValueError, match="counted from 1"):
        fitted("nearest-neighbour", 0)


@pytest.mark.parametrize("score", SCORES)
def test_every_score_is_a_float64_per_image_and_none_of_no_image(score: Score) -> None:
    by_name = fitted(score)
    assert by_name(OTHERS).dtype == torch.float64
    assert by_name(OTHERS).shape == (50,)
    assert by_name(Responses(torch.zeros(0, 4), torch.zeros(0, 6))).shape == (0,)


@pytest.mark.parametrize("score", SCORES)
def test_known_images_score_lower_than_others_where_the_network_answers_them_differently(score: Score) -> None:
    """Known: near their class mean, one logit high. Unknown: no logit high, features elsewhere."""
    generator = torch.Generator().manual_seed(5)
    means = torch.eye(4, 8) * 5

    def known(count: int) -> tuple[Responses, Tensor]:
        labels = torch.arange(count) % 4
        logits = 8 * torch.eye(4)[labels] + torch.randn((count, 4), generator=generator)
        features = (means[labels] + 0.3 * torch.randn((count, 8), generator=generator)).relu()
        return Responses(logits, features), labels

    unknown = Responses(
        torch.randn((40, 4), generator=generator),
        (means[torch.arange(40) % 4].roll(4, 1) + 0.3 * torch.randn((40, 8), generator=generator)).relu(),
    )
    train, labels = known(200)
    by_name = fit_score(score, train, labels, weights=torch.eye(4, 8) * 1.6, neighbours=5)
    threshold = calibrated_threshold(by_name(known(100)[0]), 0.95)
    assert is_unknown(by_name(unknown), threshold).all()
    assert is_unknown(by_name(known(100)[0]), threshold).double().mean() < 0.2


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["logits", "features"])
def test_responses_that_are_not_finite_are_refused(where: str, bad: float) -> None:
    tensors = {"logits": torch.zeros(3, 2), "features": torch.zeros(3, 5)}
    tensors[where][1, 1] = bad
    with pytest.raises(RunFailedError, match="1 of 3 images"):
        Responses(**tensors)


@pytest.mark.parametrize(("logits", "features"), [((3, 2), (2, 2)), ((3, 0), (3, 2)), ((3,), (3, 2)), ((3, 2), (3,))])
def test_responses_of_other_shapes_are_refused(logits: tuple[int, ...], features: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"logits \[N, C\]"):
        Responses(torch.zeros(logits), torch.zeros(features))


def test_a_network_whose_features_are_all_the_same_is_named() -> None:
    with pytest.raises(RunFailedError, match="same features"):
        RelativeMahalanobis.fit(torch.ones(10, 3), torch.arange(10) % 2)


@pytest.mark.parametrize("labels", [torch.zeros(119).long(), torch.zeros(120, 1).long()])
def test_labels_that_do_not_fit_the_images_are_refused(labels: Tensor) -> None:
    with pytest.raises(ValueError, match="labels for"):
        fit_score("relative-mahalanobis", KNOWN, labels, weights=WEIGHTS, neighbours=1)


@given(
    st.lists(st.sampled_from([-2.5, -1.0, 0.0, 0.1, 1e-9, 3.0]) | st.floats(-1e6, 1e6), min_size=1, max_size=60),
    st.floats(0.001, 1.0),
)
def test_the_threshold_keeps_the_share_and_no_smaller_one_does(scores: list[float], keep: float) -> None:
    known = torch.tensor(scores, dtype=torch.float64)
    threshold = calibrated_threshold(known, keep)
    assert threshold in scores
    assert sum(not flagged for flagged in is_unknown(known, threshold).tolist()) / len(scores) >= keep
    assert sum(score < threshold for score in scores) / len(scores) < keep


@pytest.mark.parametrize(("keep", "count"), [(0.95, 20), (0.55, 100), (0.29, 100), (0.07, 100), (1.0, 9)])
def test_a_share_that_a_count_meets_exactly_takes_no_image_more(keep: float, count: int) -> None:
    """0.55 * 100 and 0.29 * 100 are not 55 and 29 in floating point."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(6))
    assert calibrated_threshold(order.double() + 1, keep) == round(keep * count)


def test_a_threshold_without_images_or_from_numbers_that_are_none_is_refused() -> None:
    with pytest.raises(InputError, match="set threshold"):
        calibrated_threshold(torch.zeros(0), 0.95)
    with pytest.raises(ValueError, match="not a number"):
        calibrated_threshold(torch.tensor([0.0, math.nan]), 0.95)
    with pytest.raises(ValueError, match="share"):
        calibrated_threshold(torch.zeros(3), 0.0)


def test_scores_and_threshold_are_compared_in_double_precision() -> None:
    third = torch.tensor([1 / 3], dtype=torch.float32)  # a little above the double 1/3
    assert is_unknown(third, 1 / 3).tolist() == [True]
    assert is_unknown(third, calibrated_threshold(third, 0.95)).tolist() == [False]
