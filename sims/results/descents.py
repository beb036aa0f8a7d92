"""How much methods depend on learning rate and weight decay: the best, the worst and the spread over a grid."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import pstdev

from individual_node.method_table import METHODS, name_and_change
from sims.results.comparison import in_order
from sims.results.models import Results


@dataclass(frozen=True)
class GridRow:
    """One method at one shot count over a grid of learning rates and weight decays. Accuracies in per cent.

    Attributes:
        best, worst: mean accuracy, and with which learning rate and weight decay.
        spread: standard deviation of the mean accuracies over the grid.
        points: how many there are.
    """

    method: str
    shots: int
    best: tuple[float, str]
    worst: tuple[float, str]
    spread: float
    points: int


def grid_rows(results: Results) -> list[GridRow]:
    """A row for each method that was scored with several learning rates or weight decays, and each shot count."""
    grids: dict[str, list[tuple[str, str]]] = {}
    for name in results.methods:
        method, change = name_and_change(name)
        if change.startswith("rate ") and method in METHODS:
            grids.setdefault(method, []).append((name, change))
    return [
        row
        for method in in_order(grids)
        for shots in results.shots
        if (row := _row(results, method, shots, grids[method])) is not None
    ]


def _row(results: Results, method: str, shots: int, grid: Sequence[tuple[str, str]]) -> GridRow | None:
    found = [(results.methods[name][shots].mean, change) for name, change in grid if shots in results.methods[name]]
    if len(found) < 2:
        return None
    return GridRow(method, shots, max(found), min(found), pstdev(mean for mean, _ in found), len(found))
