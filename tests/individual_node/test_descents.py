"""Methods over a grid of learning rates and weight decays: each as if the settings had said so."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from individual_node.methods import Evaluation
from individual_node.settings import IndividualSettings
from individual_node.target_tasks import PrivateImages
from protocol.learngene.architecture import Form
from protocol.learngene.learngene import Learngene
from protocol.node.events import Events
from tests.individual_node.made import CPU, SHOTS, images, learngene, task

LEARNGENES: dict[Form, Learngene] = {"condensed": learngene()}


def evaluation(folder: Path, **settings: object) -> Evaluation:
    pixels = images().pixels.numpy()
    own = PrivateImages(pixels, pixels, {SHOTS: [task(0), task(1)]})
    given = {"methods": ("condensed", "condensed-eq9", "scratch"), "epochs": 3, "batch_size": 8, **settings}
    return Evaluation(LEARNGENES, own, IndividualSettings.model_validate(given), 0, CPU, Events(folder / "events"))


def test_a_row_of_the_grid_is_the_method_with_those_settings(tmp_path: Path) -> None:
    grid = {"compare_learning_rates": (0.001, 0.1), "compare_weight_decays": (0.0, 0.01)}
    found, _ = evaluation(tmp_path, **grid).run_all()
    assert len(found) == 3 + 2 * 4  # the head is fitted, not trained
    for rate in (0.001, 0.1):
        for decay in (0.0, 0.01):
            own = {"learning_rate": rate, "scratch_learning_rate": rate, "weight_decay": decay}
            alone, _ = evaluation(tmp_path, **own).run_all()
            for method in ("condensed-eq9", "scratch"):
                assert found[f"{method} rate {rate:g} decay {decay:g}"] == alone[method]
    plain, _ = evaluation(tmp_path).run_all()
    assert {name: found[name] for name in plain} == plain


def test_without_decays_the_setting_s_own_is_taken() -> None:
    settings = IndividualSettings(methods=("scratch",), compare_learning_rates=(0.1,), weight_decay=0.25)
    assert [one.name for one in settings.scored] == ["scratch", "scratch rate 0.1 decay 0.25"]


@pytest.mark.parametrize(
    "fields",
    [
        {"compare_weight_decays": (0.1,)},
        {"compare_learning_rates": (0.1, 0.1)},
        {"compare_learning_rates": (0.0,)},
        {"compare_learning_rates": (0.1,), "compare_weight_decays": (-0.1,)},
        {
            "methods": ("condensed-eq9", "scratch"),
            "compare_learning_rates": (1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0),
            "compare_weight_decays": (1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0),
        },
    ],
)
def test_a_grid_that_makes_no_sense_is_refused(fields: dict[str, object]) -> None:
    IndividualSettings.model_validate({"compare_learning_rates": (0.1,), "compare_weight_decays": (0.0,)})
    with pytest.raises(ValidationError):
        IndividualSettings.model_validate(fields)
