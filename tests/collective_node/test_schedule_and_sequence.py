"""Tests of the widening schedule and of the sequence of tasks, from the paper's own figures."""

import numpy as np
import pytest

from collective_node.expandable_network import BASE_WIDTHS
from collective_node.task_sequence import sequence
from collective_node.widening_schedule import WIDENING_STEPS, steps_before

FINAL_WIDTHS = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)


@pytest.mark.parametrize("tasks", [1, 2, 5, 13, 21, 50])
def test_every_run_reaches_the_final_widths(tasks: int) -> None:
    widths = list(BASE_WIDTHS)
    for task in range(tasks):
        for convolution, extra in steps_before(task, tasks):
            widths[convolution] += extra
    assert tuple(widths) == FINAL_WIDTHS


def test_with_the_papers_tasks_there_is_one_step_before_each_of_tasks_2_to_21() -> None:
    taken = [steps_before(task, 50) for task in range(50)]
    assert [len(steps) for steps in taken] == [0] + [1] * 20 + [0] * 29
    assert tuple(step for steps in taken for step in steps) == WIDENING_STEPS


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
