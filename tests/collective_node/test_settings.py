"""Tests of settings that contradict themselves."""

import pytest
from pydantic import ValidationError

from collective_node.settings import CollectiveSettings


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
    ],
)
def test_settings_that_contradict_themselves_are_refused(changes: dict[str, object], error: str) -> None:
    with pytest.raises(ValidationError, match=error):
        CollectiveSettings.model_validate(changes)
