"""Tests of the plan of an evolution: what is refused before any training, and what each task trains on."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest
import torch

from collective_node import evolution_plan
from collective_node.differential_privacy.release import setup_of
from collective_node.evolution_plan import EvolutionPlan, cycle_setup, grown_widths
from collective_node.network.expandable_network import ExpandableNetwork
from collective_node.settings import LATER, CollectiveSettings
from protocol.errors import InputError
from protocol.learngene.images import DeviceImages
from tests.collective_node.made_evolution import CYCLES, SETTINGS, images


def plan(settings: CollectiveSettings) -> EvolutionPlan:
    return EvolutionPlan.of(images(), settings, 0, torch.device("cpu"))


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever builds a network fails."""
    monkeypatch.setattr(evolution_plan, "ExpandableNetwork", None)
    monkeypatch.setattr(ExpandableNetwork, "__init__", None)


@pytest.mark.parametrize(
    "expansion",
    [
        (),
        ("paper",),
        ("widen 2 +64", "deepen 5 identity", "deepen 0 identity", "widen 12 +128"),
        ("deepen 12 duplicate", "widen 13 +64", "deepen 13 identity", "widen 13 +64"),
    ],
)
def test_the_widths_that_a_plan_is_checked_with_are_those_of_the_grown_network(expansion: tuple[str, ...]) -> None:
    settings = SETTINGS.model_copy(update={"expansion": expansion})
    made = plan(settings)
    train = DeviceImages.load(images().train_images, images().train_labels, made.normalisation, torch.device("cpu"))
    collective = made.untrained(train)
    assert collective.network.widths == grown_widths(settings, 3)
    assert sorted(collective.known) == made.taught


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
    no_network: None, step: str, error: str
) -> None:
    settings = SETTINGS.model_copy(update={"expansion": ("widen 2 +64", step), "tasks": 3})
    with pytest.raises(InputError, match=f"expansion: .*{error}"):
        plan(settings)


def test_more_layers_than_the_network_has_is_refused_before_any_training(no_network: None) -> None:
    with pytest.raises(InputError, match="the network has 13"):
        plan(SETTINGS.model_copy(update={"layers": 14}))


def test_more_classes_in_a_task_than_the_folder_has_is_refused(no_network: None) -> None:
    with pytest.raises(InputError, match="does not fit 8 base classes"):
        plan(SETTINGS.model_copy(update={"classes_per_task": 9}))


def test_replay_rehearses_every_seen_class_and_the_others_only_the_tasks_own() -> None:
    replaying = plan(SETTINGS)
    for strategy in ("none", "ewc"):
        forgetting = plan(SETTINGS.model_copy(update={"strategy": strategy}))
        for number in range(4):
            seen = [c for task in replaying.sequence[: number + 1] for c in task]
            assert sorted(replaying.trained_on(number)) == sorted(set(seen))
            assert sorted(forgetting.trained_on(number)) == sorted(forgetting.sequence[number])


def test_images_that_the_pools_leave_nothing_of_are_refused(no_network: None) -> None:
    small = replace(images(), train_images=images().train_images[:, :31])
    with pytest.raises(InputError, match="32x31 pixels are too small"):
        EvolutionPlan.of(small, SETTINGS, 0, torch.device("cpu"))


@pytest.mark.parametrize("name", ["rotation", "condense_rotation"])
def test_images_that_are_not_square_cannot_be_turned(no_network: None, name: str) -> None:
    wide = replace(images(), train_images=np.repeat(images().train_images, 2, 2))
    with pytest.raises(InputError, match="64x32 pixels cannot be turned by a quarter: set rotation"):
        EvolutionPlan.of(wide, SETTINGS.model_copy(update={name: 0.5}), 0, torch.device("cpu"))


def test_settings_of_cycles_and_of_what_follows_change_no_fingerprint_of_the_tasks() -> None:
    fingerprint = plan(CYCLES).setup
    for changes in ({"cycles": 0}, {"examples": 9}, {"annotator": "annotate"}, {"layers": 2}, {"privacy_epochs": 3.0}):
        assert plan(CYCLES.model_copy(update=changes)).setup == fingerprint
    for other in ({"epochs": 2.0}, {"width": 0.125}, {"tasks": 3}):
        assert plan(CYCLES.model_copy(update=other)).setup != fingerprint


def test_settings_that_came_later_change_a_fingerprint_only_where_they_change_something() -> None:
    """So a checkpoint of before they existed still fits."""
    stream = images().stream_images
    assert stream is not None
    before = {"cycles", "classes_per_cycle", "examples", "open_epochs", "score", "threshold", "keep_known"}
    before |= {"neighbours", "compare_scores", "compare_strategies"}
    expected = hashlib.sha256(CYCLES.model_dump_json(include=before).encode() + stream.tobytes())
    assert cycle_setup(CYCLES, stream, None) == expected.hexdigest()
    for changes in ({"mixup": 0.2}, {"rotation": 1.0}, {"randaugment": 1}, {"swa": 0.1}, {"schedule": "step"}):
        assert plan(CYCLES.model_copy(update=changes)).setup != plan(CYCLES).setup
    of_condensing_alone = ({"rotation_share": 0.2, "condense_rotation": 0.5}, {"randaugment_magnitude": 3.0})
    for changes in ({"condense_mixup": 0.2}, {"condense_generations": 2}, *of_condensing_alone):
        assert plan(CYCLES.model_copy(update=changes)).setup == plan(CYCLES).setup
    earlier = set(CollectiveSettings.model_fields) - set(LATER) - {"annotator", "parts"}
    dumped = CYCLES.model_dump_json(include=earlier)
    assert setup_of("images", CYCLES) == hashlib.sha256(f"images {dumped}".encode()).hexdigest()
    assert setup_of("images", CYCLES.model_copy(update={"condense_swa": 0.5})) != setup_of("images", CYCLES)
    for changes in ({"bias": "weight-alignment"}, {"calibration_share": 0.2}):
        changed = CYCLES.model_copy(update=changes)
        assert cycle_setup(changed, stream, None) != cycle_setup(CYCLES, stream, None)
        assert plan(changed).setup == plan(CYCLES).setup
