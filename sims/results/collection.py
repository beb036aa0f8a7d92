"""Collects the metrics that the nodes of a run stored, by run-wide task number, into ``results.json``."""

import os
import platform
from collections import deque
from collections.abc import Hashable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from pydantic.main import IncEx

from collective_node import collective_images
from collective_node.metrics import CollectiveMetrics
from individual_node.metrics import IndividualMetrics, TaskClasses
from protocol.errors import InputError, MalformedError, RunFailedError, fault_line
from protocol.exchange import audit
from protocol.files.atomic import write_atomically
from protocol.node.metrics import METRICS_FILE, Percent, read_metrics
from sims.data import images
from sims.data.division_choice import DivisionChoice
from sims.results.comparison import METHODS, compare
from sims.results.models import CollectiveResult, Crossing, Curve, Dataset, MethodResult, NodeFacts, Results
from sims.results.result_bounds import MOST_CLASSES, MOST_METHODS
from sims.results.statistics import mean_interval
from sims.run.run_folder import individuals_of, read_record, read_settings, state_folder

_Metrics = TypeVar("_Metrics", bound=BaseModel)

#: Follows the notice of the stand-in and of the tuning division.
NOT_COMPARABLE = "These figures cannot be compared with the paper's."


def collect(run_folder: Path) -> Results:
    """Merge the metrics that the nodes of a run stored, write ``results.json`` (atomically) and return it.

    Reads ``settings.json``, ``run.json``, ``world/collective/manifest.json``, and of each node ``metrics.json`` and
    ``crossings.jsonl``. In a simulation one person owns all of it; apart, each site keeps its own.

    Raises:
        InputError: ``run_folder`` is no run.
        RunFailedError: a node's file is missing or wrong, or the result of a task is missing or given twice.
    """
    settings = read_settings(run_folder).settings
    record = read_record(run_folder)
    individuals = {party: state_folder(run_folder, party) for party in individuals_of(run_folder)}
    if not individuals:
        raise RunFailedError(f"{run_folder} holds no individual; the run ended before its nodes were started")
    center = state_folder(run_folder, "collective")
    told = _figures(center, CollectiveMetrics)
    metrics = {party: _figures(state, IndividualMetrics) for party, state in individuals.items()}
    accuracies = _merge([*metrics.values()], settings.target_tasks)
    classes = _merge_classes([*metrics.values()], max(settings.target_tasks.values()))
    peak = record.peak_memory.get
    facts = {"collective": _facts(told, {}, peak("collective"))}
    facts |= {party: _facts(found, found.retain_weight, peak(party)) for party, found in metrics.items()}
    confined = all(fact.confinement.startswith("confined") for fact in facts.values())
    seconds = {"run": record.seconds, "collective": _seconds(told)}
    seconds |= {party: found.seconds for party, found in metrics.items()}
    results = Results(
        dataset=_dataset(run_folder, settings.choice),
        profile=settings.profile,
        seed=settings.seed,
        methods={
            method: {shots: _result(tasks, classes) for shots, tasks in by.items()} for method, by in accuracies.items()
        },
        paired=compare(accuracies, classes),
        task_classes=classes,
        collective=_collective(told),
        curves=_merge_curves([*metrics.values()]),
        individuals=len(individuals),
        parameters=told.parameters,
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
    """Merge the accuracies: method -> shots -> run-wide task number -> accuracy. Every method must have
    every task of every shot count."""
    found = {method for one in metrics for method in one.methods}
    if len(found) > MOST_METHODS:
        raise RunFailedError(f"the individuals report {len(found)} methods; at most {MOST_METHODS} fit into a table")
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


def _merge_classes(metrics: list[IndividualMetrics], count: int) -> tuple[TaskClasses, ...]:
    """Classes of the tasks 0 to ``count - 1``; empty if an individual of an earlier version did not say them, or if
    they are too many for an interval over new classes."""
    merged: dict[int, TaskClasses] = {}
    for one in metrics:
        twice = merged.keys() & one.task_classes.keys()
        if twice:
            raise RunFailedError(f"the classes of the tasks: two individuals report task {min(twice)}")
        merged |= one.task_classes
    if not all(one.task_classes for one in metrics):
        return ()
    if set(merged) != set(range(count)):
        wrong = sorted(set(merged) ^ set(range(count)))
        raise RunFailedError(f"the classes of the tasks 0 to {count - 1} are expected, differs in {wrong[:5]}")
    names = {name for classes in merged.values() for name in classes}
    return tuple(merged[task] for task in range(count)) if len(names) <= MOST_CLASSES else ()


def _result(tasks: Mapping[int, Percent], classes: Sequence[TaskClasses]) -> MethodResult:
    """``classes``: those of each run-wide task, of which these are the first; empty: not known."""
    values = tuple(tasks[task] for task in sorted(tasks))
    interval = mean_interval(values, classes[: len(values)])
    return MethodResult(
        mean=interval.mean,
        ci95_tasks=interval.ci95,
        ci95_classes=interval.ci95_classes,
        tasks=interval.count,
        per_task=values,
    )


def _merge_curves(metrics: list[IndividualMetrics]) -> dict[str, dict[int, Curve]]:
    """Average the individuals' curves. Each is a mean over its own tasks, so it is weighted by their number."""
    merged: dict[str, dict[int, Curve]] = {}
    names = dict.fromkeys((method, shots) for one in metrics for method, by in one.curves.items() for shots in by)
    for method, shots in names:
        weighted = [
            (curve.tasks, curve) for one in metrics if (curve := one.curves.get(method, {}).get(shots)) is not None
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


_SECONDS: IncEx = {"__all__": {"seconds"}}
#: Fields that ``results.json`` holds elsewhere, because they differ between equal runs: times in ``seconds``, how a
#: node ran in ``nodes``, digests of releases in ``crossings``.
_ELSEWHERE: IncEx = {
    "device": True,
    "threads": True,
    "confinement": True,
    "seconds": True,
    "tasks": _SECONDS,
    "open_world": {"cycles": _SECONDS, "comparisons": {"__all__": {"cycles": _SECONDS}}},
    "learngenes": {"__all__": {"release"}},
}


def _collective(told: CollectiveMetrics) -> CollectiveResult:
    return CollectiveResult.model_validate(told.model_dump(exclude=_ELSEWHERE))


def _seconds(told: CollectiveMetrics) -> dict[str, float]:
    """Every wall-clock time of the collective, by name."""
    seconds = dict(told.seconds)
    seconds |= {f"task {task.task}": task.seconds for task in told.tasks}
    seconds |= {f"cycle {cycle.cycle}": cycle.seconds for cycle in told.open_world.cycles}
    for other in told.open_world.comparisons:
        seconds |= {f"cycle {cycle.cycle}, {other.score}, {other.strategy}": cycle.seconds for cycle in other.cycles}
    return seconds


def _facts(
    told: CollectiveMetrics | IndividualMetrics, retain_weight: Mapping[str, float], peak_memory: int | None
) -> NodeFacts:
    return NodeFacts(
        device=told.device,
        threads=told.threads,
        confinement=told.confinement,
        retain_weight=dict(retain_weight),
        peak_memory=peak_memory,
    )


def _dataset(run_folder: Path, choice: DivisionChoice) -> Dataset:
    path = run_folder / "world" / "collective" / "manifest.json"
    try:
        found = collective_images.read_manifest(path.parent).get("dataset")
    except (InputError, ValueError) as error:
        raise RunFailedError(f"{path} cannot be read: {error}") from None
    if not isinstance(found, dict):
        raise RunFailedError(f"{path} does not say which dataset it is")
    try:
        facts = {"name": found.get("name"), "source": found.get("source"), "division": choice, "notice": None}
        dataset = Dataset.model_validate(facts)
    except ValidationError as error:
        raise RunFailedError(f"{path}: {fault_line(error)}") from None
    notice = images.notice(dataset.name, dataset.source, choice)
    return dataset.model_copy(update={"notice": f"{notice} {NOT_COMPARABLE}" if notice else None})


#: Fields of a crossing that belong to its log, not to the message.
_OF_ONE_LOG = {"number", "previous", "decision"}


def _crossings(collective: Path, individuals: list[Path]) -> Iterator[Crossing]:
    """Yield every crossing once: each individual's records in their order, matched with the collective's by content.

    Crossings that only the collective recorded (sent and lost, or received from an unknown sender) come last.
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
    """The fields that both sides' records of one crossing share, with the direction that one side gives it."""
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


def _figures(state: Path, model: type[_Metrics]) -> _Metrics:
    """Read the figures of a node, which may have been taken over and have written anything."""
    try:
        found = read_metrics(state, model)
    except InputError as error:
        raise RunFailedError(str(error)) from None
    if found is None:
        raise RunFailedError(f"{state / METRICS_FILE} is missing: that party did not finish; its node.log says why")
    return found


def _machine() -> dict[str, str | int]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {"cores": cores, "architecture": platform.machine(), "system": platform.system()}


def _versions() -> dict[str, str]:
    packages = ("learngene", "flwr", "torch", "numpy", "cryptography")
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in packages}}
