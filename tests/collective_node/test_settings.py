"""Tests of settings that contradict themselves."""

import pytest
from pydantic import ValidationError

from collective_node.settings import CollectiveSettings

PRIVATE_FISHER = {"privacy_epsilon": 8.0, "privacy_scope": "fisher-given-weights"}


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"annotator": "annotate", "compare_scores": ("energy",)}, "need annotator = oracle"),
        ({"bias": "balanced", "strategy": "ewc"}, "balanced needs strategy = replay"),
        ({"bias": "balanced", "compare_strategies": ("none",)}, "balanced needs strategy = replay"),
        ({"calibration_share": 1.0}, "less than 1"),
        ({"forms": ()}, "at least 1 item"),
        ({"forms": ("paper", "paper")}, "stands twice"),
        ({"criterion": "similarity"}, "descendant_epochs above 0"),
        ({"sigma": float("inf")}, "finite number"),
        ({"threshold": float("nan")}, "finite number"),
        ({"base_widths": (0,) * 13}, "at least one channel"),
        ({"expansion": ("widen 2 +00",)}, "no growth step"),
        (
            {**PRIVATE_FISHER, "forms": ("condensed", "direct")},
            "all known classes, and direct learns",
        ),
        ({**PRIVATE_FISHER, "condense_known": False}, "and condensed learns the base"),
        ({"mixup": 0.2, "manifold_mixup": 0.2}, "set mixup or manifold_mixup to 0"),
        ({"mixup": 0.2, "condense_manifold_mixup": 0.2}, "set mixup or manifold_mixup to 0"),
        ({"ema": 0.9, "swa": 0.2}, "set ema or swa to 0"),
        ({"rotation_share": 1.0}, "less than 1"),
        ({"classifier": "cosine", "strategy": "ewc"}, "knows no cosines: set classifier"),
        ({"classifier": "cosine", "compare_strategies": ("ewc",)}, "knows no cosines: set classifier"),
        ({"classifier": "cosine", "bias": "weight-alignment"}, "do not count with classifier = cosine"),
    ],
)
def test_settings_that_contradict_themselves_are_refused(changes: dict[str, object], error: str) -> None:
    with pytest.raises(ValidationError, match=error):
        CollectiveSettings.model_validate(changes)


def test_private_fisher_diagonals_of_the_same_images_are_allowed() -> None:
    for changes in ({"forms": ("condensed", "paper", "whole")}, {"forms": ("condensed", "direct"), "cycles": 0}):
        CollectiveSettings.model_validate({**PRIVATE_FISHER, **changes})


PRIVATE: dict[str, object] = {"privacy_epsilon": 4.0, "forms": ("condensed",), "cycles": 0}


@pytest.mark.parametrize(
    "changes",
    [{"mixup": 0.2}, {"condense_swa": 0.5}, {"randaugment": 1}, {"schedule": "step"}, {"condense_generations": 1}],
)
def test_private_training_takes_no_regulariser_and_says_which_was_asked_for(changes: dict[str, object]) -> None:
    """It looks at images by sampling alone. A diagonal that is private given the weights may be of any training."""
    (name,) = changes
    with pytest.raises(ValidationError, match=rf"all that regularises off .*{name}"):
        CollectiveSettings.model_validate({**PRIVATE, **changes})
    CollectiveSettings.model_validate({**PRIVATE, **changes, "privacy_scope": "fisher-given-weights"})
    CollectiveSettings.model_validate(PRIVATE)


def test_condensing_has_its_own_regularisers_and_otherwise_those_of_the_tasks() -> None:
    settings = CollectiveSettings(mixup=0.2, swa=0.3, condense_swa=0.0, condense_randaugment=2)
    own = settings.in_condensing
    assert (own.mixup, own.swa, own.randaugment) == (0.2, 0.0, 2)
    assert (settings.mixup, settings.swa, settings.randaugment) == (0.2, 0.3, 0)
    plain = settings.plain
    assert not any((plain.mixup, plain.swa, plain.randaugment))
