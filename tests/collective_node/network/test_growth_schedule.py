"""Tests of growth schedules, from the paper's own figures."""

import pytest

from collective_node.network.growth_schedule import PAPER_STEPS, Deepen, Widen, parse, steps_before
from collective_node.settings import BASE_WIDTHS, CollectiveSettings

FINAL_WIDTHS = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)


@pytest.mark.parametrize("tasks", [1, 2, 5, 13, 21, 50])
def test_every_run_reaches_the_final_widths(tasks: int) -> None:
    widths = list(BASE_WIDTHS)
    for task in range(tasks):
        for step in steps_before(PAPER_STEPS, task, tasks):
            assert isinstance(step, Widen)
            widths[step.layer] += step.extra
    assert tuple(widths) == FINAL_WIDTHS


def test_with_the_papers_tasks_there_is_one_step_before_each_of_tasks_2_to_21() -> None:
    taken = [steps_before(PAPER_STEPS, task, 50) for task in range(50)]
    assert [len(steps) for steps in taken] == [0] + [1] * 20 + [0] * 29
    assert tuple(step for steps in taken for step in steps) == PAPER_STEPS


def test_steps_are_read_as_they_are_written() -> None:
    assert parse(["widen 2 +64", "deepen  5 identity ", "deepen 0 duplicate"]) == (
        Widen(2, 64),
        Deepen(5, "identity"),
        Deepen(0, "duplicate"),
    )
    assert parse(["paper", "deepen 3 identity"]) == (*PAPER_STEPS, Deepen(3, "identity"))
    assert parse([]) == ()


@pytest.mark.parametrize("text", ["widen 2", "widen 2 +0", "widen -1 +4", "deepen 5", "deepen 5 copy", "grow", ""])
def test_a_step_that_cannot_be_read_says_what_can(text: str) -> None:
    with pytest.raises(ValueError, match="write `widen LAYER"):
        CollectiveSettings(expansion=(text,))


@pytest.mark.parametrize(("steps", "tasks"), [(1, 5), (3, 4), (7, 3), (20, 13)])
def test_a_schedule_is_spread_in_its_order_and_leaves_the_first_task_alone(steps: int, tasks: int) -> None:
    schedule = tuple(Widen(0, number + 1) for number in range(steps))
    taken = [steps_before(schedule, task, tasks) for task in range(tasks)]
    assert taken[0] == []
    assert tuple(step for some in taken for step in some) == schedule
    counts = [len(some) for some in taken[1:] if some]
    assert max(counts) - min(counts) <= 1
