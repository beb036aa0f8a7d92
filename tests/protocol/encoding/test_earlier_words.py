"""Files of earlier formats: ``results.json`` and ``settings.json`` of earlier versions are read as today's."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collective_node.records import CycleFigures
from individual_node.metrics import IndividualMetrics
from protocol.encoding.earlier_words import in_format_2, in_todays_words
from protocol.errors import InputError
from sims.results.earlier_results import in_format_3
from sims.results.models import load
from sims.run.run_folder import SettingsFile
from sims.run.settings import from_run_config

#: Written by the version before format 2, from made numbers.
EARLIER = Path(__file__).parents[2] / "sims" / "results" / "results-format-1.json"

ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=12,
)


def stored(folder: Path, text: str) -> Path:
    (folder / "results.json").write_text(text, encoding="utf-8")
    return folder


def test_results_of_format_1_hold_the_same_figures_and_are_written_in_format_3(tmp_path: Path) -> None:
    earlier = json.loads(EARLIER.read_text(encoding="utf-8"))
    found = load(stored(tmp_path, EARLIER.read_text(encoding="utf-8")))
    assert found.format == 3
    assert load(stored(tmp_path, found.to_json().decode())) == found
    cycle, now = earlier["collective"]["open_world"]["cycles"][0], found.collective.open_world.cycles[0]
    assert now.before is not None
    assert now.before["msp"] is not None
    assert now.before["msp"].auroc == cycle["before"]["paper"]["auroc"]
    for one, other in zip(
        earlier["collective"]["open_world"]["comparisons"], found.collective.open_world.comparisons, strict=True
    ):
        assert [c.retain_weight for c in other.cycles] == [c["retain"] for c in one["cycles"]]
    method, was = found.methods["condensed"][10], earlier["methods"]["condensed"]["10"]
    assert method.per_task == tuple(was["per_task"])
    assert (method.ci95_tasks, method.ci95_classes) == (was["ci95"], None)
    pair = found.paired["condensed-scratch"][10]
    assert (pair.ci95_tasks, pair.ci95_classes) == (earlier["paired"]["condensed-scratch"]["10"]["ci95"], None)


def test_results_of_format_2_hold_the_same_figures(tmp_path: Path) -> None:
    earlier = in_format_2(json.loads(EARLIER.read_text(encoding="utf-8")))
    assert isinstance(earlier, dict)
    assert earlier["format"] == 2
    found = load(stored(tmp_path, json.dumps(earlier)))
    assert found == load(stored(tmp_path, EARLIER.read_text(encoding="utf-8")))


@pytest.mark.parametrize("form", [2, 3, 4, "1"])
def test_the_words_of_format_1_are_refused_in_any_other(tmp_path: Path, form: object) -> None:
    earlier = json.loads(EARLIER.read_text(encoding="utf-8"))
    with pytest.raises(InputError, match=r"results\.json"):
        load(stored(tmp_path, json.dumps({**earlier, "format": form})))


def test_a_method_or_form_called_paper_keeps_its_name(tmp_path: Path) -> None:
    document = {"format": 1, "methods": {"paper": {"10": {}}}, "settings": {"collective": {"forms": ["paper"]}}}
    assert in_format_2(document) == {**document, "format": 2}


def test_settings_of_format_1_are_the_same_settings() -> None:
    changes = "individual.retain_weight=7 collective.score=msp collective.compare_scores=msp,energy"
    settings = SettingsFile(settings=from_run_config({"set": changes}))
    document = settings.model_dump(mode="json")
    collective, individual = document["settings"]["collective"], document["settings"]["individual"]
    individual["retain"] = individual.pop("retain_weight")
    collective |= {"score": "paper", "compare_scores": ["paper", "energy"], "person": collective.pop("annotator")}
    assert SettingsFile.model_validate_json(json.dumps({**document, "format": 1})) == settings


@given(ANY_JSON)
def test_a_document_of_any_shape_is_left_for_the_model_to_judge(document: object) -> None:
    found = in_format_2(document)
    if not isinstance(document, dict) or document.get("format", 1) != 1:
        assert found is document


@given(ANY_JSON)
def test_results_of_any_shape_are_left_for_the_model_to_judge(document: object) -> None:
    found = in_format_3(document)
    if not isinstance(document, dict) or document.get("format", 1) not in (1, 2):
        assert found is document
    for shape in (document, {"paper": document}, {"paper": {"10": document}}):
        made = in_format_3({"format": 2, "methods": shape})
        assert isinstance(made, dict)
        assert made["format"] == 3


def test_figures_of_a_node_of_before_are_read() -> None:
    """A run that was interrupted under the earlier version goes on to its report under this one."""
    stored = json.loads(EARLIER.read_text(encoding="utf-8"))["collective"]["open_world"]["cycles"][0]
    assert "paper" in stored["before"]
    assert "retain" in stored
    assert CycleFigures.model_validate(in_todays_words(stored)).before is not None
    figures = {
        "methods": {"paper": {"10": {"0": 50.0}}}, "curves": {}, "retain": {"paper": 7.0}, "inherited": {},
        "revocation_status": {}, "device": "cpu", "threads": 1, "confinement": "confined", "seconds": {"paper": 1.0},
    }  # fmt: skip
    found = IndividualMetrics.model_validate(figures)
    assert found.retain_weight == {"paper": 7.0}
    assert set(found.methods) == {"paper"}
    assert found.task_classes == {}
