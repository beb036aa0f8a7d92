"""Rows of a benchmark: ours beside another thing, as a ratio of the same run."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict

from protocol.node.events import Observer
from sims.bench.measurements import Range, ratio, spread

#: Seconds that go on steadily.
Clock = Callable[[], float]


class Row(BaseModel):
    """One comparison, each side measured in turn in every repeat.

    Attributes:
        name: what is compared with what.
        ours, other: in ``unit``.
        ratio: ours to the other, of each repeat.
        runs: repeats.
        target: what the ratio is to be, in words; empty where nothing was promised.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    ours: Range
    other: Range
    unit: str
    ratio: Range
    runs: int
    target: str = ""


class Bench(BaseModel):
    """The rows of a benchmark, and the machine that they belong to."""

    model_config = ConfigDict(frozen=True)

    format: int = 1
    rows: tuple[Row, ...]
    machine: dict[str, str | int | float]


def row(name: str, ours: Sequence[float], other: Sequence[float], unit: str, target: str = "") -> Row:
    """A row from what both sides gave in each repeat."""
    return Row(
        name=name,
        ours=spread(ours),
        other=spread(other),
        unit=unit,
        ratio=ratio(ours, other),
        runs=len(ours),
        target=target,
    )


@dataclass(frozen=True)
class Comparison:
    """Two things to measure in turn.

    Attributes:
        name: what is compared with what.
        ours, other: each measures once and says how much, in ``unit``.
        target: what the ratio of ours to the other is to be, in words.
    """

    name: str
    ours: Callable[[], float]
    other: Callable[[], float]
    unit: str
    target: str = ""


def compare(comparisons: Sequence[Comparison], repeats: int, observe: Observer) -> list[Row]:
    """Measure both sides of each comparison in turn, so many times."""
    rows = []
    for number, one in enumerate(comparisons):
        found: list[tuple[float, float]] = []
        for repeat in range(repeats):
            observe(number * repeats + repeat, len(comparisons) * repeats, one.name)
            found.append((one.ours(), one.other()))
        rows.append(row(one.name, [a for a, _ in found], [b for _, b in found], one.unit, one.target))
    return rows


def seconds_of(work: Callable[[], object], clock: Clock) -> float:
    """How long a piece of work takes once."""
    started = clock()
    work()
    return clock() - started


def with_range(values: Range, factor: float = 1.0) -> str:
    """Median, with the smallest and the largest value in brackets."""
    return f"{factor * values.median:.3f} ({factor * values.smallest:.3f} to {factor * values.largest:.3f})"
