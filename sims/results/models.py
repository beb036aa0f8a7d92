"""The models of ``results.json``: with them the file is read, written, and described in ``results.schema.json``."""

import json
import os
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from collective_node.differential_privacy.mechanism import Mechanism
from collective_node.metrics import Criterion, FisherFacts, GradientTrend, SizeFacts
from collective_node.records import ChanceLevels, CycleFigures, StreamMetrics, TaskFigures
from collective_node.settings import Score, Strategy
from individual_node.metrics import TaskClasses
from protocol.encoding.blob import Dtype
from protocol.encoding.text import text_of
from protocol.errors import InputError, fault_line
from protocol.files.user_files import read_given
from protocol.node.metrics import Name, Percent
from sims.data.division_choice import OWN, DivisionChoice
from sims.results import result_bounds
from sims.results.earlier_results import in_format_3
from sims.results.paper_figures import PAPER_FIGURES, PaperFigures
from sims.run.run_folder import why_unfinished

#: How well unknown images of a stream are recognised; as in :class:`collective_node.records.StreamMetrics`.
Metric = Literal["auroc", "fpr95", "aupr", "oscr", "open_set_accuracy"]
METRICS: tuple[Metric, ...] = get_args(Metric)
#: Levels to read them against; as in :class:`collective_node.records.ChanceLevels`.
ChanceLevel = Literal["auroc", "fpr95", "aupr", "oscr", "all_flagged", "none_flagged"]
CHANCE_LEVELS: tuple[ChanceLevel, ...] = get_args(ChanceLevel)

#: Sources of images; the first two are real ones.
Source = Literal["folder", "download", "stand-in"]

_FROZEN = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, allow_inf_nan=False)

Points = float
#: Half width of an interval in points; None: nothing can be said.
HalfWidth = Annotated[float, Field(ge=0)] | None
_MAX_BYTES = 256 << 20


class Dataset(BaseModel):
    """Name and source of the images, and the division of their classes (earlier versions: the dataset's own);
    ``notice`` is for every output if they are the stand-in, or divided for tuning."""

    model_config = _FROZEN

    name: Name
    source: Source
    division: DivisionChoice = OWN
    notice: str | None

    @property
    def warning(self) -> str:
        """The notice in a few words, for the title of a figure; empty if there is none."""
        stand_in = "STAND-IN IMAGES, NOT CIFAR-100 OR IMAGENET100" if self.source == "stand-in" else ""
        return ", ".join(filter(None, (stand_in, "TUNING DIVISION" if self.division.is_tuning else "")))


