"""The table of hyperparameters in the documentation is the code's."""

from pathlib import Path

import pytest

from sims.profile_table import profile_table, with_table
from sims.settings import PROFILES

README = Path(__file__).parents[2] / "sims" / "cifar100" / "README.md"


def test_the_readme_holds_the_numbers_of_the_profiles() -> None:
    text = README.read_text()
    assert with_table(text) == text, "the profiles changed: python -m sims.profile_table"


def test_every_setting_of_every_profile_stands_in_the_table() -> None:
    lines = [line.strip("| ").split(" | ") for line in profile_table().splitlines() if line.startswith("| `")]
    rows = {line[0]: line[1:] for line in lines}
    for column, profile in enumerate(PROFILES.values()):
        for part, settings in (("collective", profile.collective), ("individual", profile.individual)):
            for name, value in settings.model_dump().items():
                row = rows[f"`{part}.{name}`"]
                shown = row[column] if len(row) > 2 else row[0]
                if isinstance(value, int | float) and not isinstance(value, bool):
                    assert float(shown) == pytest.approx(value, rel=1e-5)
                else:
                    assert shown


def test_a_text_without_the_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="no <!-- profiles"):
        with_table("no table here")
