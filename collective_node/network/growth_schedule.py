"""Growth schedules: steps as a user writes them, the paper's twenty steps, and the steps before each task."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

#: Name of the paper's schedule in a list of steps.
PAPER = "paper"

_STEP = re.compile(r"widen (?P<widened>\d+) \+(?P<extra>\d+)|deepen (?P<deepened>\d+) (?P<way>duplicate|identity)")


@dataclass(frozen=True)
class Widen:
    """Add ``extra`` channels (at width factor 1) to convolution ``layer`` (0-based, as the network is by then)."""

    layer: int
    extra: int


@dataclass(frozen=True)
class Deepen:
    """Put a layer behind convolution ``layer`` (0-based): a copy of it, or one that passes its input on."""

    layer: int
    way: Literal["duplicate", "identity"]


Step = Widen | Deepen

#: The paper's steps, one before each of tasks 2 to 21 (appendix A.1).
PAPER_STEPS: tuple[Step, ...] = tuple(
    Widen(layer, 64 if step < 8 else 128)
    for step, layer in enumerate((2, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8, 8, 9, 9, 10, 10, 11, 11, 12, 12))
)


def parse(texts: Sequence[str]) -> tuple[Step, ...]:
    """Steps from ``widen 2 +64``, ``deepen 5 identity``, ``deepen 5 duplicate`` and ``paper`` (its twenty), in order.

    Raises:
        ValueError: a text is none of these, or widens by 0 channels.
    """
    steps: list[Step] = []
    for text in texts:
        words = " ".join(text.split())
        if words == PAPER:
            steps += PAPER_STEPS
            continue
        found = _STEP.fullmatch(words)
        if found is None or int(found["extra"] or 1) == 0:
            raise ValueError(f"{text!r} is no growth step; write `widen LAYER +CHANNELS`, `deepen LAYER identity`, "
                             f"`deepen LAYER duplicate` or `{PAPER}`")  # fmt: skip
        if found["way"] is None:
            steps.append(Widen(int(found["widened"]), int(found["extra"])))
        else:
            steps.append(Deepen(int(found["deepened"]), "duplicate" if found["way"] == "duplicate" else "identity"))
    return tuple(steps)


def steps_before(steps: Sequence[Step], task: int, tasks: int) -> list[Step]:
    """The steps of a schedule to take before task ``task`` (0-based) of ``tasks``.

    With more tasks than steps, one step before each of the tasks from 1 on (0-based); with fewer, the same steps in the
    same order, spread evenly over all tasks but the first. A single task, joint training, starts fully grown.
    """
    if tasks == 1:
        return list(steps) if task == 0 else []
    growing = min(tasks - 1, len(steps))
    return [step for number, step in enumerate(steps) if 1 + number * growing // len(steps) == task]
