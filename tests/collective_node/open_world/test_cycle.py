"""Tests of open-world cycles: what they add, what they measure, and how they end early."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from collective_node.evolution import Evolution
from collective_node.open_world.annotators import LabelQuery, Oracle
from collective_node.records import Named
from collective_node.settings import SCORES
from protocol.errors import InputError
from protocol.node.events import Events
from tests.collective_node.made_evolution import (
    CLASSES,
    CYCLES,
    UNKNOWN,
    evolution,
    images,
    killed_after,
    names,
    state,
    truth,
)


def test_a_cycle_adds_what_the_annotator_named_and_known_classes_become_n_plus_m(tmp_path: Path) -> None:
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
    assert set(first.before) == set(SCORES)
    part = np.array_split(np.arange(len(truth().stream_names)), 3)[0]
    unknown = sum(truth().stream_names[row] in names(UNKNOWN) for row in part)
    for metrics in first.before.values():
        assert metrics is not None
        assert (metrics.known, metrics.unknown) == (len(part) - unknown, unknown)
        assert metrics.chance is not None
        assert metrics.chance.aupr == pytest.approx(100 * unknown / len(part))
    assert first.truly_unknown == unknown
    # What follows the first cycle is measured on the second part, and so is what precedes the second cycle.
    assert first.after == last.before
    # All classes of the stream are known by now: there is nothing to tell apart.
    assert last.after is not None
    assert set(last.after.values()) == {None}


def test_found_by_recognition_and_given_by_the_oracle_are_counted_apart(tmp_path: Path) -> None:
    settings = CYCLES.model_copy(update={"cycles": 1, "classes_per_cycle": 4, "examples": 2})
    learned, _ = evolution(tmp_path / "tasks").run()
    aside = evolution(tmp_path / "aside", settings).open_world
    assert aside is not None
    recognition = aside.stream.recognise(learned, 0, "max-logit")
    # Half of the images of one class are found, so others of it are left to be given.
    shown = [truth().stream_names[row] == "class 8" for row in recognition.rows]
    assert sum(shown) >= 4
    threshold = float(np.median(recognition.scores[shown]))
    collective, _ = evolution(tmp_path / "state", settings.model_copy(update={"threshold": threshold})).run()
    rows, cycle = set(collective.named[0].rows), collective.cycles[0]
    flagged = recognition.scores > threshold
    assert cycle.unknown_set == int(flagged.sum())
    assert cycle.found == len(rows & set(recognition.rows[flagged].tolist()))
    assert cycle.given == len(rows & set(recognition.rows[~flagged].tolist()))
    assert 0 < cycle.given <= 2 * len(cycle.classes)


def test_accuracy_among_the_named_classes_alone_is_never_below_that_among_all(tmp_path: Path) -> None:
    collective, _ = evolution(tmp_path / "state", CYCLES).run()
    assert collective.cycles[0].open_only_accuracy_before == 0.0
    for cycle in collective.cycles:
        for alone, among_all in (
            (cycle.open_only_accuracy_before, cycle.open_accuracy_before),
            (cycle.open_only_accuracy_after, cycle.open_accuracy_after),
        ):
            assert alone is not None
            assert among_all is not None
            assert alone >= among_all


def test_images_that_calibrate_are_trained_on_by_nobody_and_a_killed_run_finds_them_again(tmp_path: Path) -> None:
    settings = CYCLES.model_copy(update={"calibration_share": 0.4, "bias": "balanced"})
    whole, _ = evolution(tmp_path / "whole", settings).run()
    assert len(whole.calibration) > 0
    held = set(whole.calibration.tolist())
    assert not held & set(whole.training_set(whole.known).every_row.tolist())
    killed_after(5, tmp_path / "killed", settings)
    again, _ = evolution(tmp_path / "killed", settings).run()
    assert again.calibration.tolist() == whole.calibration.tolist()
    expected = state(whole)
    assert all(torch.equal(value, expected[name]) for name, value in state(again).items())


def test_what_was_named_earlier_is_measured_apart(tmp_path: Path) -> None:
    collective, _ = evolution(tmp_path / "state", CYCLES.model_copy(update={"strategy": "none"})).run()
    first, last = collective.cycles
    assert first.old_open_accuracy_before is None
    assert first.old_open_accuracy_after is None
    assert last.old_open_accuracy_before == first.open_accuracy_after
    # Half of the named classes are new in the last cycle: there was no output for them.
    assert last.open_accuracy_before == pytest.approx(last.old_open_accuracy_before / 2)


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


def test_an_annotator_may_find_nothing_of_interest(tmp_path: Path) -> None:
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


def test_a_score_that_is_only_measured_ends_no_run(tmp_path: Path) -> None:
    many = {"neighbours": 97}
    collective, _ = evolution(tmp_path / "state", CYCLES.model_copy(update=many)).run()
    before = collective.cycles[0].before
    assert before is not None
    assert before["nearest-neighbour"] is None
    assert before["energy"] is not None
    with pytest.raises(InputError, match="more than the 96 images"):
        evolution(tmp_path / "other", CYCLES.model_copy(update={**many, "score": "nearest-neighbour"}))


def test_cycles_without_a_stream_or_an_annotator_are_refused(tmp_path: Path) -> None:
    events = Events(tmp_path / "events.jsonl")
    arguments = (CYCLES, 0, torch.device("cpu"), tmp_path / "state", events)
    with pytest.raises(InputError, match="need a stream"):
        Evolution(replace(images(), stream_images=None), *arguments, Oracle(truth(), 0))
    with pytest.raises(InputError, match="need an annotator"):
        Evolution(images(), *arguments)
