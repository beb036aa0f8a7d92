"""Tests of the collective's life: tasks, open-world cycles, checkpoints, and going on after a kill."""

import json
import os
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from collective_node import checkpoint
from collective_node.collective import Collective
from collective_node.collective_images import CollectiveImages, Truth, read, read_truth
from collective_node.evolution import Evolution
from collective_node.open_world.annotators import LabelQuery, Oracle
from collective_node.records import Comparison, Named
from collective_node.settings import CollectiveSettings
from protocol.errors import InputError, RunFailedError
from protocol.node.events import Events

CLASSES = 8
OPEN = 4
SETTINGS = CollectiveSettings(
    width=0.0625,
    tasks=4,
    classes_per_task=2,
    batch_size=8,
    epochs=1,
    cycles=0,
    condense_epochs=0.5,
    fisher_samples=70,
    ewc_samples=20,
    dropout=0.2,
    neighbours=5,
)
#: Two classes a cycle, and nothing is known at the threshold: the whole part of the stream goes to the annotator.
CYCLES = SETTINGS.model_copy(
    update={"cycles": 2, "classes_per_cycle": 2, "threshold": -1e9, "open_epochs": 1.0, "examples": 0}
)


def drawn(classes: range, per_class: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Images of classes that differ in their colours."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(classes)), per_class)
    base = np.random.default_rng(99).integers(0, 200, (CLASSES + OPEN, 1, 1, 3))[list(classes)]
    return (base[labels] + rng.integers(0, 56, (len(labels), 32, 32, 3))).astype(np.uint8), labels


def names(classes: range) -> tuple[str, ...]:
    return tuple(f"class {c}" for c in classes)


KNOWN, UNKNOWN = range(CLASSES), range(CLASSES, CLASSES + OPEN)


def images() -> CollectiveImages:
    stream = np.concatenate([drawn(KNOWN, 3, 5)[0], drawn(UNKNOWN, 9, 6)[0]])
    order = np.random.default_rng(7).permutation(len(stream))
    return CollectiveImages(names(KNOWN), *drawn(KNOWN, 12, 0), *drawn(KNOWN, 4, 1), stream[order])


def truth() -> Truth:
    labels = np.concatenate([drawn(KNOWN, 3, 5)[1], CLASSES + drawn(UNKNOWN, 9, 6)[1]])
    order = np.random.default_rng(7).permutation(len(labels))
    heldout, held_labels = drawn(UNKNOWN, 3, 8)
    return Truth(
        tuple(f"class {label}" for label in labels[order]), heldout, tuple(f"class {CLASSES + c}" for c in held_labels)
    )


def evolution(folder: Path, settings: CollectiveSettings = SETTINGS, seed: int = 0) -> Evolution:
    events = Events(folder.parent / f"{folder.name}.jsonl")
    annotator = Oracle(truth(), settings.examples)
    return Evolution(images(), settings, seed, torch.device("cpu"), folder, events, annotator)


def state(collective: Collective) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in collective.network.state_dict().items()}


class KilledError(Exception):
    """Stands for kill -9: nothing after it is executed."""


EVERYTHING = CYCLES.model_copy(
    update={
        "expansion": ("widen 2 +64", "deepen 5 identity", "deepen 0 identity", "widen 12 +128"),
        "growth_noise": 0.1,
        "strategy": "ewc",
        "compare_scores": ("energy",),
        "compare_strategies": ("none",),
        "keep_known": 0.1,
    }
)


@pytest.mark.parametrize("stores", range(1, 8))
def test_a_run_that_was_killed_anywhere_goes_on_and_ends_with_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stores: int, whole: tuple[Collective, list[Comparison]]
) -> None:
    """Four tasks, two comparisons and two cycles each leave a checkpoint: the kill comes after each of them."""
    store, stored = checkpoint.store, []

    def store_and_die(*arguments: object) -> None:
        store(*arguments)  # type: ignore[arg-type]
        stored.append(arguments)
        if len(stored) == stores:
            raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "store", store_and_die)
        with pytest.raises(KilledError):
            evolution(tmp_path / "killed", EVERYTHING).run()
    torch.manual_seed(stores)  # whatever else draws in the process that goes on does not matter
    resumed, comparisons = evolution(tmp_path / "killed", EVERYTHING).run()
    expected = state(whole[0])
    assert all(torch.equal(value, expected[name]) for name, value in state(resumed).items())
    assert resumed.known == whole[0].known
    assert resumed.trend.rho == whole[0].trend.rho
    assert without_times(resumed, comparisons) == without_times(*whole)
    assert {name: value.tolist() for name, value in resumed.random.state().items()} == {
        name: value.tolist() for name, value in whole[0].random.state().items()
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Collective, list[Comparison]]:
    """The run that nobody killed."""
    return evolution(tmp_path_factory.mktemp("whole") / "state", EVERYTHING).run()


