"""The sequence of tasks: the first tasks partition the base classes, the others sample from them."""

import numpy as np


def sequence(classes: int, per_task: int, tasks: int, rng: np.random.Generator) -> list[tuple[int, ...]]:
    """Classes (0-based) of each task.

    A random order of all classes is cut into tasks of ``per_task`` classes. If the last of these is too short, it is
    filled with classes of earlier tasks. The tasks after it sample ``per_task`` classes without replacement.

    Raises:
        ValueError: ``per_task`` is not between 1 and ``classes``.
    """
    if not 1 <= per_task <= classes:
        raise ValueError(f"a task takes 1 to {classes} classes, not {per_task}")
    order = [int(c) for c in rng.permutation(classes)]
    result: list[tuple[int, ...]] = []
    for _ in range(tasks):
        new, order = order[:per_task], order[per_task:]
        others = [c for c in range(classes) if c not in new]
        seen_before = {c for task in result for c in task}
        pool = [c for c in others if c in seen_before] if new else others
        fill = rng.permutation(pool)[: per_task - len(new)]
        result.append((*new, *(int(c) for c in fill)))
    return result
