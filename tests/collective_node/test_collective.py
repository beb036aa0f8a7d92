"""Tests of the classes of a collective."""

from pathlib import Path

import numpy as np

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