def without_times(collective: Collective, comparisons: list[Comparison]) -> list[object]:
    cycles = [*collective.cycles, *(cycle for comparison in comparisons for cycle in comparison.cycles)]
    return [record.model_dump(exclude={"seconds"}) for record in (*collective.tasks, *cycles)]


def test_every_source_of_randomness_is_in_the_registry(tmp_path: Path) -> None:
    """Where the global generator stands does not matter: dropout, the one thing that reads it, is seeded from ours."""
    torch.manual_seed(1)
    first = state(evolution(tmp_path / "a").run()[0])
    torch.manual_seed(2)
    second = state(evolution(tmp_path / "b").run()[0])
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    other = state(evolution(tmp_path / "c", seed=1).run()[0])
    assert not torch.equal(first["blocks.0.conv.weight"], other["blocks.0.conv.weight"])


def test_a_training_that_diverges_says_so_and_leaves_the_last_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RunFailedError, match="lower"):
        evolution(tmp_path / "other", SETTINGS.model_copy(update={"learning_rate": 1e30})).run()
    assert list(tmp_path.glob("other/task-*")) == []
    with monkeypatch.context() as patch:
        learn = Evolution._learn

        def third_task_fails(self: Evolution, collective: Collective, number: int) -> None:
            if number == 2:
                with torch.no_grad():
                    collective.network.layers[0].conv.weight.fill_(torch.nan)
            learn(self, collective, number)

        patch.setattr(Evolution, "_learn", third_task_fails)
        with pytest.raises(RunFailedError, match=r"task 3 of 4.*not finite; lower"):
            evolution(tmp_path / "state").run()
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["state-0002"]
    assert len(evolution(tmp_path / "state").run()[0].tasks) == 4


def test_only_the_newest_checkpoint_is_kept(tmp_path: Path) -> None:
    evolution(tmp_path / "kept").run()
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["state-0004"]


def test_a_checkpoint_of_another_setup_is_refused_and_stays(tmp_path: Path) -> None:
    evolution(tmp_path / "state").run()
    other = SETTINGS.model_copy(update={"epochs": 2})
    with pytest.raises(InputError, match="other settings"):
        evolution(tmp_path / "state", other).run()
    assert (tmp_path / "state" / "state-0004").is_dir()


def test_a_checkpoint_of_another_thread_count_or_version_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evolution(tmp_path / "state").run()
    with monkeypatch.context() as patch:
        patch.setattr(torch, "get_num_threads", lambda: 77)
        with pytest.raises(InputError, match="number of threads"):
            evolution(tmp_path / "state").run()
    with monkeypatch.context() as patch:
        patch.setattr(torch, "__version__", "1.0")
        with pytest.raises(InputError, match=r"this is 1\.0"):
            evolution(tmp_path / "state").run()


def test_a_broken_checkpoint_is_named(tmp_path: Path) -> None:
    evolution(tmp_path / "state").run()
    (tmp_path / "state" / "state-0004" / "state.safetensors").write_bytes(b"cut")
    with pytest.raises(InputError, match="state-0004 cannot be read"):
        evolution(tmp_path / "state").run()


def progressed(change: Callable[[Any], object]) -> Callable[[Path], None]:
    """Change what a checkpoint tells of itself."""

    def write(folder: Path) -> None:
        path = folder / "progress.json"
        document = json.loads(path.read_bytes())
        change(document)
        path.write_text(json.dumps(document))

    return write


def tensed(change: Callable[[dict[str, Tensor]], object]) -> Callable[[Path], None]:
    """Change the tensors of a checkpoint."""

    def write(folder: Path) -> None:
        path = folder / "state.safetensors"
        tensors = load_tensors(path.read_bytes())
        change(tensors)
        path.write_bytes(save_tensors(tensors))

    return write


