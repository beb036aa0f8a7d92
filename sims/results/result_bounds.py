"""Bounds of results from others: each method, layer or cycle makes a row of a figure, so there may not be too many."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from individual_node.method_table import MOST_SCORED
from protocol.errors import InputError

if TYPE_CHECKING:
    from sims.results.models import CollectiveResult, Results

#: Most methods, each of which makes a row of a table; and most novel classes and target tasks: an interval over new
#: classes takes memory for their product.
MOST_METHODS, MOST_CLASSES, _MOST_TARGET_TASKS = MOST_SCORED, 1000, 20_000
#: Most shot counts and so on, each of which makes a panel or a bar of a figure; and most characters of a name beside
#: one.
_MOST_SHOTS, _MOST_LAYERS, _MOST_TASKS, _MOST_CYCLES, _LONGEST_LABEL = 8, 400, 2000, 60, 100


def check(results: "Results", what: str) -> None:
    """Refuse results from which no figure can be made; ``what`` names them.

    Raises:
        InputError: the results exceed a bound.
    """
    for fault in [*_faults(results), *_faults_of_collective(results.collective)]:
        raise InputError(f"{what} is not what this version writes: {fault}")


def _faults(results: "Results") -> Iterator[str]:
    if len(results.methods) > MOST_METHODS or len(results.shots) > _MOST_SHOTS:
        yield f"there are more than {MOST_METHODS} methods or {_MOST_SHOTS} counts of shots"
    if len({name for classes in results.task_classes for name in classes}) > MOST_CLASSES:
        yield f"the target tasks name more than {MOST_CLASSES} classes"
    if any(results.task_count(shots) > _MOST_TARGET_TASKS for shots in results.shots):
        yield f"there are more than {_MOST_TARGET_TASKS} target tasks"


def _faults_of_collective(collective: "CollectiveResult") -> Iterator[str]:
    if len(collective.tasks) > _MOST_TASKS or any(task.known < 1 for task in collective.tasks):
        yield f"there are more than {_MOST_TASKS} tasks, or one after which no class is known"
    if sum(len(kind.cycles) for kind in collective.open_world.every) > _MOST_CYCLES:
        yield f"there are more than {_MOST_CYCLES} open-world cycles"
    trend, criterion = collective.gradient_trend, collective.criterion
    if trend is None:
        return
    if len(trend.layers) > _MOST_LAYERS or any(len(row) > _MOST_TASKS for row in trend.rho):
        yield f"the gradient trend has more than {_MOST_LAYERS} layers or {_MOST_TASKS} tasks"
    if any(len(name) > _LONGEST_LABEL for name in trend.layers):
        yield f"the name of a layer is longer than {_LONGEST_LABEL} characters"
    chosen = () if criterion is None else criterion.chosen
    if any(number > len(trend.layers) for number in chosen):
        yield f"a layer is chosen beyond the {len(trend.layers)} that there are"
