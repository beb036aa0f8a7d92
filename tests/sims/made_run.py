"""A run folder with made numbers in the layout that the nodes of a run leave behind."""

import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from sims.run_folder import OpenRun, open_run
from sims.settings import from_run_config

METHODS = {"condensed": 72.0, "condensed-eq9": 68.0, "paper": 51.0, "scratch": 49.0, "floor": 63.0}
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def make_run(
    out: Path,
    *,
    target_tasks: str = "10:12,20:6",
    individuals: int = 2,
    seed: int = 0,
    source: str = "folder",
    finished: bool = True,
    run_id: str = "0" * 32,
) -> Path:
    """Write what two kinds of nodes leave; the accuracies are drawn from ``seed``. Returns the run's folder."""
    settings = from_run_config(
        {"out": str(out), "target-tasks": target_tasks, "individuals": individuals, "seed": seed, "profile": "smoke"}
    )
    run = open_run(settings, now=NOW, new_run_id=lambda: run_id)
    folder = run.folder
    name = "glyphs" if source == "stand-in" else "cifar100"
    _json(folder / "world" / "collective" / "manifest.json", {"dataset": {"name": name, "source": source}})
    _json(folder / "nodes" / "collective" / "metrics.json", collective_metrics())
    generator = np.random.default_rng(seed)
    accuracies = {
        method: {
            shots: {
                task: float(np.clip(mean + generator.normal(0, 7), 0, 100))
                for task in range(settings.target_tasks[shots])
            }
            for shots in settings.shots
        }
        for method, mean in METHODS.items()
    }
    for number in range(1, individuals + 1):
        node = folder / "nodes" / f"individual-{number}"
        own = {
            method: {
                str(shots): {str(t): a for t, a in tasks.items() if t % individuals == number - 1}
                for shots, tasks in by_shots.items()
            }
            for method, by_shots in accuracies.items()
        }
        curve = {"epochs": [1, 2, 3], "accuracy": [20.0 + number, 30.0 + number, 40.0 + number]}
        _json(
            node / "metrics.json",
            {
                "methods": own,
                "curves": {method: {"10": curve} for method in ("condensed-eq9", "paper", "scratch")},
                "parameters": {"individual": 190_000},
                "seconds": {"adapt": 12.5},
            },
        )
    _crossings(folder, individuals)
    if finished:
        run.update(status="finished", seconds={"total": 123.4})
    run.close()
    return folder


def open_again(folder: Path, out: Path) -> OpenRun:
    """Open an unfinished made run as a resumed run does."""
    settings = from_run_config({"out": str(out), "target-tasks": "10:12,20:6", "individuals": 2, "profile": "smoke"})
    return open_run(settings.model_copy(update={"resume": True}), now=NOW)


def collective_metrics() -> dict[str, object]:
    """Thirteen tasks whose deeper layers settle."""
    layers = [f"conv {index}" for index in range(1, 14)]
    rho = [[min(1.0, 0.8 * 0.9 ** (task * index / 6)) for task in range(13)] for index in range(13)]
    return {
        "tasks": [
            {
                "task": task,
                "classes": [f"class_{5 * task + index}" for index in range(5)],
                "known": min(64, 5 * (task + 1)),
                "steps": 390,
                "accuracy": 80.0 - 3 * task,
                "old_accuracy": None if task == 0 else 78.0 - 3 * task,
                "seconds": 9.0,
            }
            for task in range(13)
        ],
        "base_accuracy": 37.4,
        "condensed_accuracy": 50.3,
        "gradient_trend": {"layers": layers, "rho": rho, "sigma": 1.5e-4},
        "fisher": {"estimator": "sampled", "samples": 1024},
        "learngenes": {"condensed": {"release": "a" * 64, "fisher": {"samples": 1024}}},
        "parameters": {"collective": 1_900_000, "condensed": 190_000},
        "seconds": {"train": 100.0, "condense": 28.0, "fisher": 2.0},
    }


def record(direction: str, source: str, target: str, kind: str, time: int, size: int = 512) -> dict[str, object]:
    """One line of ``crossings.jsonl``; the digest belongs to sender, receiver and kind."""
    digest = hashlib.sha256(f"{source} {target} {kind}".encode()).hexdigest()
    return {
        "time": time,
        "direction": direction,
        "from": source,
        "to": target,
        "kind": kind,
        "bytes": size,
        "digest": digest,
    }


def _crossings(folder: Path, individuals: int) -> None:
    lines: dict[str, list[str]] = {"collective": []}
    for number in range(1, individuals + 1):
        name = f"individual-{number}"
        for step, (source, target, kind) in enumerate(
            [
                (name, "collective", "request"),
                ("collective", name, "release"),
                ("collective", name, "grant"),
                ("collective", name, "blob"),
                (name, "collective", "receipt"),
            ]
        ):
            # Two individuals take turns, so that the order of time mixes them.
            time = 1000 + 10 * step + number
            size = 760_000 if kind == "blob" else 900
            lines.setdefault(source, []).append(json.dumps(record("out", source, target, kind, time, size)))
            lines.setdefault(target, []).append(json.dumps(record("in", source, target, kind, time + 1, size)))
    for name, own in lines.items():
        (folder / "nodes" / name / "crossings.jsonl").write_text("\n".join(own) + "\n", encoding="utf-8")


def _json(path: Path, document: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document), encoding="utf-8")
