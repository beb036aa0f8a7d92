"""Tests of what the logistic head may be: against scikit-learn, fitted image by image and fold by fold."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from individual_node import head_choice
from individual_node.feature_head import FeatureHeads
from individual_node.head_choice import chosen_heads, dealt, losses_at_best_temperature, validation_logits
from individual_node.logistic_regression import logistic_regression
from individual_node.settings import HeadChoice, HeadSettings, IndividualSettings
from individual_node.views import centred_and_normalised

WAYS, SHOTS = 3, 6
STEM, TOP = 40, 9


def drawn(tasks: int, copies: int = 1) -> tuple[list[Tensor], Tensor]:
    """Views of support images, and copies that differ a little; labels in no order."""
    generator = torch.Generator().manual_seed(3)
    labels = torch.stack([torch.randperm(WAYS * SHOTS, generator=generator) % WAYS for _ in range(tasks)])
    views = []
    for features in (STEM, TOP):
        means = torch.rand(WAYS, features, generator=generator)
        plain = means[labels] + torch.rand(tasks, WAYS * SHOTS, features, generator=generator)
        noise = [0.1 * number * torch.rand(plain.shape, generator=generator) for number in range(copies)]
        views.append(torch.cat([plain + one for one in noise], 1))
    return views, labels


def fitted(
    known: Tensor, labels: NDArray[np.int64], choice: HeadChoice, weights: NDArray[np.float64] | None = None
) -> LogisticRegression:
    """scikit-learn's head on rows of centred views side by side."""
    return LogisticRegression(C=1 / choice.penalty, tol=1e-10, max_iter=100_000).fit(
        by_share(known, choice), labels, sample_weight=weights
    )


def by_share(x: Tensor, choice: HeadChoice) -> NDArray[np.float64]:
    stem, top = np.sqrt(2 * (1 - choice.top_share)), np.sqrt(2 * choice.top_share)
    return np.concatenate([x[:, :STEM].double() * stem, x[:, STEM:].double() * top], 1)


@pytest.mark.parametrize("features", [5, 60])
def test_rows_count_by_their_weights(features: int) -> None:
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.repeat(np.arange(3), 8))
    x = rng.normal(size=(2, 24, features)) + labels[None, :, None] * np.linspace(0, 0.6, features)
    weights = rng.uniform(0, 2, (2, 24))
    weights[:, ::5] = 0
    found = logistic_regression(
        torch.from_numpy(x), torch.from_numpy(np.stack([labels] * 2)), 3, 0.5, torch.from_numpy(weights)
    )
    for number in range(2):
        reference = LogisticRegression(C=1 / 0.5, tol=1e-10, max_iter=10_000)
        reference.fit(x[number], labels, sample_weight=weights[number])
        np.testing.assert_allclose(found[number, :, :-1].numpy(), reference.coef_, atol=1e-4)


@pytest.mark.parametrize("folds", [2, 4, 6])
def test_folds_are_as_equal_as_they_can_be_in_each_class(folds: int) -> None:
    _, labels = drawn(4)
    parts = dealt(labels, folds)
    for row, part in zip(labels, parts, strict=True):
        assert np.ptp(np.bincount(part, minlength=folds)) <= 1
        for way in range(WAYS):
            assert np.ptp(np.bincount(part[row == way], minlength=folds)) <= 1


@pytest.mark.parametrize(
    "choice", [HeadChoice(0.3), HeadChoice(0.05, 0.25), HeadChoice(2.0, 1.0), HeadChoice(1.0, 0.0)]
)
@pytest.mark.parametrize("copies", [1, 3])
def test_cross_validation_is_an_explicit_loop_over_folds(choice: HeadChoice, copies: int) -> None:
    views, labels = drawn(3, copies)
    logs = validation_logits(views, labels, WAYS, choice, 3).log_softmax(2)
    parts = dealt(labels, 3)
    for number, row in enumerate(labels.numpy()):
        for fold in range(3):
            learns = np.tile(parts[number].numpy() != fold, copies)
            known = [view[number, torch.from_numpy(learns)] for view in views]
            centres = [view.mean(0, keepdim=True) for view in known]
            head = fitted(
                centred_and_normalised(known, centres),
                np.tile(row, copies)[learns],
                choice,
                np.full(learns.sum(), 1 / copies),
            )
            held = parts[number].numpy() == fold
            unknown = centred_and_normalised(
                [view[number, : len(row)][torch.from_numpy(held)] for view in views], centres
            )
            np.testing.assert_allclose(
                logs[number, torch.from_numpy(held)], head.predict_log_proba(by_share(unknown, choice)), atol=1e-4
            )


