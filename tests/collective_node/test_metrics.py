"""The collective's ``metrics.json``: what is written comes back, and what no collective writes is one line."""

import json
from pathlib import Path

import pytest

from collective_node.metrics import CollectiveMetrics
from protocol.errors import InputError
from protocol.node.metrics import METRICS_FILE, read_metrics, write_metrics

TASK = {
    "task": 0, "classes": ["ant", "bee"], "known": 2, "steps": 3, "loss": 0.7, "accuracy": 50.0, "old_accuracy": None,
    "widths": [4, 4], "seconds": 0.5,
}  # fmt: skip
FISHER = {"source": "collective", "estimator": "sampled", "samples": 9, "clip_micro": 0, "largest": 0.5, "mean": 0.25}
#: As an evolution with private weights leaves it: no sequence of tasks and what follows from one.
STORED: dict[str, object] = {"dtype": "int8", "bytes": 1234, "sizes": []}
SHORT: dict[str, object] = {
    "tasks": [],
    "known_classes": 4,
    "condensed_accuracy": 25.0,
    "learngenes": {"condensed": {"architecture": "3 -> 4p | 4", "release": "a" * 64, "fisher": FISHER, **STORED}},
    "parameters": {"condensed": 190},
    "privacy": None,
    "device": "cpu",
    "threads": 1,
    "confinement": "unconfined",
    "seconds": {"train": 1.5},
}
WHOLE: dict[str, object] = {
    **SHORT,
    "tasks": [TASK],
    "base_accuracy": 50.0,
    "gradient_trend": {"layers": ["conv 1", "conv 2"], "rho": [[0.5], [None]], "sigma": 0.001},
    "criterion": {
        "chosen": [2],
        "settled": [False, True],
        "found": 1,
        "similarity": {"per_layer": [0.5, 1.0], "layers": [2]},
    },
    "open_world": {
        "cycles": [],
        "comparisons": [{"score": "energy", "strategy": "none", "cycles": [], "stopped": "nothing is unknown"}],
    },
    "weights_sha256": "b" * 64,
}


@pytest.mark.parametrize("document", [SHORT, WHOLE])
def test_what_is_written_has_the_keys_that_were_given_and_comes_back(
    tmp_path: Path, document: dict[str, object]
) -> None:
    written = CollectiveMetrics.model_validate(document)
    write_metrics(tmp_path, written)
    assert json.loads((tmp_path / METRICS_FILE).read_bytes()) == document
    assert read_metrics(tmp_path, CollectiveMetrics) == written


def test_without_a_file_there_are_none(tmp_path: Path) -> None:
    assert read_metrics(tmp_path, CollectiveMetrics) is None


@pytest.mark.parametrize(
    "change",
    [
        {"more": 1},
        {"known_classes": 0},
        {"condensed_accuracy": 101.0},
        {"weights_sha256": "b" * 63},
        {"threads": None},
        {"learngenes": {"whole": SHORT["learngenes"]}},
        {"tasks": [{**TASK, "more": 1}]},
        {"gradient_trend": {"layers": ["conv 1"], "rho": [], "sigma": 0.001}},
        {"gradient_trend": {"layers": ["\x1b[31m"], "rho": [[0.5]], "sigma": 0.001}},
        {"criterion": {"chosen": [0], "settled": [True, True], "found": 0, "similarity": None}},
        {"criterion": {"chosen": [1], "settled": [True], "found": 0, "similarity": None}},
        {"criterion": {"chosen": [1], "settled": [1.5], "found": 0, "similarity": {"per_layer": [], "layers": []}}},
    ],
)
def test_what_no_collective_writes_is_one_line_that_names_the_file(tmp_path: Path, change: dict[str, object]) -> None:
    path = tmp_path / METRICS_FILE
    path.write_text(json.dumps(WHOLE | change))
    with pytest.raises(InputError) as refused:
        read_metrics(tmp_path, CollectiveMetrics)
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)
