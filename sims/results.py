"""The result of a run: the nodes' own metrics and records, merged by run-wide task number into ``results.json``."""

import json
import os
import platform
from collections.abc import Iterator, Mapping
from importlib import metadata, resources
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from protocol import audit
from protocol.errors import InputError, RunFailedError, fault_line
from protocol.storage import write_atomically
from sims import images
from sims.run_folder import read_record, read_settings
from sims.settings import RunSettings
from sims.statistics import mean_interval, paired_difference

#: Methods in the order of every table and figure, with what each one is.
METHODS: Mapping[str, str] = {
    "condensed": "the condensed learngene, best adaptation (the default)",
    "condensed-eq9": "the condensed learngene, fine-tuned with Eq. 9 (retain loss with the Fisher diagonal)",
    "paper": "the paper's form: top layers inherited, front layers random, Eq. 9",
    "scratch": "the same network, nothing inherited",
    "floor": "no transfer at all: whitened patches of the support images, logistic regression",
}

#: What the paper reports for CIFAR-100, 5-way novel classes (Table 3): method -> shots -> (mean, its +- figure).
PAPER_FIGURES: Mapping[str, Mapping[int, tuple[float, float]]] = {
    "learngene (paper, λ = 1000)": {10: (58.86, 3.12), 20: (64.24, 1.89)},
    "DeepEMD (paper)": {10: (58.03, 1.85), 20: (63.69, 2.05)},
}

#: Follows the notice of the stand-in.
NOT_COMPARABLE = "These figures cannot be compared with the paper's."

#: Sources of images; the first two are real ones.
Source = Literal["folder", "download", "stand-in"]

_FROZEN = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)
_OPEN = ConfigDict(frozen=True, extra="allow")
_Model = TypeVar("_Model", bound=BaseModel)

Percent = float


class Dataset(BaseModel):
    """Name and source of the images; ``notice`` is a sentence for every output where they are the stand-in."""

    model_config = _FROZEN

    name: str
    source: Source
    notice: str | None


class MethodResult(BaseModel):
    """Accuracy of one method at one shot count; ``per_task[n]`` belongs to the run-wide task number n."""

    model_config = _FROZEN

    mean: Percent
    ci95: Percent | None
    tasks: int
    per_task: tuple[Percent, ...]


class PairedResult(BaseModel):
    """Difference of two methods on the same tasks, in points."""

    model_config = _FROZEN

    mean: Percent
    ci95: Percent | None
    tasks: int


class Curve(BaseModel):
    """Mean accuracy over ``tasks`` target tasks after each of ``epochs``."""

    model_config = _FROZEN

    epochs: tuple[float, ...]
    accuracy: tuple[Percent, ...]
    tasks: int


class NodeCurve(BaseModel):
    """One individual's learning curve; ``tasks``: how many are behind it, None: all of its own."""

    model_config = _OPEN

    epochs: tuple[float, ...]
    accuracy: tuple[Percent, ...]
    tasks: int | None = None


class NodeFacts(BaseModel):
    """How one node ran: ``confinement`` is its own line about what the operating system enforced, ``retain`` the
    lambda of Eq. 9 that it used, by method."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    device: str = "unknown"
    threads: int | None = None
    confinement: str = "unconfined"
    retain: dict[str, float] = {}


class GradientTrend(BaseModel):
    """Eq. 4 and 5: ``rho[layer][task]``, the share of a layer's parameters with a gradient above ``sigma``."""

    model_config = _OPEN

    layers: tuple[str, ...]
    rho: tuple[tuple[float, ...], ...]
    sigma: float


class CollectiveTask(BaseModel):
    """One sequential task of the collective, accuracies on held-out images of the classes known after it."""

    model_config = _OPEN

    task: int
    classes: tuple[str, ...] = ()
    known: int
    steps: int = 0
    accuracy: Percent
    old_accuracy: Percent | None = None


class CollectiveResult(BaseModel):
    """What the collective reports of itself; further fields are kept as they are."""

    model_config = _OPEN

    tasks: tuple[CollectiveTask, ...]
    base_accuracy: Percent | None = None
    condensed_accuracy: Percent | None = None
    gradient_trend: GradientTrend | None = None
    parameters: dict[str, int] = {}


class IndividualMetrics(BaseModel):
    """``metrics.json`` of one individual: method -> shots -> run-wide task number -> accuracy."""

    model_config = _OPEN

    methods: dict[str, dict[int, dict[int, Percent]]]
    curves: dict[str, dict[int, NodeCurve]] = {}
    parameters: dict[str, int] = {}
    seconds: dict[str, float] = {}


class Crossing(BaseModel):
    """One thing that went from one party to another. ``recorded_by``: whose records hold it, with the same digest."""

    model_config = _FROZEN

    source: str = Field(alias="from")
    target: str = Field(alias="to")
    kind: str
    bytes: int
    digest: str
    recorded_by: Literal["both", "sender", "receiver"]


