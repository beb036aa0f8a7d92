"""An individual's ``metrics.json``: what is written comes back, and what no individual writes is one line."""

import json
from pathlib import Path

import pytest

from individual_node.metrics import IndividualMetrics
from protocol.errors import InputError
from protocol.node.metrics import METRICS_FILE, read_metrics, write_metrics

WHOLE: dict[str, object] = {
    "methods": {"scratch": {"10": {"0": 40.0, "2": 60.0}}, "floor": {"10": {"0": 20.0, "2": 20.0}}},
    "curves": {"scratch": {"10": {"tasks": 2, "epochs": [1, 2], "accuracy": [30.0, 50.0]}}},
    "task_classes": {"0": ["0", "3", "19"], "2": ["4", "3", "1"]},
    "retain_weight": {"scratch": 1000.0},
    "inherited": {"condensed": "3 -> 4p | 4"},
    "revocation_status": {"condensed": "withdrawn"},
    "device": "cpu",
    "threads": 1,
    "confinement": "unconfined",
    "seconds": {"scratch": 1.5},
}


def test_what_is_written_has_the_keys_that_were_given_and_comes_back(tmp_path: Path) -> None:
    written = IndividualMetrics.model_validate(WHOLE)
    write_metrics(tmp_path, written)
    assert json.loads((tmp_path / METRICS_FILE).read_bytes()) == WHOLE
    assert read_metrics(tmp_path, IndividualMetrics) == written


def test_without_a_file_there_are_none(tmp_path: Path) -> None:
    assert read_metrics(tmp_path, IndividualMetrics) is None


@pytest.mark.parametrize(
    "change",
    [
        {"more": 1},
        {"threads": 0},
        {"methods": {"scratch": {"10": {"0": 100.5}}}},
        {"methods": {"scratch": {"ten": {"0": 50.0}}}},
        {"methods": {"\x1b[31m": {}}},
        {"curves": {"scratch": {"10": {"tasks": 2, "epochs": [1], "accuracy": [30.0, 50.0]}}}},
        {"task_classes": {"0": []}},
        {"task_classes": {"0": ["\x1b[31m", "1"]}},
        {"task_classes": {"first": ["0", "1"]}},
        {"inherited": {"half": "3 -> 4p | 4"}},
        {"revocation_status": {"condensed": "good"}},
        {"seconds": ["a while"]},
    ],
)
def test_what_no_individual_writes_is_one_line_that_names_the_file(tmp_path: Path, change: dict[str, object]) -> None:
    path = tmp_path / METRICS_FILE
    path.write_text(json.dumps(WHOLE | change))
    with pytest.raises(InputError) as refused:
        read_metrics(tmp_path, IndividualMetrics)
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)
