"""Collecting what the nodes left: complete, by task number, equal when repeated, and refused where a node lies."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from protocol.errors import InputError, RunFailedError
from sims.data.division_choice import OWN, DivisionChoice
from sims.results.class_interval import over_new_classes
from sims.results.collection import collect
from sims.results.models import Results, load
from tests.protocol.hostile_files import ANY, plant, within
from tests.sims.made_run import LEVELS, METHODS, chained, collective_metrics, edit, make_run, record


def test_tasks_are_merged_by_their_run_wide_number(made: tuple[Path, Results]) -> None:
    folder, results = made
    expected: dict[int, float] = {}
    for number in (1, 2):
        metrics = json.loads(
            (folder / "nodes" / f"individual-{number}" / "state" / "metrics.json").read_text(encoding="utf-8")
        )
        expected |= {int(task): value for task, value in metrics["methods"]["scratch"]["10"].items()}
    found = results.methods["scratch"][10]
    assert found.per_task == tuple(expected[task] for task in range(12))
    assert found.tasks == 12
    assert found.mean == pytest.approx(np.mean(list(expected.values())))
    assert list(results.methods) == list(METHODS)
    assert len(results.task_classes) == 12
    for number in (1, 2):
        told = json.loads((folder / "nodes" / f"individual-{number}" / "state" / "metrics.json").read_text("utf-8"))
        for task, classes in told["task_classes"].items():
            assert results.task_classes[int(task)] == tuple(classes)
    values = np.array(found.per_task)
    assert found.ci95_classes == over_new_classes(values.tolist(), results.task_classes)
    at_20 = results.methods["scratch"][20]  # its tasks are the first of all
    assert at_20.ci95_classes == over_new_classes(at_20.per_task, results.task_classes[:6])


def test_the_open_world_is_kept_without_its_times(made: tuple[Path, Results]) -> None:
    folder, results = made
    told = json.loads((folder / "nodes" / "collective" / "state" / "metrics.json").read_text(encoding="utf-8"))[
        "open_world"
    ]
    for cycle in [*told["cycles"], *(cycle for one in told["comparisons"] for cycle in one["cycles"])]:
        assert cycle.pop("seconds") == 30.0
    open_world = results.collective.open_world
    assert open_world.model_dump(mode="json") == told
    assert open_world.measured
    kinds = [(kind.score, kind.strategy) for kind in open_world.every]
    assert kinds == [("max-logit", "replay"), ("energy", "replay"), ("max-logit", "ewc"), ("max-logit", "none")]
    assert open_world.every[0].cycles == open_world.cycles
    times = results.seconds["collective"]
    assert [times[f"cycle {n}"] for n in (0, 1)] == [times[f"cycle {n}, max-logit, none"] for n in (0, 1)] == [30.0] * 2


def test_it_does_not_matter_how_the_tasks_were_dealt(tmp_path: Path) -> None:
    one = collect(make_run(tmp_path / "one", individuals=1))
    three = collect(make_run(tmp_path / "three", individuals=3))
    assert one.methods == three.methods
    assert one.paired == three.paired


def test_the_same_run_twice_is_equal_apart_from_times_and_digests(tmp_path: Path) -> None:
    folders = [make_run(tmp_path / name, run_id=digit * 32) for name, digit in (("a", "a"), ("b", "b"))]
    metrics = folders[1] / "nodes" / "collective" / "state" / "metrics.json"
    edit(metrics, lambda d: (d["seconds"].update(train=999.0), [task.update(seconds=9.9) for task in d["tasks"]]))
    edit(metrics, lambda d: [cycle.update(seconds=9.9) for cycle in d["open_world"]["cycles"]])
    edit(metrics, lambda d: [cycle.update(seconds=9.9) for cycle in d["open_world"]["comparisons"][1]["cycles"]])
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
    assert curve.accuracy == pytest.approx([(2 * (level + 1) + (level + 2)) / 3 for level in LEVELS])
    assert curve.tasks == 3
    edit(
        folder / "nodes" / "individual-1" / "state" / "metrics.json",
        lambda d: d["curves"]["scratch"]["10"].update(tasks=1),
    )  # it followed one of its two only
    curve = collect(folder).curves["scratch"][10]
    assert curve.accuracy == pytest.approx([level + 1.5 for level in LEVELS])
    assert curve.tasks == 2


def test_every_crossing_stands_once_whoever_recorded_it(tmp_path: Path) -> None:
    folder = make_run(tmp_path, individuals=2)
    lost = record("out", "collective", "individual-1", "abort", 5000)
    path = folder / "nodes" / "collective" / "state" / "crossings.jsonl"
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    path.write_bytes(chained([*lines, lost]) + b'{"half a line')
    found = collect(folder).crossings
    kinds = [crossing.kind for crossing in found]
    assert kinds == 2 * ["request", "release", "grant", "blob", "receipt"] + ["abort"]
    assert [crossing.recorded_by for crossing in found] == 10 * ["both"] + ["sender"]


def test_a_message_that_changed_on_its_way_shows_as_two_one_sided_records(tmp_path: Path) -> None:
    folder = make_run(tmp_path, individuals=1)
    path = folder / "nodes" / "individual-1" / "state" / "crossings.jsonl"
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for line in lines:
        if line["kind"] == "blob":
            line["digest"] = "f" * 64
    path.write_bytes(chained(lines))
    blobs = [crossing.recorded_by for crossing in collect(folder).crossings if crossing.kind == "blob"]
    assert sorted(blobs) == ["receiver", "sender"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: d["methods"]["scratch"]["10"].pop("0"), "scratch, 10 shots"),
        (lambda d: d["methods"]["floor"].pop("20"), "floor, 20 shots"),
        (lambda d: d["methods"]["paper"]["10"].update({"1": 50.0}), "task 1"),
        (lambda d: d["methods"]["paper"]["10"].update({"99": 50.0}), "99"),
        (lambda d: d["methods"]["paper"]["10"].update({"0": 100.5}), r"methods\.paper\.10\.0"),
        (lambda d: d["methods"]["paper"]["10"].update({"0": float("nan")}), "NaN"),
        (lambda d: d.pop("methods"), "methods"),
        (lambda d: d["methods"].update({f"m{n}": d["methods"]["paper"] for n in range(200)}), "at most 100"),
        (lambda d: d["task_classes"].pop("0"), r"classes of the tasks 0 to 11 .* \[0\]"),
        (lambda d: d["task_classes"].update({"99": ["0", "1"]}), r"classes of the tasks .* \[99\]"),
        (lambda d: d["task_classes"].update({"1": ["0", "1"]}), "two individuals report task 1"),
        (lambda d: d["task_classes"].update({"0": ["\n", "1"]}), r"task_classes\.0\.0"),
    ],
)
def test_a_result_that_is_missing_doubled_or_no_accuracy_fails_the_run(
    tmp_path: Path, change: Callable[[Any], object], said: str
) -> None:
    folder = make_run(tmp_path)
    edit(folder / "nodes" / "individual-1" / "state" / "metrics.json", change)
    with pytest.raises(RunFailedError, match=said):
        collect(folder)
    assert not (folder / "results.json").exists()


def test_a_node_that_left_nothing_fails_the_run(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    (folder / "nodes" / "individual-2" / "state" / "metrics.json").unlink()
    with pytest.raises(RunFailedError, match="individual-2"):
        collect(folder)


def test_a_gradient_trend_that_does_not_fit_its_layers_fails_the_run(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    edit(folder / "nodes" / "collective" / "state" / "metrics.json", lambda d: d["gradient_trend"]["rho"].pop())
    with pytest.raises(RunFailedError, match="13 layers"):
        collect(folder)


def test_the_criterion_must_speak_of_every_layer(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    edit(folder / "nodes" / "collective" / "state" / "metrics.json", lambda d: d["criterion"]["settled"].pop())
    with pytest.raises(RunFailedError, match="13 layers"):
        collect(folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.update(images=["pixels"]),
        lambda d: d["tasks"][0].update(accuracy=101.0),
        lambda d: d["open_world"]["cycles"][0].update(base_accuracy_after=float("nan")),
        lambda d: d["open_world"]["cycles"][0]["before"]["msp"].update(auroc=-1.0),
        lambda d: d["open_world"]["comparisons"][0].update(strategy="hope"),
        lambda d: d["learngenes"]["condensed"].pop("fisher"),
    ],
)
def test_what_the_collective_may_not_say_fails_the_run(tmp_path: Path, change: Callable[[Any], object]) -> None:
    folder = make_run(tmp_path)
    edit(folder / "nodes" / "collective" / "state" / "metrics.json", change)
    with pytest.raises(RunFailedError, match=r"metrics\.json"):
        collect(folder)


def test_what_the_collective_says_of_its_learngenes_is_kept(made: tuple[Path, Results]) -> None:
    document = json.loads((made[0] / "results.json").read_text(encoding="utf-8"))
    told = collective_metrics()["learngenes"]
    assert isinstance(told, dict)
    del told["condensed"]["release"]
    assert document["collective"]["learngenes"] == told
    assert document["seconds"]["collective"]["train"] == 100.0
    assert document["seconds"]["individual-1"] == {"adapt": 12.5}


def test_the_stand_in_is_said(tmp_path: Path) -> None:
    results = collect(make_run(tmp_path, source="stand-in"))
    assert results.dataset.notice is not None
    assert "NOT CIFAR-100" in results.dataset.notice


def test_the_tuning_division_is_said_and_stands_beside_no_figure_of_the_paper(tmp_path: Path) -> None:
    results = collect(make_run(tmp_path, division="tuning"))
    assert results.dataset.division == DivisionChoice(name="tuning")
    assert results.dataset.name == "cifar100 tuning division 0"
    assert results.dataset.notice is not None
    assert "TUNING DIVISION (seed 0)" in results.dataset.notice
    assert "cannot be compared" in results.dataset.notice
    assert results.paper is None
    own = collect(make_run(tmp_path))
    assert (own.dataset.division, own.dataset.notice) == (OWN, None)
    assert own.paper is not None


@pytest.mark.parametrize(
    ("lines", "whole"), [(("confined", "confined"), "confined"), (("confined", "un"), "unconfined")]
)
def test_a_run_is_confined_only_if_every_node_says_so(tmp_path: Path, lines: tuple[str, str], whole: str) -> None:
    folder = make_run(tmp_path, individuals=1)
    for party, line in zip(("collective", "individual-1"), lines, strict=True):
        edit(
            folder / "nodes" / party / "state" / "metrics.json",
            lambda d, line=line: d.update(confinement=line, device="cpu"),
        )
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


@pytest.mark.parametrize("kind", ANY)
@pytest.mark.parametrize("party", ["collective", "individual-1"])
@pytest.mark.parametrize("name", ["metrics.json", "crossings.jsonl"])
def test_what_a_taken_over_node_left_fails_the_run_in_one_line(
    tmp_path: Path, name: str, party: str, kind: str
) -> None:
    """The report is made by the run's owner, who is not confined."""
    folder, victim = make_run(tmp_path), tmp_path / "victim"
    victim.write_bytes(b"another party's")
    plant(kind, folder / "nodes" / party / "state" / name, victim)
    with within(30), pytest.raises(RunFailedError) as refused:
        collect(folder)
    assert "\n" not in str(refused.value)
    assert victim.read_bytes() == b"another party's"


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.update(seconds="a while"),
        lambda d: d.update(seconds=[1, 2]),
        lambda d: d.update(seconds={"train": "long"}),
        lambda d: d.update(learngenes=["condensed"]),
        lambda d: d.update(learngenes={"condensed": 1}),
        lambda d: d.update(tasks=7),
        lambda d: d.update(open_world=[]),
    ],
)
def test_figures_of_the_wrong_type_fail_the_run_in_one_line(tmp_path: Path, change: Callable[[Any], object]) -> None:
    folder = make_run(tmp_path)
    edit(folder / "nodes" / "collective" / "state" / "metrics.json", change)
    with pytest.raises(RunFailedError, match=r"metrics\.json"):
        collect(folder)


def test_many_crossings_are_matched_in_time(tmp_path: Path) -> None:
    """A node may write as long a log as it likes: what grows with the square of it would never end."""
    folder = make_run(tmp_path, individuals=1)
    lost = [record("out", "collective", "individual-1", "abort", 5000, number) for number in range(6000)]
    (folder / "nodes" / "collective" / "state" / "crossings.jsonl").write_bytes(chained(lost))
    came = [{**line, "direction": "in"} for line in reversed(lost)]
    (folder / "nodes" / "individual-1" / "state" / "crossings.jsonl").write_bytes(chained(came))
    with within(60):
        found = collect(folder).crossings
    assert [crossing.recorded_by for crossing in found] == ["both"] * 6000
