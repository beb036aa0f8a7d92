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
    ],
)
def test_settings_that_contradict_themselves_are_refused(changes: dict[str, object], error: str) -> None:
    with pytest.raises(ValidationError, match=error):
        CollectiveSettings.model_validate(changes)


def test_private_fisher_diagonals_of_the_same_images_are_allowed() -> None:
    for changes in ({"forms": ("condensed", "paper", "whole")}, {"forms": ("condensed", "direct"), "cycles": 0}):
        CollectiveSettings.model_validate({**PRIVATE_FISHER, **changes})
