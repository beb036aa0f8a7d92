"""Several runs of one experiment with different seeds, in one table: means over runs and their intervals."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from protocol.storage import write_atomically
from sims.results import Results
from sims.statistics import mean_interval

_FROZEN = ConfigDict(frozen=True, extra="forbid")


class RunEntry(BaseModel):
    """One of the runs."""

    model_config = _FROZEN

    seed: int
    folder: str


class OverRuns(BaseModel):
    """A mean over runs; ``ci95`` is Student's half width with ``runs - 1`` degrees of freedom (None: one run).

    Runs, not tasks, are the independent samples here: the tasks of one run share a collective.
    """

    model_config = _FROZEN

    mean: float
    ci95: float | None
    runs: int
    per_run: tuple[float, ...]


class Summary(BaseModel):
    """``summary.json``: accuracies in per cent, differences in points, in the order of ``runs``."""

    model_config = _FROZEN

    format: Literal[1] = 1
    dataset: dict[str, str | None]
    profile: str
    runs: tuple[RunEntry, ...]
    methods: dict[str, dict[int, OverRuns]]
    paired: dict[str, dict[int, OverRuns]]


def summarise(runs: Sequence[tuple[Path, Results]]) -> Summary:
    """Summarise runs that differ in their seed only.

    Raises:
        ValueError: no run.
    """
    if not runs:
        raise ValueError("a summary needs at least one run")
    first = runs[0][1]
    results = [result for _, result in runs]
    return Summary(
        dataset=first.dataset.model_dump(),
        profile=first.profile,
        runs=tuple(RunEntry(seed=result.seed, folder=str(folder)) for folder, result in runs),
        methods={
            method: {shots: _over([result.methods[method][shots].mean for result in results]) for shots in by_shots}
            for method, by_shots in first.methods.items()
        },
        paired={
            pair: {shots: _over([result.paired[pair][shots].mean for result in results]) for shots in by_shots}
            for pair, by_shots in first.paired.items()
        },
    )


def write(summary: Summary, folder: Path) -> Path:
    """Write ``summary.json`` (atomically); returns its path."""
    path = folder / "summary.json"
    text = json.dumps(summary.model_dump(mode="json"), indent=1, allow_nan=False)
    write_atomically(path, (text + "\n").encode())
    return path


def _over(values: list[float]) -> OverRuns:
    interval = mean_interval(values)
    return OverRuns(mean=interval.mean, ci95=interval.ci95, runs=interval.count, per_run=tuple(values))
