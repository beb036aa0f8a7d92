"""The result of a run: the nodes' own metrics and records, merged by run-wide task number into ``results.json``."""

import json
import os
import platform
from collections import deque
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata, resources
from pathlib import Path
from typing import Annotated, Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from collective_node.differential_privacy.mechanism import Mechanism
from collective_node.records import CycleFigures, Percent, StreamMetrics, TaskFigures
from collective_node.settings import Score, Strategy
from individual_node import method_table
from individual_node.method_table import FisherSource, Method
from protocol.encoding import strict_json
from protocol.errors import InputError, MalformedError, RunFailedError, fault_line
from protocol.exchange import audit
from protocol.files.atomic import write_atomically
from protocol.files.user_files import read_given
from protocol.learngene.architecture import Form
from protocol.learngene.learngene import FisherDescription
from protocol.node.metrics import METRICS_FILE, read_metrics
from sims.data import images
from sims.results import result_bounds
from sims.results.statistics import mean_interval, paired_difference
from sims.run.earlier_words import in_format_2
from sims.run.run_folder import individuals_of, read_record, read_settings, state_folder
from sims.run.settings import RunSettings

_INHERITED: Mapping[Form, str] = {
    "condensed": "the condensed learngene",
    "paper": "the paper's form: the layers that the criterion chose",
    "paper-middle": "layers from the middle of the collective",
    "paper-front": "layers from the front of the collective",
}
_HELD: Mapping[FisherSource, str] = {
    "collective": "Eq. 9 with the collective's Fisher diagonal",
    "individual": "Eq. 9 with its own Fisher diagonal (Algorithm 1)",
    "none": "fine-tuned, nothing held back (Eq. 6)",
}


def _described(method: Method) -> str:
    if method.form is None:
        return "no transfer at all: whitened patches of the support images, logistic regression"
    if method.adaptation == "scratch":
        return "the condensed form's network, nothing inherited"
    if method.adaptation == "head":
        return f"{_INHERITED[method.form]}; a logistic head on its features (the default)"
    return f"{_INHERITED[method.form]}; {'inherited weights frozen' if method.frozen else _HELD[method.fisher]}"


#: Methods in the order of every table and figure, with what each one is.
METHODS: Mapping[str, str] = {name: _described(method) for name, method in method_table.METHODS.items()}


@dataclass(frozen=True)
class PaperFigures:
    """What the paper reports of one dataset, each with its +- figure.

    Attributes:
        novel: 5-way novel classes, mean of five tasks (Table 3): method -> shots -> accuracy.
        open_world: the collective's accuracy on open-world classes (Table 2).
    """

    novel: Mapping[str, Mapping[int, tuple[float, float]]]
    open_world: tuple[float, float]


#: By the dataset's name: figures of one dataset say nothing about another.
PAPER_FIGURES: Mapping[str, PaperFigures] = {
    "cifar100": PaperFigures(
        novel={
            "learngene (paper, λ = 1000)": {10: (58.86, 3.12), 20: (64.24, 1.89)},
            "DeepEMD (paper)": {10: (58.03, 1.85), 20: (63.69, 2.05)},
        },
        open_world=(45.88, 2.99),
    ),
    "imagenet100": PaperFigures(
        novel={
            "learngene (paper, λ = 1000)": {10: (52.96, 4.84), 20: (60.86, 4.48)},
            "DeepEMD (paper)": {10: (50.93, 2.78), 20: (59.69, 2.47)},
        },
        open_world=(42.40, 2.35),
    ),
}

#: How well unknown images of a stream are recognised; as in :class:`collective_node.records.StreamMetrics`.
Metric = Literal["auroc", "fpr95", "aupr", "oscr", "open_set_accuracy"]
METRICS: tuple[Metric, ...] = get_args(Metric)

#: Follows the notice of the stand-in.
NOT_COMPARABLE = "These figures cannot be compared with the paper's."

#: Sources of images; the first two are real ones.
Source = Literal["folder", "download", "stand-in"]

