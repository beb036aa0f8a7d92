"""Tests of the classes of a collective."""

from pathlib import Path

import numpy as np
import pytest

from collective_node.records import Named
from tests.collective_node.made_evolution import CLASSES, evolution


def test_named_images_of_one_class_in_two_cycles_are_one_class(tmp_path: Path) -> None:
    made = evolution(tmp_path / "state")
    collective = made.plan.begin(made.train)
    picture = np.zeros((1, 32, 32, 3), np.uint8)
    assert collective.add_named(Named(rows=[0], names=["new"]), picture) == [CLASSES]
    collective.learn_classes([CLASSES])
    assert collective.add_named(Named(rows=[1], names=["New"]), picture) == []
    assert [len(rows) for rows in collective.rows_of([CLASSES])] == [2]


@pytest.mark.parametrize(("share", "kept"), [(0.0, [0, 0]), (0.2, [2, 0]), (0.5, [5, 1]), (0.99, [9, 2])])
def test_a_share_of_each_named_class_is_kept_back_and_never_trained_on(
    tmp_path: Path, share: float, kept: list[int]
) -> None:
    """Of ten images of one class and of three of another, rounded down; at least one is always trained on."""
    made = evolution(tmp_path / "state")
    collective = made.plan.begin(made.train)
    own = len(collective.images)
    named = Named(rows=list(range(13)), names=["many", "few", "many", "many", "few", *["many"] * 7, "few"])
    pictures = np.arange(13, dtype=np.uint8)[:, None, None, None] + np.zeros((1, 32, 32, 3), np.uint8)
    new = collective.add_named(named, pictures, share)
    collective.learn_classes(new)
    trained = [set(rows.tolist()) for rows in collective.rows_of(new)]
    held = set(collective.calibration.tolist())
    assert [10 - len(trained[0]), 3 - len(trained[1])] == kept
    assert len(held) == sum(kept)
    assert held | trained[0] | trained[1] == set(range(own, own + 13))
    assert not held & set(collective.training_set(collective.known).every_row.tolist())
    # A second cycle adds to them.
    collective.add_named(Named(rows=[20, 21], names=["third", "third"]), pictures[:2], 0.5)
    assert len(collective.calibration) == len(held) + 1
    assert [len(rows) for rows in collective.rows_of([CLASSES + 2])] == [1]
    assert len(made.plan.begin(made.train).calibration) == 0
