"""Tests of an evolution: its tasks, and that a run that is killed anywhere and resumed ends as a whole one."""

import os
import shutil
from pathlib import Path

import pytest
import torch

from collective_node import checkpoint
from collective_node.collective import Collective
from collective_node.records import Comparison
from collective_node.training import steps_for
from protocol.errors import RunFailedError
from tests.collective_node.made_evolution import (
    CLASSES,
    EVERYTHING,
    REGULARISED,
    SETTINGS,
    KilledError,
    evolution,
    killed_after,
    state,
    without_times,
)


@pytest.mark.parametrize("stores", range(1, 8))
def test_a_run_that_was_killed_anywhere_goes_on_and_ends_with_the_same_weights(
    tmp_path: Path, stores: int, whole: tuple[Collective, list[Comparison]]
) -> None:
    """Four tasks, two comparisons and two cycles each leave a checkpoint: the kill comes after each of them."""
    killed_after(stores, tmp_path / "killed", EVERYTHING)
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


@pytest.mark.parametrize("stores", [2, 4, 5])
def test_a_regularised_run_that_was_killed_ends_with_the_same_weights(
    tmp_path: Path, stores: int, regularised: tuple[Collective, list[Comparison]]
) -> None:
    """After two tasks, after the consolidation, and after the comparison: before the cycle."""
    killed_after(stores, tmp_path / "killed", REGULARISED)
    torch.manual_seed(stores)
    resumed, comparisons = evolution(tmp_path / "killed", REGULARISED).run()
    expected = state(regularised[0])
    assert {"turns.weight", "classifier.2.directions.weight", "classifier.2.scale"} <= expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in state(resumed).items())
    assert without_times(resumed, comparisons) == without_times(*regularised)
    assert all(torch.equal(value, regularised[0].momentum[name]) for name, value in resumed.momentum.items())


@pytest.fixture(scope="module")
def regularised(tmp_path_factory: pytest.TempPathFactory) -> tuple[Collective, list[Comparison]]:
    """The regularised run that nobody killed."""
    return evolution(tmp_path_factory.mktemp("regularised") / "state", REGULARISED).run()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Collective, list[Comparison]]:
    """The run that nobody killed."""
    return evolution(tmp_path_factory.mktemp("whole") / "state", EVERYTHING).run()


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
    assert list(tmp_path.glob("other/state-*")) == []
    store = checkpoint.store

    def store_and_spoil(
        folder: Path, setup: str, cycle_setup: str | None, collective: Collective, comparisons: list[Comparison]
    ) -> None:
        store(folder, setup, cycle_setup, collective, comparisons)
        if len(collective.tasks) == 2:
            with torch.no_grad():
                collective.network.layers[0].conv.weight.fill_(torch.nan)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "store", store_and_spoil)
        with pytest.raises(RunFailedError, match=r"task 3 of 4.*not finite; lower"):
            evolution(tmp_path / "state").run()
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["state-0002"]
    assert len(evolution(tmp_path / "state").run()[0].tasks) == 4


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


def test_consolidation_trains_on_every_known_class_after_the_last_task_alone(tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"consolidate_epochs": 2.0, "classifier": "linear"})
    plain = evolution(tmp_path / "plain", SETTINGS.model_copy(update={"classifier": "linear"})).run()[0]
    collective = evolution(tmp_path / "more", settings).run()[0]
    batches = steps_for(2.0, sum(len(rows) for rows in collective.rows_of(collective.known)), settings.batch_size)
    added = [more.steps - one.steps for more, one in zip(collective.tasks, plain.tasks, strict=True)]
    assert added == [0] * (len(added) - 1) + [batches]
    assert len(collective.network.classifier) == 2
    # Generations share the passes.
    twice = evolution(tmp_path / "twice", settings.model_copy(update={"consolidate_generations": 1})).run()[0]
    assert [task.steps for task in twice.tasks] == [task.steps for task in collective.tasks]
    assert not torch.equal(twice.network.layers[0].conv.weight, collective.network.layers[0].conv.weight)
    # Earlier classes are not trained on again where the strategy says so.
    bare = settings.model_copy(update={"strategy": "none", "tasks": 2})
    without = bare.model_copy(update={"consolidate_epochs": 0.0})
    runs = [evolution(tmp_path / name, one).run()[0] for name, one in (("bare", bare), ("without", without))]
    assert [task.steps for task in runs[0].tasks] == [task.steps for task in runs[1].tasks]
