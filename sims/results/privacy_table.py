"""Accuracy against epsilon, over runs of one experiment that differ in guarantee and seed."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from protocol.errors import InputError
from protocol.files.atomic import write_atomically
from protocol.learngene.learngene import PrivacyScope
from sims.results.models import Dataset, Results, load
from sims.results.statistics import mean_interval
from sims.results.summary import CIRCUMSTANCES, different
from sims.run.run_folder import read_settings

#: File name of the figure in a run folder; the report of the run takes it up.
PRIVACY_FIGURE = "accuracy_against_epsilon.png"

_FROZEN = ConfigDict(frozen=True, extra="forbid")
#: Settings in which a run without a guarantee must differ from one with private weights: those of the other training,
#: and those that only one of the two has.
_OF_ONE_KIND = frozenset({"forms", "cycles", "descendant_epochs"})


class Accuracy(BaseModel):
    """A mean and half its 95 % interval, in per cent; ``over``: the kind of the ``count`` independent values."""

    model_config = _FROZEN

    mean: float
    ci95: float | None
    over: Literal["runs", "target tasks"]
    count: int


class Point(BaseModel):
    """The runs of one epsilon; None: those without a guarantee."""

    model_config = _FROZEN

    epsilon: float | None
    runs: tuple[str, ...]
    condensed_accuracy: float | None
    methods: dict[str, dict[int, Accuracy]]


class PrivacyTable(BaseModel):
    """``privacy.json``. Points in the order of epsilon, the one without a guarantee last."""

    model_config = _FROZEN

    format: Literal[1] = 1
    dataset: Dataset
    profile: str
    scope: PrivacyScope
    delta: float
    points: tuple[Point, ...]

    @property
    def methods(self) -> tuple[str, ...]:
        """Methods that every point has, in the order of the first."""
        return tuple(name for name in self.points[0].methods if all(name in point.methods for point in self.points))

    @property
    def shots(self) -> tuple[int, ...]:
        """Shot counts of all points."""
        return tuple(sorted(set.intersection(*({*by} for point in self.points for by in point.methods.values()))))


def of_folders(folders: Sequence[Path]) -> PrivacyTable:
    """Combine finished runs that differ only in epsilon and seed.

    Raises:
        InputError: no run has a guarantee; the runs differ in more; or a run is given twice.
    """
    runs = [(folder, load(folder)) for folder in folders]
    private = [(folder, found.collective.privacy) for folder, found in runs if found.collective.privacy is not None]
    if not private:
        raise InputError("none of these runs has a guarantee: make some with --set collective.privacy_epsilon=8")
    first_folder, first = private[0]
    for folder, stated in private:
        if (stated.scope, stated.delta) != (first.scope, first.delta):
            raise InputError(f"{folder} and {first_folder} have different scopes or deltas: name runs of one kind")
    experiments = {folder: _experiment(folder) for folder in folders}
    for folder in folders:
        unlike = different(experiments[first_folder], experiments[folder])
        if unlike:
            raise InputError(f"{folder} and {first_folder} are different experiments, see {', '.join(unlike)}")
    images = {(found.dataset.name, found.dataset.source) for _, found in runs}
    if len(images) > 1:
        raise InputError("these runs have different images: name runs of one experiment")
    grouped: dict[float | None, list[tuple[Path, Results]]] = {}
    for folder, found in runs:
        privacy = found.collective.privacy
        group = grouped.setdefault(None if privacy is None else privacy.epsilon, [])
        for other, before in group:
            if before.seed == found.seed:
                raise InputError(f"{other} and {folder} have one epsilon and one seed: name runs of different seeds")
        group.append((folder, found))
    epsilons = sorted(epsilon for epsilon in grouped if epsilon is not None)
    return PrivacyTable(
        dataset=runs[0][1].dataset,
        profile=runs[0][1].profile,
        scope=first.scope,
        delta=first.delta,
        points=tuple(_point(epsilon, grouped[epsilon]) for epsilon in (*epsilons, None) if epsilon in grouped),
    )


def write(table: PrivacyTable, folder: Path) -> Path:
    """Write ``privacy.json`` (atomically); returns its path."""
    path = folder / "privacy.json"
    text = json.dumps(table.model_dump(mode="json"), indent=1, ensure_ascii=False, allow_nan=False)
    write_atomically(path, (text + "\n").encode())
    return path


def _experiment(folder: Path) -> dict[str, object]:
    """The settings that must be equal in all runs."""
    settings = read_settings(folder).settings
    found = {name: value for name, value in settings.experiment().items() if name not in CIRCUMSTANCES}
    collective = settings.collective.model_dump(mode="json")
    found["collective"] = {
        name: value
        for name, value in collective.items()
        if not name.startswith("privacy_") and name not in _OF_ONE_KIND
    }
    individual = settings.individual.model_dump(mode="json")
    found["individual"] = {name: value for name, value in individual.items() if name != "methods"}
    return found


def _point(epsilon: float | None, runs: Sequence[tuple[Path, Results]]) -> Point:
    results = [found for _, found in runs]
    reached = [found.collective.condensed_accuracy for found in results]
    known = [value for value in reached if value is not None]
    return Point(
        epsilon=epsilon,
        runs=tuple(str(folder) for folder, _ in runs),
        condensed_accuracy=mean_interval(known).mean if known else None,
        methods={
            method: {shots: _accuracy(results, method, shots) for shots in by_shots}
            for method, by_shots in results[0].methods.items()
            if all(method in found.methods for found in results)
        },
    )


def _accuracy(results: Sequence[Results], method: str, shots: int) -> Accuracy:
    """Accuracy over runs if there are several: the tasks of one run share a collective."""
    if len(results) == 1:
        found = results[0].methods[method][shots]
        return Accuracy(mean=found.mean, ci95=found.ci95_tasks, over="target tasks", count=found.tasks)
    interval = mean_interval([found.methods[method][shots].mean for found in results])
    return Accuracy(mean=interval.mean, ci95=interval.ci95, over="runs", count=interval.count)