_FROZEN = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, allow_inf_nan=False)
#: Of a node's file only what is asked for is read.
_PART = ConfigDict(frozen=True, extra="ignore")
_Model = TypeVar("_Model", bound=BaseModel)

Points = float
#: Of results.json, or what a node measured.
_MAX_BYTES = 256 << 20
#: Names of methods, parties, datasets: they stand in tables, figures and file names of whoever reads the results.
Word = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9 ._-]{0,99}$")]


class Dataset(BaseModel):
    """Name and source of the images; ``notice`` is a sentence for every output where they are the stand-in."""

    model_config = _FROZEN

    name: Word
    source: Source
    notice: str | None


class MethodResult(BaseModel):
    """Accuracy of one method at one shot count; ``per_task[n]`` belongs to the run-wide task number n."""

    model_config = _FROZEN

    mean: Percent
    ci95: Points | None
    tasks: int
    per_task: tuple[Percent, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _as_many_as_tasks(self) -> "MethodResult":
        if len(self.per_task) != self.tasks:
            raise ValueError(f"{len(self.per_task)} accuracies are given for {self.tasks} tasks")
        return self


class PairedResult(BaseModel):
    """Difference of two methods on the same tasks, in points."""

    model_config = _FROZEN

    mean: Points
    ci95: Points | None
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


class NodeCurve(BaseModel):
    """One individual's learning curve; ``tasks``: how many are behind it, None: all of its own."""

    model_config = _FROZEN

    epochs: tuple[float, ...]
    accuracy: tuple[Percent, ...]
    tasks: int | None = None


class NodeFacts(BaseModel):
    """How one node ran: ``confinement`` is its own line about what the operating system enforced, ``retain_weight``
    the lambda of Eq. 9 that it used, by method."""

    model_config = _PART

    device: str = "unknown"
    threads: int | None = None
    confinement: str = "unconfined"
    retain_weight: dict[str, float] = {}


class GradientTrend(BaseModel):
    """Eq. 4 and 5: ``rho[layer][task]``, the share of a layer's parameters with a gradient above ``sigma``; None where
    the layer was not there yet."""

    model_config = _FROZEN

    layers: tuple[Word, ...]
    rho: tuple[tuple[float | None, ...], ...]
    sigma: float

    @model_validator(mode="after")
    def _as_many_as_layers(self) -> "GradientTrend":
        if len(self.layers) != len(self.rho) or len({len(row) for row in self.rho}) > 1:
            raise ValueError(f"rho must have one row for each of the {len(self.layers)} layers, all as long")
        return self


class Similarity(BaseModel):
    """The second criterion (arXiv 2305.02279): linear CKA of each convolution with a pseudo-descendant's most similar
    one, 0 to 1, and the ``layers`` that it would choose, numbered from 1."""

    model_config = _FROZEN

    per_layer: tuple[float, ...]
    layers: tuple[int, ...]


class Criterion(BaseModel):
    """Which layers make the learngene.

    Attributes:
        chosen: layers that the form ``paper`` took, numbered from 1.
        settled: of each layer, whether its gradient trend settled.
        found: how many settled ones end at the last layer, which is k where the settings leave it open.
        similarity: None where no pseudo-descendant was trained.
    """

    model_config = _FROZEN

    chosen: tuple[int, ...]
    settled: tuple[bool, ...]
    found: int
    similarity: Similarity | None

    @model_validator(mode="after")
    def _as_many_as_layers(self) -> "Criterion":
        numbers = (*self.chosen, *(self.similarity.layers if self.similarity else ()))
        if not all(number >= 1 for number in numbers):
            raise ValueError("layers are numbered from 1")
        if self.similarity is not None and len(self.similarity.per_layer) != len(self.settled):
            raise ValueError(f"settled must hold each of the {len(self.similarity.per_layer)} layers of the similarity")
        return self

    @property
    def settled_layers(self) -> tuple[int, ...]:
        """Numbers of the settled layers, from 1."""
        return tuple(number for number, found in enumerate(self.settled, start=1) if found)


class Comparison(BaseModel):
    """Open-world cycles with one score and one strategy, from the state after the last task; ``stopped`` says why there
    are fewer than the run's own."""

    model_config = _FROZEN

    score: Score
    strategy: Strategy
    cycles: tuple[CycleFigures, ...]
    stopped: str | None = None


class OpenWorld(BaseModel):
    """The run's own open-world cycles, and what other scores and strategies would have made of them."""

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


class FisherFacts(FisherDescription):
    """A learngene's Fisher diagonal, with its largest and its mean entry."""

    largest: float
    mean: float


class LearngeneFacts(BaseModel):
    """A published learngene: its blocks in one line, and its Fisher diagonal."""

    model_config = _FROZEN

    architecture: str
    fisher: FisherFacts


class CollectiveResult(BaseModel):
    """What the collective reports of itself. ``parameters``: weights by network; ``weights_sha256``: equal for equal
    weights; ``privacy``: what the guarantee of its learngenes rests on, where there is one."""

    model_config = _FROZEN

    tasks: tuple[TaskFigures, ...]
    base_accuracy: Percent | None = None
    known_classes: int | None = None
    condensed_accuracy: Percent | None = None
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


class IndividualMetrics(BaseModel):
    """``metrics.json`` of one individual: method -> shots -> run-wide task number -> accuracy."""

    model_config = _PART

    methods: dict[Word, dict[int, dict[int, Percent]]]
    curves: dict[Word, dict[int, NodeCurve]] = {}
    parameters: dict[Word, int] = {}
    seconds: dict[str, float] = {}


class _Seconds(BaseModel):
    """A node's wall-clock times by name."""

    model_config = _PART

    seconds: dict[str, float]


class Crossing(BaseModel):
    """One thing that went from one party to another. ``recorded_by``: whose records hold it, with the same digest."""

    model_config = _FROZEN

    source: Word = Field(alias="from")
    target: Word = Field(alias="to")
    kind: Word
    bytes: int
    digest: str
    recorded_by: Literal["both", "sender", "receiver"]


class Results(BaseModel):
    """``results.json``, written in format 2 and read in formats 1 and 2.

    Accuracies in per cent, differences in points. All times stand in ``seconds``; apart from
    them and the digests of ``crossings``, two runs of the same settings on one machine are equal, if these ask for no
    privacy: what hides images can never be repeated."""

    model_config = _FROZEN

    format: Literal[2] = 2
    dataset: Dataset
    profile: Word
    seed: int
    methods: dict[Word, dict[int, MethodResult]]
    paired: dict[str, dict[int, PairedResult]]
    collective: CollectiveResult
    curves: dict[Word, dict[int, Curve]]
    individuals: int
    parameters: dict[Word, int]
    crossings: tuple[Crossing, ...]
    confinement: Literal["confined", "unconfined"]
    nodes: dict[Word, NodeFacts]
    machine: dict[str, str | int]
    versions: dict[str, str]
    seconds: dict[str, dict[str, float]]

    _earlier = model_validator(mode="before")(in_format_2)

    @model_validator(mode="after")
    def _fits_together(self) -> "Results":
        for shots in self.shots:
            counts = {by_shots[shots].tasks for by_shots in self.methods.values() if shots in by_shots}
            if len(counts) > 1:
                raise ValueError(f"at {shots} shots, methods have different numbers of tasks")
        return self

    @property
    def paper(self) -> PaperFigures | None:
        """What the paper reports of these images; None where it has no figures of them."""
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
    if not path.is_file():
        raise InputError(f"{run_folder} holds no results.json: it is no run, or one that has not finished")
    try:
        results = Results.model_validate_json(read_given(path, "the results", max_bytes=_MAX_BYTES))
    except ValidationError as error:
        raise InputError(f"{path} is not what this version writes: {fault_line(error)}") from None
    result_bounds.check(results, str(path))
    return results


def collect(run_folder: Path) -> Results:
    """Merge what the nodes of a run stored, write ``results.json`` (atomically) and return it.

    Reads ``settings.json``, ``run.json``, ``world/collective/manifest.json``, and of each node ``metrics.json`` and
    ``crossings.jsonl``. In a simulation one person owns all of it; apart, each site keeps its own.

    Raises:
        InputError: ``run_folder`` is no run.
        RunFailedError: a node's file is missing or wrong, or the result of a task is missing or stands twice.
    """
    settings = read_settings(run_folder).settings
    record = read_record(run_folder)
    individuals = {party: state_folder(run_folder, party) for party in individuals_of(run_folder)}
    if not individuals:
        raise RunFailedError(f"{run_folder} holds no individual; the run ended before its nodes were started")
    center = state_folder(run_folder, "collective")
    states = {"collective": center, **individuals}
    documents = {party: _figures(state) for party, state in states.items()}
    read = {party: state / METRICS_FILE for party, state in states.items()}
    metrics = [_validate(read[party], IndividualMetrics, documents[party]) for party in individuals]
    accuracies = _merge(metrics, settings.target_tasks)
    facts = {party: _validate(read[party], NodeFacts, document) for party, document in documents.items()}
    collective, collective_seconds = _collective(read["collective"], documents["collective"])
    confined = all(fact.confinement.startswith("confined") for fact in facts.values())
    seconds = {"run": record.seconds, "collective": collective_seconds}
    seconds |= {party: found.seconds for party, found in zip(individuals, metrics, strict=True)}
    results = Results(
        dataset=_dataset(run_folder),
        profile=settings.profile,
        seed=settings.seed,
        methods={method: {n: _result(tasks) for n, tasks in by.items()} for method, by in accuracies.items()},
        paired=_paired(accuracies),
        collective=collective,
        curves=_merge_curves(metrics),
        individuals=len(individuals),
        parameters={**collective.parameters, **metrics[0].parameters},
        crossings=tuple(_crossings(center, [*individuals.values()])),
        confinement="confined" if confined else "unconfined",
        nodes=facts,
        machine=_machine(),
        versions=_versions(),
        seconds=seconds,
    )
    write_atomically(run_folder / "results.json", results.to_json())
    return results


def _merge(
    metrics: list[IndividualMetrics], target_tasks: Mapping[int, int]
) -> dict[str, dict[int, dict[int, Percent]]]:
    """method -> shots -> run-wide task number -> accuracy; every method must have every task of every shot count."""
    found = {method for one in metrics for method in one.methods}
    merged: dict[str, dict[int, dict[int, Percent]]] = {}
    for method in [*filter(found.__contains__, METHODS), *sorted(found - METHODS.keys())]:
        merged[method] = {}
        for shots, count in sorted(target_tasks.items()):
            tasks: dict[int, Percent] = {}
            for one in metrics:
                for task, accuracy in one.methods.get(method, {}).get(shots, {}).items():
                    if task in tasks:
                        raise RunFailedError(f"{method}, {shots} shots: two individuals report task {task}")
                    tasks[task] = accuracy
            if set(tasks) != set(range(count)):
                wrong = sorted(set(tasks) ^ set(range(count)))
                raise RunFailedError(
                    f"{method}, {shots} shots: expected the tasks 0 to {count - 1}, differs in {wrong[:5]}"
                )
            merged[method][shots] = dict(sorted(tasks.items()))
    return merged


def _result(tasks: Mapping[int, Percent]) -> MethodResult:
    values = tuple(tasks[task] for task in sorted(tasks))
    interval = mean_interval(values)
    return MethodResult(mean=interval.mean, ci95=interval.ci95, tasks=interval.count, per_task=values)


def pairs(methods: Iterable[str]) -> dict[str, list[tuple[str, str]]]:
    """Which methods are compared on the same tasks: heading -> (first, second), each pair once.

    The default against every other; the chosen layers against those of other positions; each source of the Fisher
    diagonal against the collective's, with the same start; and every other use of a learngene against scratch.
    """
    given = list(methods)
    known = [method_table.METHODS[name] for name in given if name in method_table.METHODS]
    trained = [method for method in known if method.adaptation == "eq9"]
    wanted = {
        "the default against every other": [("condensed", name) for name in given if name != "condensed"],
        "the chosen layers against other positions": [("paper", "paper-middle"), ("paper", "paper-front")],
        "the source of the Fisher diagonal, against the collective's": [
            (method.name, method.start) for method in trained if method.name != method.start
        ],
        "a learngene against none": [(method.name, "scratch") for method in trained],
    }
    found = {title: [pair for pair in group if set(pair) <= set(given)] for title, group in wanted.items()}
    return {title: group for title, group in found.items() if group}


def metric_of(found: StreamMetrics | None, metric: Metric) -> Percent | None:
    """One metric of a stream; None where it could not be measured."""
    value: Percent | None = getattr(found, metric, None)
    return value


def pair_key(first: str, second: str) -> str:
    """The name of a pair in ``paired``."""
    return f"{first}-{second}"


def _paired(accuracies: Mapping[str, Mapping[int, Mapping[int, Percent]]]) -> dict[str, dict[int, PairedResult]]:
    """Every pair at every shot count."""
    paired: dict[str, dict[int, PairedResult]] = {}
    for first, second in [pair for group in pairs(accuracies).values() for pair in group]:
        by_shots = paired.setdefault(pair_key(first, second), {})
        for shots, tasks in accuracies[first].items():
            difference = paired_difference(tasks, accuracies[second].get(shots, {}))
            if difference is not None:
                by_shots[shots] = PairedResult(mean=difference.mean, ci95=difference.ci95, tasks=difference.count)
    return paired


def _merge_curves(metrics: list[IndividualMetrics]) -> dict[str, dict[int, Curve]]:
    """Each individual's curve is a mean over its own tasks, so they are weighted by the numbers of tasks."""
    merged: dict[str, dict[int, Curve]] = {}
    names = dict.fromkeys((method, shots) for one in metrics for method, by in one.curves.items() for shots in by)
    for method, shots in names:
        weighted = [
            (len(one.methods.get(method, {}).get(shots, {})) if curve.tasks is None else curve.tasks, curve)
            for one in metrics
            if (curve := one.curves.get(method, {}).get(shots)) is not None
        ]
        epochs = weighted[0][1].epochs
        if any(curve.epochs != epochs or len(curve.accuracy) != len(epochs) for _, curve in weighted):
            raise RunFailedError(f"{method}, {shots} shots: the individuals' learning curves have different epochs")
        total = sum(weight for weight, _ in weighted)
        if total == 0:
            continue
        accuracy = tuple(
            sum(weight * curve.accuracy[index] for weight, curve in weighted) / total for index in range(len(epochs))
        )
        merged.setdefault(method, {})[shots] = Curve(epochs=epochs, accuracy=accuracy, tasks=total)
    return merged


def _collective(path: Path, document: dict[str, object]) -> tuple[CollectiveResult, dict[str, float]]:
    """The collective's metrics without its times and the digests of what it released, and its times."""
    seconds = dict(_validate(path, _Seconds, {"seconds": document.pop("seconds", {})}).seconds)
    for name, record in _timed(document):
        taken = record.pop("seconds", None)
        if isinstance(taken, int | float):
            seconds[name] = float(taken)
    for name in NodeFacts.model_fields:
        document.pop(name, None)  # stands in `nodes`
    learngenes = document.get("learngenes")
    for learngene in _records([*learngenes.values()] if isinstance(learngenes, dict) else []):
        learngene.pop("release", None)  # stands in `crossings`, the one place for what differs between equal runs
    return _validate(path, CollectiveResult, document), seconds


def _timed(document: Mapping[str, object]) -> Iterator[tuple[str, dict[str, object]]]:
    """Every record of the collective that holds a time, and the name of that time."""
    for task in _records(document.get("tasks")):
        yield f"task {task.get('task')}", task
    for found in _records([document.get("open_world")]):
        for cycle in _records(found.get("cycles")):
            yield f"cycle {cycle.get('cycle')}", cycle
        for comparison in _records(found.get("comparisons")):
            for cycle in _records(comparison.get("cycles")):
                yield f"cycle {cycle.get('cycle')}, {comparison.get('score')}, {comparison.get('strategy')}", cycle


def _records(found: object) -> list[dict[str, object]]:
    """The JSON objects of a list; what is none is refused later, with the whole."""
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []


def _dataset(run_folder: Path) -> Dataset:
    path = run_folder / "world" / "collective" / "manifest.json"
    try:
        found = strict_json.parse_object(path.read_bytes()).get("dataset")
    except (OSError, ValueError) as error:
        raise RunFailedError(f"{path} cannot be read: {error}") from None
    if not isinstance(found, dict):
        raise RunFailedError(f"{path} does not say which dataset it is")
    dataset = _validate(path, Dataset, {"name": found.get("name"), "source": found.get("source"), "notice": None})
    notice = images.notice(dataset.name, dataset.source)
    return dataset.model_copy(update={"notice": f"{notice} {NOT_COMPARABLE}" if notice else None})


#: Fields of a crossing that belong to the log that holds it, not to what crossed.
_OF_ONE_LOG = {"number", "previous", "decision"}


def _crossings(collective: Path, individuals: list[Path]) -> Iterator[Crossing]:
    """Every crossing once: an individual's records in their own order, matched with the collective's by what crossed.

    What only the collective recorded (sent and lost, or received from nobody known) comes last.
    """
    unmatched: dict[Hashable, deque[audit.Crossing]] = {}
    for record in _read_crossings(collective):
        unmatched.setdefault(_crossed(record, record.direction), deque()).append(record)
    for state in individuals:
        for own in _read_crossings(state):
            partners = unmatched.get(_crossed(own, "in" if own.direction == "out" else "out"))
            yield _crossing(own, both=bool(partners))
            if partners:
                partners.popleft()
    left = [record for records in unmatched.values() for record in records]
    for record in sorted(left, key=lambda record: record.number):
        yield _crossing(record, both=False)


def _crossed(record: audit.Crossing, direction: audit.Direction) -> Hashable:
    """What both sides' records of one crossing have in common, and the side that has it."""
    return (direction, record.sender, record.receiver, record.kind, record.bytes, record.digest)


def _crossing(record: audit.Crossing, *, both: bool) -> Crossing:
    side = "sender" if record.direction == "out" else "receiver"
    fields = record.model_dump(by_alias=True, exclude={"time", "direction", *_OF_ONE_LOG})
    return Crossing.model_validate({**fields, "recorded_by": "both" if both else side})


def _read_crossings(state: Path) -> list[audit.Crossing]:
    try:
        return list(audit.read_crossings(state / "crossings.jsonl"))
    except (InputError, MalformedError) as error:
        raise RunFailedError(str(error)) from None


def _figures(state: Path) -> dict[str, object]:
    """What a node says of itself; it may have been taken over, and say anything."""
    try:
        found = read_metrics(state)
    except InputError as error:
        raise RunFailedError(str(error)) from None
    if found is None:
        raise RunFailedError(f"{state / METRICS_FILE} is missing: that party did not finish; its node.log says why")
    return found


def _validate(path: Path, model: type[_Model], document: Mapping[str, object]) -> _Model:
    try:
        return model.model_validate(document)
    except ValidationError as error:
        raise RunFailedError(f"{path}: {fault_line(error)}") from None


def _machine() -> dict[str, str | int]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {"cores": cores, "architecture": platform.machine(), "system": platform.system()}


def _versions() -> dict[str, str]:
    packages = ("learngene", "flwr", "torch", "numpy", "cryptography")
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in packages}}


def describe_settings(settings: RunSettings) -> dict[str, str]:
    """The settings as a reader's table: dotted names and plain values."""
    rows: dict[str, str] = {}
    for name, value in settings.model_dump(mode="json").items():
        if name == "target_tasks":
            rows["target tasks"] = ", ".join(f"{tasks} at {shots} shots" for shots, tasks in value.items())
        elif isinstance(value, dict):
            rows |= {f"{name}.{inner}": _plain(item) for inner, item in value.items()}
        else:
            rows[name.replace("_", " ")] = _plain(value)
    return rows


def _plain(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(_plain(item) for item in value)
    return str(value)