class MethodResult(BaseModel):
    """Accuracy of one method at one shot count; ``per_task[n]`` belongs to the run-wide task number n.

    Half widths of 95 % intervals: ``ci95_tasks`` over target tasks of these classes and images, ``ci95_classes`` over
    new classes and images (None also where the tasks' classes are not known)."""

    model_config = _FROZEN

    mean: Percent
    ci95_tasks: HalfWidth
    ci95_classes: HalfWidth = None
    tasks: int
    per_task: tuple[Percent, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _as_many_as_tasks(self) -> "MethodResult":
        if len(self.per_task) != self.tasks:
            raise ValueError(f"{len(self.per_task)} accuracies are given for {self.tasks} tasks")
        return self


class PairedResult(BaseModel):
    """Difference of two methods on the same tasks, in points, with the intervals of :class:`MethodResult`."""

    model_config = _FROZEN

    mean: Points
    ci95_tasks: HalfWidth
    ci95_classes: HalfWidth = None
    tasks: int


class Curve(BaseModel):
    """Mean accuracy over ``tasks`` target tasks after each of ``epochs``."""

    model_config = _FROZEN

    epochs: tuple[float, ...]
    accuracy: tuple[Percent, ...]
    tasks: int

    @model_validator(mode="after")
    def _as_many_as_epochs(self) -> "Curve":
        if len(self.epochs) != len(self.accuracy):
            raise ValueError(f"{len(self.accuracy)} accuracies are given for {len(self.epochs)} epochs")
        return self


class NodeFacts(BaseModel):
    """How one node ran: ``confinement`` is its own line about what the operating system enforced, ``retain_weight``
    the lambda of Eq. 9 that it used, by method, ``peak_memory`` the most bytes that its process had in memory."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    device: str = "unknown"
    threads: int | None = None
    confinement: str = "unconfined"
    retain_weight: dict[str, float] = {}
    peak_memory: int | None = None


class Comparison(BaseModel):
    """Open-world cycles with one score and one strategy, from the state after the last task; ``stopped`` says why there
    are fewer than the run's own."""

    model_config = _FROZEN

    score: Score
    strategy: Strategy
    cycles: tuple[CycleFigures, ...]
    stopped: str | None = None


class OpenWorld(BaseModel):
    """The run's own open-world cycles, and those of other scores and strategies from the same state."""

    model_config = _FROZEN

    cycles: tuple[CycleFigures, ...] = ()
    comparisons: tuple[Comparison, ...] = ()

    @property
    def every(self) -> tuple[Comparison, ...]:
        """The run's own cycles first, if it had any; then the comparisons."""
        if not self.cycles:
            return self.comparisons
        first = self.cycles[0]
        return (Comparison(score=first.score, strategy=first.strategy, cycles=self.cycles), *self.comparisons)

    @property
    def measured(self) -> bool:
        """Whether the truth about the stream was known, so that recognition could be measured."""
        return any(cycle.before is not None for cycle in self.cycles)

    @property
    def by_chance(self) -> tuple[Percent, Percent] | None:
        """Accuracy of a guess after the last own cycle: among all known classes, and among the named ones alone; None
        if no class was named."""
        named = sum(len(cycle.classes) for cycle in self.cycles)
        return (100 / self.cycles[-1].known, 100 / named) if named else None


class LearngeneFacts(BaseModel):
    """A published learngene: its blocks in one line, its Fisher diagonal, how its blob stores convolutions, the blob's
    bytes, and the sizes to which an individual can descend, the whole last."""

    model_config = _FROZEN

    architecture: str
    fisher: FisherFacts
    dtype: Dtype = "float32"
    bytes: int | None = Field(None, ge=1)
    sizes: tuple[SizeFacts, ...] = ()


class CollectiveResult(BaseModel):
    """The collective's own report. ``parameters``: weights by network; ``weights_sha256``: equal for equal
    weights; ``privacy``: the mechanism behind the guarantee of its learngenes, if there is one."""

    model_config = _FROZEN

    tasks: tuple[TaskFigures, ...]
    base_accuracy: Percent | None = None
    known_classes: int | None = None
    condensed_accuracy: Percent | None = None
    compact_accuracy: dict[str, Percent] = {}
    gradient_trend: GradientTrend | None = None
    criterion: Criterion | None = None
    open_world: OpenWorld = OpenWorld()
    learngenes: dict[str, LearngeneFacts] = {}
    parameters: dict[str, int] = {}
    weights_sha256: str | None = None
    privacy: Mechanism | None = None

    @model_validator(mode="after")
    def _criterion_of_every_layer(self) -> "CollectiveResult":
        trend, criterion = self.gradient_trend, self.criterion
        if trend and criterion and len(criterion.settled) != len(trend.layers):
            raise ValueError(f"the criterion must hold each of the {len(trend.layers)} layers")
        return self


class Crossing(BaseModel):
    """One message from one party to another. ``recorded_by``: the sides whose records hold it with the same digest."""

    model_config = _FROZEN

    source: Name = Field(alias="from")
    target: Name = Field(alias="to")
    kind: Name
    bytes: int
    digest: str
    recorded_by: Literal["both", "sender", "receiver"]


class Results(BaseModel):
    """``results.json``, written in format 3 and read in formats 1 to 3.

    Accuracies in per cent, differences in points. ``task_classes[n]`` are the classes of the run-wide task number n;
    empty: not known. All times stand in ``seconds``; apart from
    them and the digests of ``crossings``, two runs of the same settings on one machine are equal, if these ask for no
    privacy: what hides images can never be repeated."""

    model_config = _FROZEN

    format: Literal[3] = 3
    dataset: Dataset
    profile: Name
    seed: int
    methods: dict[Name, dict[int, MethodResult]]
    paired: dict[str, dict[int, PairedResult]]
    task_classes: tuple[TaskClasses, ...] = ()
    collective: CollectiveResult
    curves: dict[Name, dict[int, Curve]]
    individuals: int
    parameters: dict[Name, int]
    crossings: tuple[Crossing, ...]
    confinement: Literal["confined", "unconfined"]
    nodes: dict[Name, NodeFacts]
    machine: dict[str, str | int]
    versions: dict[str, str]
    seconds: dict[str, dict[str, float]]

    _earlier = model_validator(mode="before")(in_format_3)

    @model_validator(mode="after")
    def _fits_together(self) -> "Results":
        for shots in self.shots:
            counts = {by_shots[shots].tasks for by_shots in self.methods.values() if shots in by_shots}
            if len(counts) > 1:
                raise ValueError(f"at {shots} shots, methods have different numbers of tasks")
        tasks = max(map(self.task_count, self.shots), default=0)
        if len(self.task_classes) not in (0, tasks):
            raise ValueError(f"the classes of {len(self.task_classes)} tasks are given, of {tasks}")
        return self

    @property
    def paper(self) -> PaperFigures | None:
        """The paper's figures for these images; None if it has none."""
        return PAPER_FIGURES.get(self.dataset.name) if self.dataset.notice is None else None

    @property
    def shots(self) -> tuple[int, ...]:
        """Every shot count of the run, smallest first."""
        return tuple(sorted({shots for by_shots in self.methods.values() for shots in by_shots}))

    def task_count(self, shots: int) -> int:
        """Target tasks at a shot count."""
        return max((by_shots[shots].tasks for by_shots in self.methods.values() if shots in by_shots), default=0)

    def to_json(self) -> bytes:
        """The bytes of ``results.json``: keys in a fixed order, no NaN."""
        document = self.model_dump(mode="json", by_alias=True)
        return (json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def schema() -> dict[str, object]:
    """JSON Schema (draft 2020-12) of ``results.json``."""
    text = resources.files("sims.results").joinpath("results.schema.json").read_text(encoding="utf-8")
    document: dict[str, object] = json.loads(text)
    return document


def load(run_folder: Path) -> Results:
    """``results.json`` of a finished run.

    Raises:
        InputError: the folder holds none, or one of another format.
    """
    path = run_folder / "results.json"
    if not run_folder.is_dir():
        raise InputError(f"no such folder: {run_folder}")
    if not os.path.lexists(path):
        why = why_unfinished(run_folder) or "it is no run, or one of another version"
        raise InputError(f"{run_folder} holds no results.json: {why}")
    try:
        results = Results.model_validate_json(text_of(read_given(path, "the results", max_bytes=_MAX_BYTES)))
    except ValidationError as error:
        raise InputError(f"{path} is not what this version writes: {fault_line(error)}") from None
    except ValueError as error:
        raise InputError(f"{path} is not what this version writes: {error}") from None
    result_bounds.check(results, str(path))
    return results


def metric_of(found: StreamMetrics | None, metric: Metric) -> Percent | None:
    """One metric of a stream; None if it could not be measured."""
    value: Percent | None = getattr(found, metric, None)
    return value


def chance_of(found: Mapping[Score, StreamMetrics | None] | None) -> ChanceLevels | None:
    """The chance levels of a part of the stream, which no score changes; None if they were not measured."""
    levels = (one.chance for one in (found or {}).values() if one is not None)
    return next((level for level in levels if level is not None), None)


def level_of(found: ChanceLevels | None, level: ChanceLevel) -> Percent | None:
    """One of the chance levels; None if it was not measured."""
    value: Percent | None = getattr(found, level, None)
    return value
