"""The whole pipeline: what each form's network learned from, and for how long."""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from collective_node import weight_averaging
from collective_node.open_world.annotators import Oracle
from collective_node.pipeline import Evolved, evolve
from collective_node.settings import CollectiveSettings
from protocol.node.events import Events
from tests.collective_node.made_evolution import CYCLES, REGULARISED, images, truth

SETTINGS = CYCLES.model_copy(
    update={
        "forms": ("condensed", "direct", "direct-inherited", "whole", "paper"),
        "condense_epochs": 1.0,
        "distil_logits": 0.3,
        "condense_stream": 0.25,
        "fisher_samples": 20,
    }
)


@pytest.fixture(autouse=True, scope="module")
def few_statistics() -> Iterator[None]:
    """BatchNorm statistics from 2 batches instead of 40."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weight_averaging, "STATISTICS_BATCHES", 2)
        yield


class Counter(Events):
    """Counts the steps that are reported of each text."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.steps: dict[str, int] = defaultdict(int)

    def append(self, event: str, done: int, total: int, text: str) -> None:
        if event == "condense":
            self.steps[text] += 1


def evolved(folder: Path, settings: CollectiveSettings = SETTINGS) -> tuple[Evolved, Counter]:
    folder.mkdir()
    events = Counter(folder / "events.jsonl")
    found = evolve(
        images(),
        settings,
        seed=0,
        device=torch.device("cpu"),
        checkpoints=folder / "checkpoint",
        events=events,
        annotator=Oracle(truth(), settings.examples),
    )
    return found, events


def test_every_form_comes_out_and_the_compact_ones_after_as_many_batches(tmp_path: Path) -> None:
    found, events = evolved(tmp_path / "one")
    assert set(found.learngenes) == set(SETTINGS.forms)
    assert set(found.compact) == set(found.accuracy) == {"condensed", "direct", "direct-inherited"}
    batches = list(events.steps.values())
    assert len(batches) == 3
    assert len(set(batches)) == 1
    outputs = {form: network(torch.zeros(1, 3, 32, 32)).shape[1] for form, network in found.compact.items()}
    known, base = len(found.collective.known), len(found.collective.known_base)
    assert known > base
    assert outputs == {"condensed": known, "direct": base, "direct-inherited": base}


def test_a_form_does_not_depend_on_which_others_are_made(tmp_path: Path) -> None:
    whole, _ = evolved(tmp_path / "whole")
    for form in ("condensed", "direct"):
        alone, _ = evolved(tmp_path / form, SETTINGS.model_copy(update={"forms": (form,)}))
        assert set(alone.learngenes) == {form}
        for name, value in alone.compact[form].state_dict().items():
            assert torch.equal(value, whole.compact[form].state_dict()[name])


@pytest.mark.parametrize("known", [True, False])
def test_with_every_regulariser_all_forms_come_out_whole(tmp_path: Path, known: bool) -> None:
    """The teacher and the stream besides; where named classes are not condensed, the teacher knows more classes."""
    wanted = {
        name: getattr(SETTINGS, name) for name in ("forms", "condense_epochs", "distil_logits", "condense_stream")
    }
    settings = REGULARISED.model_copy(
        update={**wanted, "fisher_samples": 20, "condense_generations": 1, "condense_known": known}
    )
    found, events = evolved(tmp_path / "regularised", settings)
    for form, learngene in found.learngenes.items():
        names = learngene.architecture.tensors(fisher=True)
        assert learngene.tensors.keys() == names.keys(), form
        assert all(np.isfinite(value).all() for value in learngene.tensors.values())
    assert set(found.learngenes) == set(settings.forms)
    assert len(found.collective.known) > len(found.collective.known_base)
    assert len(set(events.steps.values())) == 1


def test_direct_alone_trains_for_epochs_of_its_own(tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"forms": ("direct",), "direct_epochs": 3.0})
    found, events = evolved(tmp_path / "own", settings)
    rows = sum(len(rows) for rows in found.collective.rows_of(found.collective.known_base))
    assert list(events.steps.values()) == [round(3.0 * rows / settings.batch_size)]