@pytest.fixture(scope="module")
def half_way(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoints of a run that was killed after its first cycle."""
    folder, store, stored = tmp_path_factory.mktemp("half") / "state", checkpoint.store, []

    def store_and_die(*arguments: object) -> None:
        store(*arguments)  # type: ignore[arg-type]
        stored.append(arguments)
        if len(stored) == 5:
            raise KilledError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "store", store_and_die)
        with pytest.raises(KilledError):
            evolution(folder, CYCLES).run()
    return folder


@pytest.mark.parametrize(
    "plant",
    [
        progressed(lambda d: d["named"][0]["rows"].__setitem__(0, 10**6)),
        progressed(lambda d: d["named"][0]["rows"].__setitem__(0, -1)),
        progressed(lambda d: d["named"][0].update(rows=[3] * 9999, names=["moth"] * 9999)),
        progressed(lambda d: d["named"][0]["names"].pop()),
        progressed(lambda d: d["named"][0]["names"].__setitem__(0, "n" * 5000)),
        progressed(lambda d: d.update(named=[])),
        progressed(lambda d: d.update(cycles=d["cycles"] * 9, named=d["named"] * 9)),
        progressed(lambda d: d["tasks"].append(d["tasks"][0])),
        progressed(lambda d: (d["tasks"].pop(), d["rho"].pop())),
        progressed(lambda d: d.update(known=d["known"][::-1])),
        progressed(lambda d: d["rho"].pop()),
        progressed(lambda d: d["rho"][0].append(0.5)),
        progressed(lambda d: d.update(more=1)),
        progressed(lambda d: d.update(sigma=float("inf"))),
        lambda folder: (folder / "progress.json").write_bytes(b"[" * 99_999),
        lambda folder: (folder / "progress.json").unlink(),
        tensed(lambda t: t.update({"network/more": torch.zeros(9)})),
        tensed(lambda t: t.update({"more": torch.zeros(9)})),
        tensed(lambda t: t.pop("random/batches")),
        tensed(lambda t: t.update({"random/batches": torch.full((5056,), 255, dtype=torch.uint8)})),
        tensed(lambda t: t.update({"random/batches": torch.zeros(9, dtype=torch.uint8)})),
        tensed(lambda t: t.pop(next(name for name in t if name.startswith("network/")))),
        tensed(lambda t: t.update({n: v.double() for n, v in t.items() if n.startswith("network/")})),
        tensed(lambda t: t.update({n: v[..., :1].contiguous() for n, v in t.items() if n.startswith("momentum/")})),
        lambda folder: os.truncate(folder / "state.safetensors", 1 << 40),
        lambda folder: (folder / "state.safetensors").write_bytes(b"\xff" * 8 + b"{" * 999),
        lambda folder: (folder / "state.safetensors").write_bytes(pickle.dumps(torch.zeros)),
    ],
)
def test_a_checkpoint_that_no_run_made_is_one_line(
    tmp_path: Path, half_way: Path, plant: Callable[[Path], object]
) -> None:
    """Whatever a process that was taken over left: nothing is unpickled, and no more is taken than the plan has."""
    shutil.copytree(half_way, tmp_path / "state")
    # The control: what was left is gone on from.
    assert len(evolution(tmp_path / "state", CYCLES)._resume()[0].cycles) == 1
    plant(tmp_path / "state" / "state-0005")
    with pytest.raises(InputError) as refused:
        evolution(tmp_path / "state", CYCLES)._resume()
    assert "\n" not in str(refused.value)


def test_the_network_grows_to_the_final_widths_and_one_classifier_to_all_classes(tmp_path: Path) -> None:
    collective, _ = evolution(tmp_path / "state").run()
    assert collective.network.widths == (4, 4, 8, 8, 16, 16, 16, 32, 32, 32, 32, 32, 32)
    assert sorted(collective.known) == list(range(CLASSES))
    assert collective.network.outputs == CLASSES
    assert [task.known for task in collective.tasks] == [2, 4, 6, 8]
    assert [len(row) for row in collective.trend.rho] == [13] * 4


def test_a_written_schedule_widens_and_deepens_and_a_late_layer_has_no_early_trend(
    whole: tuple[Collective, list[Comparison]],
) -> None:
    collective = whole[0]
    assert len(collective.network.layers) == 15
    assert collective.tasks[0].widths == [4, 4, 4, 4, 8, 8, 8, *[16] * 6]
    # Before task 3: the first layer of its own, then widened; the two inserted ones stand at 1 and 7 in the end.
    assert collective.network.widths[:4] == (4, 4, 4, 8)
    for number, row in enumerate(collective.trend.rho):
        missing = [index for index, share in enumerate(row) if share is None]
        assert len(missing) == 15 - len(collective.tasks[number].widths)
        assert set(missing) <= {1, 7}


def test_a_kill_in_the_middle_of_storing_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: tuple[Collective, list[Comparison]]
) -> None:
    """The fifth state is the first comparison: everything before it is on disk already."""
    rename, renamed = os.rename, []

    def rename_or_die(source: str, target: Path) -> None:
        renamed.append(target)
        if len(renamed) == 5:
            raise KilledError
        rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", rename_or_die)
        patch.setattr(shutil, "rmtree", lambda *_, **__: None)  # a kill leaves no time to clean up
        with pytest.raises(KilledError):
            evolution(tmp_path / "state", EVERYTHING).run()
    resumed, comparisons = evolution(tmp_path / "state", EVERYTHING).run()
    assert without_times(resumed, comparisons) == without_times(*whole)
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["state-0008"]


@pytest.mark.parametrize(
    ("step", "error"),
    [
        ("widen 13 +64", "there is no convolution 13: the network has 13"),
        ("deepen 40 identity", "there is no convolution 40"),
        ("deepen 4 duplicate", "deepen it by identity"),
        ("widen 0 +128", "can be widened by 1 to 4, not 8"),
    ],
)
def test_an_expansion_that_does_not_fit_names_the_layer_before_any_training(
    tmp_path: Path, step: str, error: str
) -> None:
    settings = SETTINGS.model_copy(update={"expansion": ("widen 2 +64", step), "tasks": 3})
    with pytest.raises(InputError, match=f"expansion: .*{error}"):
        evolution(tmp_path / "state", settings)


def test_more_layers_than_the_network_has_is_refused_before_any_training(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the network has 13"):
        evolution(tmp_path / "state", SETTINGS.model_copy(update={"layers": 14}))


def test_replay_rehearses_every_seen_class_and_the_others_only_the_tasks_own(tmp_path: Path) -> None:
    replaying = evolution(tmp_path / "a")
    for strategy in ("none", "ewc"):
        forgetting = evolution(tmp_path / "b", SETTINGS.model_copy(update={"strategy": strategy}))
        for number in range(4):
            seen = [c for task in replaying.sequence[: number + 1] for c in task]
            assert sorted(replaying._rehearsed(number)) == sorted(set(seen))
            assert sorted(forgetting._rehearsed(number)) == sorted(forgetting.sequence[number])


def test_consolidation_holds_the_weights_that_mattered(tmp_path: Path) -> None:
    """Of two trainings on the same batches, the one with the penalty stays nearer, measured by what it holds."""
    moved = {}
    for strategy in ("none", "ewc"):
        made = evolution(tmp_path / strategy, SETTINGS.model_copy(update={"tasks": 2, "ewc": 1e6, "expansion": ()}))
        collective, _ = made._resume()
        made._learn(collective, 0)
        made._consolidate(collective, made.sequence[0])
        held = collective.ewc
        assert held is not None
        made.settings = made.settings.model_copy(update={"strategy": strategy})
        made._learn(collective, 1)
        now = {name: value.detach() for name, value in collective.network.named_parameters()}
        moved[strategy] = sum(
            float((held.fisher[name] * (now[name][: len(anchor)] - anchor).square()).sum())
            for name, anchor in held.anchors.items()
        )
    assert moved["ewc"] < 0.8 * moved["none"]


def test_a_cycle_adds_what_the_person_named_and_known_classes_become_n_plus_m(tmp_path: Path) -> None:
    made = evolution(tmp_path / "state", CYCLES)
    collective, comparisons = made.run()
    assert comparisons == []
    assert [cycle.known for cycle in collective.cycles] == [CLASSES + 2, CLASSES + 4]
    assert collective.network.outputs == CLASSES + 4
    assert sorted(collective.classes[CLASSES:]) == sorted(names(UNKNOWN))
    assert {name for cycle in collective.cycles for name in cycle.classes} == set(names(UNKNOWN))
    stream = truth().stream_names
    for cycle, named in zip(collective.cycles, collective.named, strict=True):
        assert [stream[row] for row in named.rows] == named.names
        assert cycle.unknown_set == cycle.stream  # the threshold lets everything through
        assert cycle.named + cycle.dismissed == cycle.unknown_set
    rows = [row for named in collective.named for row in named.rows]
    assert len(rows) == len(set(rows))
    added = collective.images.pixels[len(made.train) :].numpy()
    np.testing.assert_array_equal(added, images().stream_images[rows])  # type: ignore[index]
    assert [collective.classes[label] for label in collective.images.labels[len(made.train) :]] == [
        name for named in collective.named for name in named.names
    ]


def test_what_a_cycle_measures(tmp_path: Path) -> None:
    collective, _ = evolution(tmp_path / "state", CYCLES).run()
    first, last = collective.cycles
    assert first.open_accuracy_before == 0.0  # there was no output for them
    assert first.before is not None
    assert set(first.before) == {"msp", "max-logit", "energy", "relative-mahalanobis", "nearest-neighbour"}
    part = np.array_split(np.arange(len(truth().stream_names)), 3)[0]
    unknown = sum(truth().stream_names[row] in names(UNKNOWN) for row in part)
    for metrics in first.before.values():
        assert metrics is not None
        assert (metrics.known, metrics.unknown) == (len(part) - unknown, unknown)
    assert first.truly_unknown == unknown
    # What follows the first cycle is measured on the second part, and so is what precedes the second cycle.
    assert first.after == last.before
    # All classes of the stream are known by now: there is nothing to tell apart.
    assert last.after is not None
    assert set(last.after.values()) == {None}


def test_the_threshold_is_calibrated_on_held_out_known_images(tmp_path: Path) -> None:
    settings = CYCLES.model_copy(update={"threshold": None, "keep_known": 0.5})
    made = evolution(tmp_path / "state", settings)
    collective, _ = made._resume()
    for number in range(4):
        made._learn(collective, number)
    assert made.stream is not None
    recognition = made.stream.recognise(collective, 0, "max-logit")
    network = collective.network.eval()
    with torch.no_grad():
        largest = network(made.heldout.batch(torch.arange(len(made.heldout)))[0]).amax(1)
    kept = (-largest.double() <= recognition.threshold + 1e-6).double().mean()
    assert 0.5 <= kept <= 0.5 + 2 / len(largest)


def test_a_comparison_changes_nothing_of_the_run_itself(tmp_path: Path) -> None:
    plain, _ = evolution(tmp_path / "plain", CYCLES).run()
    compare = {"compare_scores": ("msp", "max-logit"), "compare_strategies": ("ewc",), "keep_known": 0.1}
    settings = CYCLES.model_copy(update=compare)
    compared, comparisons = evolution(tmp_path / "compared", settings).run()
    assert [(one.score, one.strategy) for one in comparisons] == [("msp", "replay"), ("max-logit", "ewc")]
    assert all(len(one.cycles) == 2 for one in comparisons)
    expected = state(plain)
    assert all(torch.equal(value, expected[name]) for name, value in state(compared).items())


def test_a_comparison_that_finds_nothing_unknown_says_so_and_the_run_goes_on(tmp_path: Path) -> None:
    settings = CYCLES.model_copy(update={"compare_scores": ("energy",), "keep_known": 0.999})
    collective, comparisons = evolution(tmp_path / "state", settings).run()
    assert len(collective.cycles) == 2
    assert comparisons[0].stopped is not None
    assert "unknown" in comparisons[0].stopped
    assert len(comparisons[0].cycles) < 2


def test_a_stream_with_nothing_unknown_is_an_error_and_the_last_checkpoint_stays(tmp_path: Path) -> None:
    settings = CYCLES.model_copy(update={"threshold": 1e9})
    with pytest.raises(InputError, match=r"none of \d+ images of the stream looks unknown.*lower keep_known"):
        evolution(tmp_path / "state", settings).run()
    assert (tmp_path / "state" / "state-0004").is_dir()


def test_a_stream_without_unknown_classes_is_an_error_and_the_last_checkpoint_stays(tmp_path: Path) -> None:
    known = replace(truth(), stream_names=("class 0",) * len(truth().stream_names))
    events = Events(tmp_path / "events.jsonl")
    made = Evolution(images(), CYCLES, 0, torch.device("cpu"), tmp_path / "state", events, Oracle(known, 0))
    with pytest.raises(InputError, match="no class with two images is new"):
        made.run()
    assert (tmp_path / "state" / "state-0004").is_dir()


def test_a_person_may_find_nothing_of_interest(tmp_path: Path) -> None:
    class Indifferent:
        truth = None

        def name(self, query: LabelQuery) -> Named:
            return Named(rows=[], names=[])

    events = Events(tmp_path / "events.jsonl")
    made = Evolution(images(), CYCLES, 0, torch.device("cpu"), tmp_path / "state", events, Indifferent())
    collective, _ = made.run()
    assert [(cycle.classes, cycle.steps, cycle.known) for cycle in collective.cycles] == [([], 0, CLASSES)] * 2
    assert {cycle.before for cycle in collective.cycles} == {None}
    assert (
        len(
            Evolution(images(), CYCLES, 0, torch.device("cpu"), tmp_path / "state", events, Indifferent())
            .run()[0]
            .cycles
        )
        == 2
    )


def test_a_base_class_that_no_task_teaches_is_in_no_stream_and_can_be_named(tmp_path: Path) -> None:
    """As the paper's data division has it: it is neither known nor of the open world."""
    made = evolution(tmp_path / "state", CYCLES.model_copy(update={"tasks": 3}))
    assert made.stream is not None
    taught = {number for task in made.sequence for number in task}
    untaught = {f"class {number}" for number in range(CLASSES) if number not in taught}
    assert len(untaught) == 2
    assert untaught <= set(truth().stream_names)
    met = {truth().stream_names[row] for part in made.stream.parts for row in part}
    assert met == set(truth().stream_names) - untaught
    # Without the truth an annotator may come upon one, and it is new then.
    collective, _ = made._resume()
    collective.learn_classes(sorted(taught))
    name = min(untaught)
    assert collective.add_named(Named(rows=[0, 1], names=[name.upper()] * 2), np.zeros((2, 32, 32, 3), np.uint8)) == [
        int(name.split()[1])
    ]


def test_what_was_named_earlier_is_measured_apart(tmp_path: Path) -> None:
    collective, _ = evolution(tmp_path / "state", CYCLES.model_copy(update={"strategy": "none"})).run()
    first, last = collective.cycles
    assert first.old_open_accuracy_before is None
    assert first.old_open_accuracy_after is None
    assert last.old_open_accuracy_before == first.open_accuracy_after
    # Half of the named classes are new in the last cycle: there was no output for them.
    assert last.open_accuracy_before == pytest.approx(last.old_open_accuracy_before / 2)


def test_settings_of_later_steps_may_be_changed_where_they_were_not_used_yet(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="lower keep_known"):
        evolution(tmp_path / "state", CYCLES.model_copy(update={"threshold": 1e9})).run()
    mended, _ = evolution(tmp_path / "state", CYCLES.model_copy(update={"layers": 2, "forms": ("paper",)})).run()
    assert len(mended.cycles) == 2
    evolution(tmp_path / "state", CYCLES.model_copy(update={"condense_epochs": 3.0})).run()
    with pytest.raises(InputError, match="other settings of its open-world cycles"):
        evolution(tmp_path / "state", CYCLES.model_copy(update={"examples": 3})).run()


def test_a_given_threshold_is_for_the_score_of_the_settings_alone(tmp_path: Path) -> None:
    made = evolution(tmp_path / "state", CYCLES.model_copy(update={"threshold": -12.5}))
    collective, _ = made._resume()
    for number in range(4):
        made._learn(collective, number)
    assert made.stream is not None
    assert made.stream.recognise(collective, 0, "max-logit").threshold == -12.5
    assert 0 <= made.stream.recognise(collective, 0, "msp").threshold <= 1


def test_a_score_that_is_only_measured_ends_no_run(tmp_path: Path) -> None:
    many = {"neighbours": 97}
    collective, _ = evolution(tmp_path / "state", CYCLES.model_copy(update=many)).run()
    before = collective.cycles[0].before
    assert before is not None
    assert before["nearest-neighbour"] is None
    assert before["energy"] is not None
    with pytest.raises(InputError, match="more than the 96 images"):
        evolution(tmp_path / "other", CYCLES.model_copy(update={**many, "score": "nearest-neighbour"}))


def test_weights_that_are_not_finite_are_never_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one step a task, the loss is taken before anything has gone wrong."""
    step = torch.optim.SGD.step

    def spoilt(self: torch.optim.SGD, *arguments: object) -> None:
        step(self)
        with torch.no_grad():
            self.param_groups[0]["params"][0].fill_(torch.inf)

    monkeypatch.setattr(torch.optim.SGD, "step", spoilt)
    with pytest.raises(RunFailedError, match="weights are not finite"):
        evolution(tmp_path / "state", SETTINGS.model_copy(update={"epochs": 0.01})).run()
    assert list(tmp_path.glob("state/state-*")) == []


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"annotator": "annotate", "compare_scores": ("energy",)}, "need annotator = oracle"),
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


def test_cycles_without_a_stream_or_a_person_are_refused(tmp_path: Path) -> None:
    events = Events(tmp_path / "events.jsonl")
    arguments = (CYCLES, 0, torch.device("cpu"), tmp_path / "state", events)
    with pytest.raises(InputError, match="need a stream"):
        Evolution(replace(images(), stream_images=None), *arguments, Oracle(truth(), 0))
    with pytest.raises(InputError, match="need an annotator"):
        Evolution(images(), *arguments)


def test_the_oracle_names_the_most_frequent_unknown_classes_and_gives_examples(tmp_path: Path) -> None:
    made = evolution(tmp_path / "state", CYCLES.model_copy(update={"cycles": 1}))
    collective, _ = made._resume()
    for number in range(4):
        made._learn(collective, number)
    assert made.stream is not None
    recognition = made.stream.recognise(collective, 0, "max-logit")
    whole = made.stream.query(collective, recognition, 0)
    # Two images of one class, three of another, one of a third, two known ones.
    stream = truth().stream_names
    wanted = {"class 8": 2, "class 9": 3, "class 10": 1, "class 0": 2}
    flagged = np.zeros(len(whole.rows), dtype=np.bool_)
    for name, count in wanted.items():
        flagged[[i for i, row in enumerate(whole.rows) if stream[row] == name][:count]] = True
    unknown = replace(
        whole.unknown,
        images=whole.unknown.images[flagged],
        scores=whole.unknown.scores[flagged],
        features=whole.unknown.features[flagged],
    )
    query = LabelQuery(0, whole.rows, flagged, unknown, at_most=5)
    named = Oracle(truth(), 0).name(query)
    assert {name: named.names.count(name) for name in set(named.names)} == {"class 8": 2, "class 9": 3}
    one = Oracle(truth(), 0).name(replace(query, at_most=1))
    assert set(one.names) == {"class 9"}
    more = Oracle(truth(), 1).name(query)
    assert len(more.rows) == len(named.rows) + 2
    assert [stream[row] for row in more.rows] == more.names


def test_named_images_of_one_class_in_two_cycles_are_one_class(tmp_path: Path) -> None:
    collective, _ = evolution(tmp_path / "state")._resume()
    picture = np.zeros((1, 32, 32, 3), np.uint8)
    assert collective.add_named(Named(rows=[0], names=["new"]), picture) == [CLASSES]
    collective.learn_classes([CLASSES])
    assert collective.add_named(Named(rows=[1], names=["New"]), picture) == []
    assert [len(rows) for rows in collective.rows_of([CLASSES])] == [2]


def test_more_classes_in_a_task_than_the_folder_has_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not fit 8 base classes"):
        evolution(tmp_path / "state", SETTINGS.model_copy(update={"classes_per_task": 9}))


def test_a_folder_that_is_no_world_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a collective's folder"):
        read(tmp_path)
    with pytest.raises(InputError, match="holds no labels of the stream"):
        read_truth(tmp_path)
