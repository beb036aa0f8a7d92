"""The paper's twenty widening steps, spread over a run's tasks (appendix A.1)."""

#: (convolution, channels at width factor 1): one step before each of tasks 2 to 21 in the paper.
WIDENING_STEPS = tuple(
    (convolution, 64 if step < 8 else 128)
    for step, convolution in enumerate((2, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8, 8, 9, 9, 10, 10, 11, 11, 12, 12))
)


def steps_before(task: int, tasks: int) -> list[tuple[int, int]]:
    """The widening steps to take before task ``task`` (0-based) of ``tasks``.

    With 21 tasks or more, one step before each of tasks 1 to 20 (0-based); with fewer, the same twenty in the same
    order, spread evenly over all but the first. A single task, joint training, starts at the final widths.
    """
    if tasks == 1:
        return list(WIDENING_STEPS) if task == 0 else []
    growing = min(tasks - 1, len(WIDENING_STEPS))
    return [step for number, step in enumerate(WIDENING_STEPS) if 1 + number * growing // len(WIDENING_STEPS) == task]
