"""Several runs of one experiment with different seeds, in one table: means over runs and their intervals."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, TypeVar, get_args

import numpy as np
from pydantic import BaseModel, ConfigDict

from collective_node.metrics import Criterion
from collective_node.records import ChanceLevels, CycleFigures, StreamMetrics
from collective_node.settings import SCORES, Score, Strategy
from protocol.errors import InputError
from protocol.files.atomic import write_atomically
from sims.results.class_interval import over_new_classes
from sims.results.comparison import pair_key, pairs
from sims.results.models import (
    CHANCE_LEVELS,
    METRICS,
    ChanceLevel,
    Comparison,
    Dataset,
    Metric,
    Results,
    chance_of,
    level_of,
    load,
    metric_of,
)
from sims.results.statistics import mean_interval
from sims.run.run_folder import read_settings

#: The figures of a cycle; ``forgotten``: points of accuracy on the base classes that the cycle cost.
CycleFigure = Literal[
    "unknown_set",
    "truly_unknown",
    "named",
    "found",
    "given",
    "dismissed",
    "classes",
    "open_accuracy_before",
    "open_accuracy_after",
    "open_only_accuracy_before",
    "open_only_accuracy_after",
    "old_open_accuracy_before",
    "old_open_accuracy_after",
    "base_accuracy_before",
    "base_accuracy_after",
    "forgotten",
]
CYCLE_FIGURES: tuple[CycleFigure, ...] = get_args(CycleFigure)

#: Settings that may differ between runs of one experiment: the place of the images, and the computing device.
CIRCUMSTANCES = frozenset({"seed", "data", "threads", "collective_device", "individual_device"})

_FROZEN = ConfigDict(frozen=True, extra="forbid")
_Name = TypeVar("_Name", bound=str)


class RunEntry(BaseModel):
    """One of the runs, and which layers its criteria chose."""

    model_config = _FROZEN

    seed: int
    folder: str
    criterion: Criterion | None = None


class OverRuns(BaseModel):
    """A mean over runs; ``runs`` counts those that have the figure, ``per_run`` holds None for the others.

    ``ci95_seeds``: half width of the 95 % interval over training seeds, Student's with ``runs - 1`` degrees of freedom
    (None: one run). Runs, not tasks, are its samples: the tasks of one run share a collective. It holds for these
    classes, which all runs share. ``ci95_classes``: over new classes and images, from the tasks of all runs (None: not
    a figure over target tasks, or their classes are not known).
    """

    model_config = _FROZEN

    mean: float
    ci95_seeds: float | None
    ci95_classes: float | None = None
    runs: int
    per_run: tuple[float | None, ...]

    @property
    def ci95(self) -> float | None:
        """The interval that every figure has."""
        return self.ci95_seeds


class StreamOverRuns(BaseModel):
    """Metrics of one score, on the stream before a cycle's classes were added and after."""

    model_config = _FROZEN

    before: dict[Metric, OverRuns]
    after: dict[Metric, OverRuns]


class ChanceOverRuns(BaseModel):
    """Chance levels of the stream, before a cycle's classes were added and after."""

    model_config = _FROZEN

    before: dict[ChanceLevel, OverRuns] = {}
    after: dict[ChanceLevel, OverRuns] = {}


class CycleOverRuns(BaseModel):
    """One open-world cycle over the runs; a figure that no run has is left out."""

    model_config = _FROZEN

    cycle: int
    figures: dict[CycleFigure, OverRuns]
    stream: dict[Score, StreamOverRuns]
    chance: ChanceOverRuns = ChanceOverRuns()


class ComparisonOverRuns(BaseModel):
    """The cycles with one score and one strategy; ``own``: those of the runs themselves."""

    model_config = _FROZEN

    score: Score
    strategy: Strategy
    own: bool
    cycles: tuple[CycleOverRuns, ...]


class Summary(BaseModel):
    """``summary.json``: accuracies in per cent, differences in points, in the order of ``runs``."""

    model_config = _FROZEN

    format: Literal[2] = 2
    dataset: Dataset
    profile: str
    runs: tuple[RunEntry, ...]
    methods: dict[str, dict[int, OverRuns]]
    paired: dict[str, dict[int, OverRuns]]
    collective: dict[str, OverRuns]
    open_world: tuple[ComparisonOverRuns, ...]


def of_folders(folders: Sequence[Path]) -> Summary:
    """Summarise finished runs that differ only in their seed.

    Raises:
        InputError: a folder holds no finished run; two runs have one seed; or they differ in more than the seed.
    """
    settings = [read_settings(folder).settings for folder in folders]
    runs = [(folder, load(folder)) for folder in folders]
    experiments = [
        {name: value for name, value in one.experiment().items() if name not in CIRCUMSTANCES} for one in settings
    ]
    for folder, experiment in zip(folders[1:], experiments[1:], strict=True):
        if experiment != experiments[0]:
            names = ", ".join(different(experiments[0], experiment))
            raise InputError(f"{folder} and {folders[0]} are different experiments, see {names}: name runs of one")
    for number, (folder, found) in enumerate(runs):
        for other, before in runs[:number]:
            if before.seed == found.seed:
                raise InputError(f"{other} and {folder} both have seed {found.seed}: name runs of different seeds")
            if (before.dataset.name, before.dataset.source) != (found.dataset.name, found.dataset.source):
                raise InputError(f"{other} and {folder} have different images: name runs of one experiment")
    return summarise(runs)


