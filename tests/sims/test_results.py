"""Merging what the nodes left into results.json: complete, by task number, valid by its schema, equal when repeated."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError
from scipy import stats

from protocol.errors import InputError, RunFailedError
from sims.results import Results, collect, load, schema
from tests.sims.made_run import METHODS, collective_metrics, make_run, record


def edit(path: Path, change: Callable[[Any], object]) -> None:
    """Change a JSON file in place."""
    document = json.loads(path.read_text(encoding="utf-8"))
    change(document)
    path.write_text(json.dumps(document), encoding="utf-8")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Results]:
    folder = make_run(tmp_path_factory.mktemp("runs"))
    return folder, collect(folder)


def test_the_file_is_valid_by_its_schema_and_reads_back(made: tuple[Path, Results]) -> None:
    folder, results = made
    Draft202012Validator.check_schema(schema())
    Draft202012Validator(schema()).validate(json.loads((folder / "results.json").read_text(encoding="utf-8")))
    assert load(folder) == results


def test_the_schema_refuses_what_it_should(made: tuple[Path, Results]) -> None:
    good = json.loads((made[0] / "results.json").read_text(encoding="utf-8"))
    changes: list[Callable[[Any], object]] = [
        lambda d: d.pop("paired"),
        lambda d: d.update(extra=1),
        lambda d: d["dataset"].update(source="internet"),
        lambda d: d["dataset"].update(source="stand-in"),  # without its notice
        lambda d: d["methods"]["scratch"]["10"].update(mean=101),
        lambda d: d["methods"]["scratch"].update({"ten": d["methods"]["scratch"]["10"]}),
        lambda d: d["methods"]["scratch"]["10"].update(ci95=-1),
        lambda d: d["crossings"][0].update(digest="abc"),
        lambda d: d["crossings"][0].update(image="pixels"),
        lambda d: d["seconds"].update(total=1),
    ]
    for change in changes:
        bad = json.loads(json.dumps(good))
        change(bad)
        with pytest.raises(ValidationError):
            Draft202012Validator(schema()).validate(bad)


def test_tasks_are_merged_by_their_run_wide_number(made: tuple[Path, Results]) -> None:
    folder, results = made
    expected: dict[int, float] = {}
    for number in (1, 2):
        metrics = json.loads((folder / "nodes" / f"individual-{number}" / "metrics.json").read_text(encoding="utf-8"))
        expected |= {int(task): value for task, value in metrics["methods"]["scratch"]["10"].items()}
    found = results.methods["scratch"][10]
    assert found.per_task == tuple(expected[task] for task in range(12))
    assert found.tasks == 12
    assert found.mean == pytest.approx(np.mean(list(expected.values())))
    assert list(results.methods) == list(METHODS)


def test_differences_are_paired_on_the_same_tasks(made: tuple[Path, Results]) -> None:
    results = made[1]
    assert set(results.paired) == {
        "condensed-condensed-eq9",
        "condensed-paper",
        "condensed-scratch",
        "condensed-floor",
        "condensed-eq9-scratch",
        "paper-scratch",
    }
    for shots in (10, 20):
        first, second = results.methods["condensed"][shots].per_task, results.methods["floor"][shots].per_task
        expected = stats.ttest_rel(first, second).confidence_interval(0.95)
        found = results.paired["condensed-floor"][shots]
        assert found.ci95 is not None
        assert found.mean - found.ci95 == pytest.approx(expected.low)
        assert found.mean + found.ci95 == pytest.approx(expected.high)


def test_it_does_not_matter_how_the_tasks_were_dealt(tmp_path: Path) -> None:
    one = collect(make_run(tmp_path / "one", individuals=1))
    three = collect(make_run(tmp_path / "three", individuals=3))
    assert one.methods == three.methods
    assert one.paired == three.paired


def test_the_same_run_twice_is_equal_apart_from_times_and_digests(tmp_path: Path) -> None:
    folders = [make_run(tmp_path / name, run_id=digit * 32) for name, digit in (("a", "a"), ("b", "b"))]
    metrics = folders[1] / "nodes" / "collective" / "metrics.json"
    edit(metrics, lambda d: (d["seconds"].update(train=999.0), [task.update(seconds=9.9) for task in d["tasks"]]))
    edit(metrics, lambda d: d["learngenes"]["condensed"].update(release="b" * 64))
    documents = []
    for folder in folders:
        collect(folder)
        document = json.loads((folder / "results.json").read_text(encoding="utf-8"))
        del document["seconds"]
        for crossing in document["crossings"]:
            del crossing["digest"]
        documents.append(document)
    assert documents[0] == documents[1]


def test_curves_are_weighted_by_the_tasks_behind_them(tmp_path: Path) -> None:
    folder = make_run(tmp_path, target_tasks="10:3", individuals=2)  # two tasks and one
    curve = collect(folder).curves["scratch"][10]
    assert curve.accuracy == pytest.approx([(2 * (level + 1) + (level + 2)) / 3 for level in (20.0, 30.0, 40.0)])
    assert curve.tasks == 3
    edit(
        folder / "nodes" / "individual-1" / "metrics.json", lambda d: d["curves"]["scratch"]["10"].update(tasks=1)
    )  # it followed one of its two only
    curve = collect(folder).curves["scratch"][10]
    assert curve.accuracy == pytest.approx([level + 1.5 for level in (20.0, 30.0, 40.0)])
    assert curve.tasks == 2


def test_every_crossing_stands_once_whoever_recorded_it(tmp_path: Path) -> None:
    folder = make_run(tmp_path, individuals=2)
    lost = record("out", "collective", "individual-1", "abort", 5000)
    with (folder / "nodes" / "collective" / "crossings.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(lost) + "\n" + '{"half a line')
    found = collect(folder).crossings
    kinds = [crossing.kind for crossing in found]
    assert kinds == 2 * ["request", "release", "grant", "blob", "receipt"] + ["abort"]
    assert [crossing.recorded_by for crossing in found] == 10 * ["both"] + ["sender"]


def test_a_message_that_changed_on_its_way_shows_as_two_one_sided_records(tmp_path: Path) -> None:
    folder = make_run(tmp_path, individuals=1)
    path = folder / "nodes" / "individual-1" / "crossings.jsonl"
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for line in lines:
        if line["kind"] == "blob":
            line["digest"] = "f" * 64
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    blobs = [crossing.recorded_by for crossing in collect(folder).crossings if crossing.kind == "blob"]
    assert sorted(blobs) == ["receiver", "sender"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: d["methods"]["scratch"]["10"].pop("0"), "scratch, 10 shots"),
        (lambda d: d["methods"]["floor"].pop("20"), "floor, 20 shots"),
        (lambda d: d["methods"]["paper"]["10"].update({"1": 50.0}), "task 1"),
        (lambda d: d["methods"]["paper"]["10"].update({"99": 50.0}), "99"),
        (lambda d: d["methods"]["paper"]["10"].update({"0": 100.5}), "100.5"),
        (lambda d: d["methods"]["paper"]["10"].update({"0": float("nan")}), "nan"),
        (lambda d: d.pop("methods"), "methods"),
    ],
)
def test_a_result_that_is_missing_doubled_or_no_accuracy_fails_the_run(
    tmp_path: Path, change: Callable[[Any], object], said: str
) -> None:
    folder = make_run(tmp_path)
    edit(folder / "nodes" / "individual-1" / "metrics.json", change)
    with pytest.raises(RunFailedError, match=said):
        collect(folder)
    assert not (folder / "results.json").exists()


def test_a_node_that_left_nothing_fails_the_run(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    (folder / "nodes" / "individual-2" / "metrics.json").unlink()
    with pytest.raises(RunFailedError, match="individual-2"):
        collect(folder)


def test_a_gradient_trend_that_does_not_fit_its_layers_fails_the_run(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    edit(folder / "nodes" / "collective" / "metrics.json", lambda d: d["gradient_trend"]["rho"].pop())
    with pytest.raises(RunFailedError, match="13 layers"):
        collect(folder)


def test_what_the_collective_adds_is_kept(made: tuple[Path, Results]) -> None:
    document = json.loads((made[0] / "results.json").read_text(encoding="utf-8"))
    assert document["collective"]["fisher"] == collective_metrics()["fisher"]
    assert document["seconds"]["collective"]["train"] == 100.0
    assert document["seconds"]["individual-1"] == {"adapt": 12.5}


def test_the_stand_in_is_said(tmp_path: Path) -> None:
    results = collect(make_run(tmp_path, source="stand-in"))
    assert results.dataset.notice is not None
    assert "NOT CIFAR-100" in results.dataset.notice


@pytest.mark.parametrize(
    ("lines", "whole"), [(("confined", "confined"), "confined"), (("confined", "un"), "unconfined")]
)
def test_a_run_is_confined_only_if_every_node_says_so(tmp_path: Path, lines: tuple[str, str], whole: str) -> None:
    folder = make_run(tmp_path, individuals=1)
    for party, line in zip(("collective", "individual-1"), lines, strict=True):
        edit(folder / "nodes" / party / "metrics.json", lambda d, line=line: d.update(confinement=line, device="cpu"))
    results = collect(folder)
    assert results.confinement == whole
    assert results.nodes["collective"].device == "cpu"


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no folder of a run"):
        collect(tmp_path)
    with pytest.raises(InputError, match=r"results\.json"):
        load(tmp_path)
    with pytest.raises(InputError, match="no such folder"):
        load(tmp_path / "nowhere")