def test_the_loss_is_that_of_the_best_temperature_whatever_the_heads_own_confidence() -> None:
    torch.manual_seed(0)
    labels = torch.randint(WAYS, (4, 30))
    logits = torch.randn(4, 30, WAYS) + 2 * nn.functional.one_hot(labels, WAYS)
    found = losses_at_best_temperature(logits, labels)
    for index in range(4):
        least = minimize_scalar(
            lambda log, index=index: float(nn.functional.cross_entropy(logits[index] * np.exp(log), labels[index])),
            bounds=(-2, 4),
            method="bounded",
        )
        assert least.fun <= float(found[index].mean()) + 1e-6
        assert float(found[index].mean()) < least.fun * 1.02
    torch.testing.assert_close(losses_at_best_temperature(logits / 8, labels), found)


def test_a_head_is_chosen_only_where_it_is_clearly_better(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mean and standard error of the difference to the default, image by image; ties go to the default."""
    default, other, third = HeadChoice(0.3), HeadChoice(1.0), HeadChoice(3.0)
    rng = np.random.default_rng(0)
    base = rng.uniform(0, 3, WAYS * SHOTS)
    noise = rng.normal(size=WAYS * SHOTS)
    noise = (noise - noise.mean()) / noise.std(ddof=1)
    error = 1 / np.sqrt(WAYS * SHOTS)
    losses = {
        default: [base, base, base, base],
        other: [base - noise - 1.1 * error, base - noise - 0.9 * error, base, base + 0.1],
        third: [base + 0.01, base + 1, base, base - 0.01],
    }
    monkeypatch.setattr(head_choice, "validation_logits", lambda *given: torch.from_numpy(np.stack(losses[given[3]])))
    monkeypatch.setattr(head_choice, "losses_at_best_temperature", lambda found, _: found)
    views, labels = drawn(4)
    settings = HeadSettings(default, (other, third), folds=3)
    assert chosen_heads(views, labels, WAYS, settings) == [other, default, default, third]


def test_the_choice_is_made_on_support_images_alone_and_in_any_company() -> None:
    views, labels = drawn(5)
    settings = HeadSettings(HeadChoice(30.0), (HeadChoice(0.1), HeadChoice(0.1, 0.9)), folds=3)
    together = chosen_heads(views, labels, WAYS, settings)
    alone = [
        chosen_heads([view[number : number + 1] for view in views], labels[number : number + 1], WAYS, settings)[0]
        for number in range(5)
    ]
    assert together == alone
    assert HeadChoice(30.0) not in together  # far too large a penalty
    single = labels.clone()
    single[:, (single[0] == 0).nonzero()[1:, 0]] = 1
    assert chosen_heads(views, single, WAYS, settings)[0] == settings.default  # a class with one image


@pytest.mark.parametrize("copies", [1, 3])
def test_heads_of_different_tasks_are_those_of_scikit_learn(copies: int, monkeypatch: pytest.MonkeyPatch) -> None:
    choices = [HeadChoice(0.3), HeadChoice(1.0, 0.2), HeadChoice(0.3), HeadChoice(0.1, 1.0)]
    monkeypatch.setattr("individual_node.feature_head.chosen_heads", lambda *_: choices)
    views, labels = drawn(4, copies)
    heads = FeatureHeads.fit(views, labels, WAYS, HeadSettings(HeadChoice(0.3)))
    unknown, _ = drawn(4)
    found = heads.predict(unknown)
    for number, choice in enumerate(choices):
        known = [view[number] for view in views]
        centres = [view.mean(0, keepdim=True) for view in known]
        counts = np.full(len(known[0]), 1 / copies)
        head = fitted(centred_and_normalised(known, centres), np.tile(labels[number], copies), choice, counts)
        tested = centred_and_normalised([view[number] for view in unknown], centres)
        np.testing.assert_array_equal(found[number], head.predict(by_share(tested, choice)))


def test_copies_of_an_image_that_do_not_differ_change_nothing() -> None:
    views, labels = drawn(2)
    settings = HeadSettings(HeadChoice(0.3), (HeadChoice(1.0),), folds=3)
    once = FeatureHeads.fit(views, labels, WAYS, settings)
    twice = FeatureHeads.fit([view.repeat(1, 3, 1) for view in views], labels, WAYS, settings)
    torch.testing.assert_close(twice.weight, once.weight, atol=1e-5, rtol=1e-4)


def test_the_settings_say_which_heads_there_are() -> None:
    plain = IndividualSettings(penalty=0.5, top_share=0.4, penalty_grid=(0.1, 0.5), top_share_grid=(0.4, 0.6))
    assert plain.head == HeadSettings(HeadChoice(0.5, 0.4))
    chosen = plain.model_copy(update={"cross_validation": 4, "support_shifts": 2}).head
    assert chosen.default == plain.head.default
    assert set(chosen.others) == {HeadChoice(0.1, 0.4), HeadChoice(0.1, 0.6), HeadChoice(0.5, 0.6)}
    assert (chosen.folds, chosen.shifts) == (4, 2)
