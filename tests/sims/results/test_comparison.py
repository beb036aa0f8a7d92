"""Which methods are compared on the same tasks, and by how much they differ."""

from pathlib import Path

import pytest
from scipy import stats

from sims.results import comparison
from sims.results.class_interval import over_new_classes
from sims.results.collection import collect
from sims.results.comparison import in_order, pairs
from sims.results.models import Results
from tests.sims.made_run import ALL_METHODS, make_run


def test_differences_are_paired_on_the_same_tasks(made: tuple[Path, Results]) -> None:
    results = made[1]
    assert set(results.paired) == {
        "condensed-direct",
        "condensed-whole",
        "condensed-condensed-eq9",
        "condensed-paper",
        "condensed-scratch",
        "condensed-random",
        "condensed-paper-scratch",
        "condensed-floor",
        "condensed-eq9-scratch",
        "paper-paper-scratch",
    }
    for shots in (10, 20):
        first, second = results.methods["condensed"][shots].per_task, results.methods["floor"][shots].per_task
        expected = stats.ttest_rel(first, second).confidence_interval(0.95)
        found = results.paired["condensed-floor"][shots]
        assert found.ci95_tasks is not None
        assert found.mean - found.ci95_tasks == pytest.approx(expected.low)
        assert found.mean + found.ci95_tasks == pytest.approx(expected.high)
        differences = [a - b for a, b in zip(first, second, strict=True)]
        assert found.ci95_classes == over_new_classes(differences, results.task_classes[: len(first)])


def test_every_method_is_described_in_order_and_compared_with_what_it_differs_from_in_one_thing(tmp_path: Path) -> None:
    results = collect(make_run(tmp_path, methods=ALL_METHODS, target_tasks="10:3"))
    assert list(results.methods) == list(ALL_METHODS) == list(comparison.METHODS)
    assert len(set(comparison.METHODS.values())) == len(ALL_METHODS)
    groups = pairs(ALL_METHODS)
    flat = [pair for group in groups.values() for pair in group]
    assert len(flat) == len(set(flat))
    assert set(results.paired) == {f"{first}-{second}" for first, second in flat}
    against_default, positions, sources, against_scratch, heads, training = groups.values()
    assert [second for _, second in against_default] == [name for name in ALL_METHODS if name != "condensed"]
    assert positions == [("paper", "paper-middle"), ("paper", "paper-front")]
    bases = ("condensed-eq9", "paper", "paper-middle", "paper-front")
    own = ("scratch", "paper-scratch", "paper-middle-scratch", "paper-front-scratch")
    variants = ("individual", "none", "frozen")
    assert sources == [(f"{base}-{variant}", base) for base in bases for variant in variants]
    kinds = ("", *(f"-{variant}" for variant in variants))
    assert against_scratch == [
        pair
        for base, scratch in zip(bases, own, strict=True)
        for pair in [*((base + kind, scratch) for kind in kinds), (f"{base}-head", f"{scratch}-head")]
    ]
    assert set(heads) == {(f"{name}-head", name) for name in bases + own}
    assert training == [("scratch-head", "random")]


def test_the_default_and_its_controls_stand_first() -> None:
    given = ["floor", "scratch", "paper", "whole", "of-another-version", "direct", "condensed", "random"]
    ordered = ["condensed", "direct", "random", "scratch", "whole", "floor", "paper", "of-another-version"]
    assert in_order(given) == ordered


def test_methods_that_did_not_run_are_in_no_pair() -> None:
    assert pairs(["paper", "paper-none", "floor"]) == {
        "the source of the Fisher diagonal, against the collective's": [("paper-none", "paper")]
    }
    assert pairs(["condensed", "of-another-version"]) == {
        "the default against every other": [("condensed", "of-another-version")]
    }