def summarise(runs: Sequence[tuple[Path, Results]]) -> Summary:
    """Summarise runs that differ only in their seed.

    Raises:
        ValueError: no run.
    """
    if not runs:
        raise ValueError("a summary needs at least one run")
    first = runs[0][1]
    results = [result for _, result in runs]
    return Summary(
        dataset=first.dataset,
        profile=first.profile,
        runs=tuple(
            RunEntry(seed=result.seed, folder=str(folder), criterion=result.collective.criterion)
            for folder, result in runs
        ),
        methods={
            method: {shots: _over_tasks(results, shots, method) for shots in by_shots}
            for method, by_shots in first.methods.items()
        },
        paired={
            pair_key(*pair): {
                shots: _over_tasks(results, shots, *pair)
                for shots in first.shots
                if all(shots in first.methods[name] for name in pair)
            }
            for pair in dict.fromkeys(pair for group in pairs(first.methods).values() for pair in group)
        },
        collective=_there(
            {
                "base_accuracy": _over([result.collective.base_accuracy for result in results]),
                "condensed_accuracy": _over([result.collective.condensed_accuracy for result in results]),
                "old_accuracy": _over([_last_old_accuracy(result) for result in results]),
                **{
                    f"compact_accuracy.{form}": _over(
                        [result.collective.compact_accuracy.get(form) for result in results]
                    )
                    for form in first.collective.compact_accuracy
                    if form != "condensed"
                },
            }
        ),
        open_world=_open_world([result.collective.open_world.every for result in results], first),
    )


def write(summary: Summary, folder: Path) -> Path:
    """Write ``summary.json`` (atomically); returns its path."""
    path = folder / "summary.json"
    text = json.dumps(summary.model_dump(mode="json"), indent=1, ensure_ascii=False, allow_nan=False)
    write_atomically(path, (text + "\n").encode())
    return path


def _open_world(every: Sequence[Sequence[Comparison]], first: Results) -> tuple[ComparisonOverRuns, ...]:
    by_kind = [{(one.score, one.strategy): one.cycles for one in run} for run in every]
    return tuple(
        ComparisonOverRuns(
            score=kind.score,
            strategy=kind.strategy,
            own=number == 0 and bool(first.collective.open_world.cycles),
            cycles=tuple(
                _cycle(cycles) for cycles in zip(*(run[kind.score, kind.strategy] for run in by_kind), strict=True)
            ),
        )
        for number, kind in enumerate(every[0])
    )


def _cycle(cycles: Sequence[CycleFigures]) -> CycleOverRuns:
    """The same cycle of every run."""
    stream: dict[Score, StreamOverRuns] = {}
    for score in SCORES:
        before = _metrics([(cycle.before or {}).get(score) for cycle in cycles])
        after = _metrics([(cycle.after or {}).get(score) for cycle in cycles])
        if before or after:
            stream[score] = StreamOverRuns(before=before, after=after)
    figures = {name: _over([cycle_figure(cycle, name) for cycle in cycles]) for name in CYCLE_FIGURES}
    chance = ChanceOverRuns(
        before=_levels([chance_of(cycle.before) for cycle in cycles]),
        after=_levels([chance_of(cycle.after) for cycle in cycles]),
    )
    return CycleOverRuns(cycle=cycles[0].cycle, figures=_there(figures), stream=stream, chance=chance)


def cycle_figure(cycle: CycleFigures, name: CycleFigure) -> float | None:
    """One figure of a cycle by its name; None if it is unknown."""
    if name == "forgotten":
        return cycle.base_accuracy_before - cycle.base_accuracy_after
    if name == "classes":
        return float(len(cycle.classes))
    found: float | None = getattr(cycle, name)
    return found


def _metrics(found: Sequence[StreamMetrics | None]) -> dict[Metric, OverRuns]:
    return _there({name: _over([metric_of(one, name) for one in found]) for name in METRICS})


def _levels(found: Sequence[ChanceLevels | None]) -> dict[ChanceLevel, OverRuns]:
    return _there({name: _over([level_of(one, name) for one in found]) for name in CHANCE_LEVELS})


def _over_tasks(results: Sequence[Results], shots: int, first: str, second: str | None = None) -> OverRuns:
    """Accuracy of a method, or its difference to a second one on the same tasks, over runs and over new classes."""
    values = [np.array(result.methods[first][shots].per_task) for result in results]
    if second is not None:
        values = [own - result.methods[second][shots].per_task for own, result in zip(values, results, strict=True)]
    found = _mean([float(of_run.mean()) for of_run in values])
    classes = [result.task_classes[: len(of_run)] for of_run, result in zip(values, results, strict=True)]
    if not all(classes):
        return found
    half = over_new_classes(np.concatenate(values).tolist(), [one for of_run in classes for one in of_run])
    return found.model_copy(update={"ci95_classes": half})


def _last_old_accuracy(result: Results) -> float | None:
    return result.collective.tasks[-1].old_accuracy if result.collective.tasks else None


def _over(values: Sequence[float | None]) -> OverRuns | None:
    """Mean over the runs that have the figure; None if no run has it."""
    there = [value for value in values if value is not None]
    if not there:
        return None
    interval = mean_interval(there)
    return OverRuns(mean=interval.mean, ci95_seeds=interval.ci95, runs=interval.count, per_run=tuple(values))


def _mean(values: Sequence[float]) -> OverRuns:
    found = _over(values)
    assert found is not None
    return found


def _there(figures: Mapping[_Name, OverRuns | None]) -> dict[_Name, OverRuns]:
    return {name: found for name, found in figures.items() if found is not None}


def different(one: dict[str, object], other: dict[str, object]) -> list[str]:
    """Names of the settings in which two experiments differ; a party's settings are compared one by one."""
    names = []
    for name in sorted(one.keys() | other.keys()):
        left, right = one.get(name), other.get(name)
        if left == right:
            continue
        if isinstance(left, dict) and isinstance(right, dict):
            names += [f"{name}.{inner}" for inner in different(left, right)]
        else:
            names.append(name)
    return names
