"""The table of hyperparameters in the documentation is the code's."""

from pathlib import Path

import pytest

from sims.data.datasets import DatasetName
from sims.run.profile_docs import PAGES, profile_table, with_table
from sims.run.profiles import PROFILES

SIMS = Path(__file__).parents[3] / "sims"


@pytest.mark.parametrize("dataset", PAGES)
def test_the_readme_holds_the_numbers_of_the_profiles(dataset: DatasetName) -> None:
    text = (SIMS / dataset / "README.md").read_text(encoding="utf-8")
    assert with_table(text, dataset) == text, "the profiles changed: python -m sims.run.profile_docs"


@pytest.mark.parametrize("dataset", PAGES)
def test_every_setting_of_every_profile_stands_in_the_table(dataset: DatasetName) -> None:
    table = profile_table(dataset).splitlines()
    lines = [line.strip("| ").split(" | ") for line in table if line.startswith("| `")]
    rows = {line[0]: line[1:] for line in lines}
    for column, profile in enumerate(PROFILES[dataset].values()):
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
        with_table("no table here", "cifar100")


def test_datasets_without_a_table_have_the_numbers_of_another() -> None:
    assert all(PROFILES[name] is PROFILES["cifar100"] for name in PROFILES if name not in PAGES)
