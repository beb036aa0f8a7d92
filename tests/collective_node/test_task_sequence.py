"""Tests of the sequence of tasks."""

import numpy as np
import pytest

from collective_node.task_sequence import sequence


def test_the_first_tasks_partition_the_classes() -> None:
    tasks = sequence(64, 5, 50, np.random.default_rng(0))
    first = [c for task in tasks[:12] for c in task]
    assert sorted(set(first) | set(tasks[12])) == list(range(64))
    assert len(first) == len(set(first)) == 60
    assert all(len(set(task)) == 5 for task in tasks)
    assert {c for task in tasks[13:] for c in task} <= set(range(64))


def test_the_same_seed_gives_the_same_tasks() -> None:
    assert sequence(64, 5, 20, np.random.default_rng(3)) == sequence(64, 5, 20, np.random.default_rng(3))
    assert sequence(64, 5, 20, np.random.default_rng(3)) != sequence(64, 5, 20, np.random.default_rng(4))


def test_more_classes_in_a_task_than_there_are_is_refused() -> None:
    with pytest.raises(ValueError, match="1 to 4"):
        sequence(4, 5, 1, np.random.default_rng(0))