class Results(BaseModel):
    """``results.json``. Accuracies in per cent, differences in points. All times stand in ``seconds``; apart from
    them and the digests of ``crossings``, two runs of the same settings on one machine are equal."""

    model_config = _FROZEN

    format: Literal[1] = 1
    dataset: Dataset
    profile: str
    seed: int
    methods: dict[str, dict[int, MethodResult]]
    paired: dict[str, dict[int, PairedResult]]
    collective: CollectiveResult
    curves: dict[str, dict[int, Curve]]
    individuals: int
    parameters: dict[str, int]
    crossings: tuple[Crossing, ...]
    confinement: Literal["confined", "unconfined"]
    nodes: dict[str, NodeFacts]
    machine: dict[str, str | int]
    versions: dict[str, str]
    seconds: dict[str, dict[str, float]]

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
    text = resources.files("sims").joinpath("results.schema.json").read_text(encoding="utf-8")
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
        return Results.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise InputError(f"{path} is not what this version writes: {fault_line(error)}") from None


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
    nodes = run_folder / "nodes"
    individuals = sorted(nodes.glob("individual-*"), key=_number)
    if not individuals:
        raise RunFailedError(f"{nodes} holds no individual; the run ended before its nodes were started")
    collective, collective_seconds = _collective(nodes / "collective" / "metrics.json")
    metrics = [_read(folder / "metrics.json", IndividualMetrics) for folder in individuals]
    accuracies = _merge(metrics, settings.target_tasks)
    folders = [nodes / "collective", *individuals]
    facts = {folder.name: _read(folder / "metrics.json", NodeFacts) for folder in folders}
    confined = all(fact.confinement.startswith("confined") for fact in facts.values())
    seconds = {"run": record.seconds, "collective": collective_seconds}
    seconds |= {folder.name: found.seconds for folder, found in zip(individuals, metrics, strict=True)}
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
        crossings=tuple(_crossings(nodes / "collective", individuals)),
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
                    if not 0.0 <= accuracy <= 100.0:  # also false for NaN
                        raise RunFailedError(f"{method}, {shots} shots, task {task}: {accuracy} is no accuracy")
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


def _paired(accuracies: Mapping[str, Mapping[int, Mapping[int, Percent]]]) -> dict[str, dict[int, PairedResult]]:
    """The default method against every other one, and each other use of a learngene against scratch."""
    pairs = [("condensed", other) for other in accuracies if other != "condensed"]
    pairs += [("condensed-eq9", "scratch"), ("paper", "scratch")]
    paired: dict[str, dict[int, PairedResult]] = {}
    for first, second in pairs:
        if first not in accuracies or second not in accuracies:
            continue
        by_shots = paired.setdefault(f"{first}-{second}", {})
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


def _collective(path: Path) -> tuple[CollectiveResult, dict[str, float]]:
    """The collective's metrics without its times and the digests of what it released, and its times."""
    document = _read_json(path)
    seconds = {str(name): float(value) for name, value in dict(document.pop("seconds", {})).items()}
    for task in document.get("tasks", []):
        if isinstance(task, dict) and "seconds" in task:
            seconds[f"task {task.get('task')}"] = float(task.pop("seconds"))
    for name in NodeFacts.model_fields:
        document.pop(name, None)  # stands in `nodes`
    for learngene in dict(document.get("learngenes", {})).values():
        learngene.pop("release", None)  # stands in `crossings`, the one place for what differs between equal runs
    result = _validate(path, CollectiveResult, document)
    trend = result.gradient_trend
    if trend and (len(trend.rho) != len(trend.layers) or len({len(row) for row in trend.rho}) > 1):
        raise RunFailedError(f"{path}: gradient_trend.rho must have one row for each of the {len(trend.layers)} layers")
    return result, seconds


def _dataset(run_folder: Path) -> Dataset:
    path = run_folder / "world" / "collective" / "manifest.json"
    found = _read_json(path).get("dataset")
    if not isinstance(found, dict):
        raise RunFailedError(f"{path} does not say which dataset it is")
    dataset = _validate(path, Dataset, {"name": found.get("name"), "source": found.get("source"), "notice": None})
    notice = images.notice(dataset.name, dataset.source)
    return dataset.model_copy(update={"notice": f"{notice} {NOT_COMPARABLE}" if notice else None})


def _crossings(collective: Path, individuals: list[Path]) -> Iterator[Crossing]:
    """Every crossing once: an individual's records in their own order, matched with the collective's by what crossed.

    What only the collective recorded (sent and lost, or received from nobody known) comes last.
    """
    unmatched = _read_crossings(collective)
    for folder in individuals:
        for own in _read_crossings(folder):
            partner = next((other for other in unmatched if _same(own, other)), None)
            if partner is not None:
                unmatched.remove(partner)
            yield _crossing(own, both=partner is not None)
    for left in unmatched:
        yield _crossing(left, both=False)


def _same(one: audit.Crossing, other: audit.Crossing) -> bool:
    """Whether the two sides' records speak of the same thing that crossed."""
    ignored = {"time", "direction"}
    return one.direction != other.direction and one.model_dump(exclude=ignored) == other.model_dump(exclude=ignored)


def _crossing(record: audit.Crossing, *, both: bool) -> Crossing:
    side = "sender" if record.direction == "out" else "receiver"
    fields = record.model_dump(by_alias=True, exclude={"time", "direction"})
    return Crossing.model_validate({**fields, "recorded_by": "both" if both else side})


def _read_crossings(folder: Path) -> list[audit.Crossing]:
    try:
        return audit.read_crossings(folder / "crossings.jsonl")
    except InputError as error:
        raise RunFailedError(str(error)) from None


def _read(path: Path, model: type[_Model]) -> _Model:
    return _validate(path, model, _read_json(path))


def _read_json(path: Path) -> dict:  # type: ignore[type-arg]
    try:
        document = json.loads(path.read_bytes())
    except OSError:
        raise RunFailedError(f"{path} is missing: that party did not finish; its node.log says why") from None
    except ValueError as error:
        raise RunFailedError(f"{path} is no JSON: {error}") from None
    if not isinstance(document, dict):
        raise RunFailedError(f"{path} is no JSON object")
    return document


def _validate(path: Path, model: type[_Model], document: Mapping[str, object]) -> _Model:
    try:
        return model.model_validate(document)
    except ValidationError as error:
        raise RunFailedError(f"{path}: {fault_line(error)}") from None


def _number(folder: Path) -> tuple[int, str]:
    text = folder.name.removeprefix("individual-")
    return (int(text) if text.isdecimal() else 0, folder.name)


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
