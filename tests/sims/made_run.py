"""A run folder with made numbers in the layout that the nodes of a run leave behind."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from protocol.encoding import canonical_json
from protocol.exchange.audit import ALLOWED, NO_LINE
from sims.run.options import Value
from sims.run.run_folder import OpenRun, open_prepared, prepare
from sims.run.settings import RunSettings, from_run_config

VARIANTS = ("", "-individual", "-none", "-frozen", "-head")
#: The methods that run where no others are asked for; with the accuracy around which theirs are drawn.
METHODS = {
    "condensed": 72.0,
    "direct": 71.0,
    "random": 47.0,
    "scratch": 49.0,
    "whole": 75.0,
    "condensed-eq9": 68.0,
    "paper": 51.0,
    "paper-scratch": 50.0,
    "floor": 63.0,
}
#: Every method that there is.
ALL_METHODS = {
    "condensed": 72.0,
    "direct": 71.0,
    "direct-inherited": 71.5,
    "random": 47.0,
    "scratch": 49.0,
    "scratch-head": 52.0,
    "whole": 75.0,
    **{f"condensed-eq9{variant}": 68.0 - 2 * number for number, variant in enumerate(VARIANTS)},
    **{f"paper{variant}": 51.0 - number for number, variant in enumerate(VARIANTS)},
    "paper-scratch": 50.0,
    "paper-scratch-head": 52.5,
    **{f"paper-middle{variant}": 49.5 + number for number, variant in enumerate(VARIANTS)},
    "paper-middle-scratch": 48.0,
    "paper-middle-scratch-head": 48.5,
    **{f"paper-front{variant}": 53.0 - number for number, variant in enumerate(VARIANTS)},
    "paper-front-scratch": 50.5,
    "paper-front-scratch-head": 49.5,
    "floor": 63.0,
}
#: The learning curve of scratch in the first individual begins one above the first of them.
LEVELS = (20.0, 30.0, 40.0)
#: How every node ran.
CIRCUMSTANCES = {"device": "cpu", "threads": 1, "confinement": "unconfined"}
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
    methods: Mapping[str, float] = METHODS,
    dataset: str = "cifar100",
    division: str = "own",
) -> Path:
    """Write what two kinds of nodes leave; the accuracies are drawn from ``seed``. Returns the run's folder."""
    config: dict[str, Value] = {
        "out": str(out),
        "target-tasks": target_tasks,
        "individuals": individuals,
        "seed": seed,
        "profile": "smoke",
        "division": division,
    }
    settings = from_run_config(config)
    run = open_run(settings, run_id=run_id)
    folder = run.folder
    name = settings.choice.dataset_name("glyphs" if source == "stand-in" else dataset)
    _json(folder / "world" / "collective" / "manifest.json", {"dataset": {"name": name, "source": source}})
    _json(folder / "nodes" / "collective" / "state" / "metrics.json", collective_metrics(seed))
    generator = np.random.default_rng(seed)
    accuracies = {
        method: {
            shots: {
                task: float(np.clip(mean + generator.normal(0, 7), 0, 100))
                for task in range(settings.target_tasks[shots])
            }
            for shots in settings.shots
        }
        for method, mean in methods.items()
    }
    drawn = np.random.default_rng([seed, 2])
    classes = [
        [str(name) for name in drawn.choice(20, 5, replace=False)] for _ in range(max(settings.target_tasks.values()))
    ]
    for number in range(1, individuals + 1):
        node = folder / "nodes" / f"individual-{number}" / "state"
        own = {
            method: {
                str(shots): {str(t): a for t, a in tasks.items() if t % individuals == number - 1}
                for shots, tasks in by_shots.items()
            }
            for method, by_shots in accuracies.items()
        }
        without = ("condensed", "direct", "direct-inherited", "whole", "random", "floor")
        trained = [method for method in methods if method not in without and not method.endswith("-head")]
        _json(
            node / "metrics.json",
            {
                "methods": own,
                "task_classes": {task: classes[task] for task in range(number - 1, len(classes), individuals)},
                "curves": {
                    method: {
                        "10": {
                            "tasks": len(own[method]["10"]),
                            "epochs": [1, 2, 3],
                            "accuracy": [level + number + (methods[method] - methods["scratch"]) for level in LEVELS],
                        }
                    }
                    for method in trained
                },
                "retain_weight": {},
                "inherited": {"condensed": "3 -> 16p -> 32p -> 64p -> 64p | 64 -> 64 -> 64p"},
                "revocation_status": {},
                **CIRCUMSTANCES,
                "seconds": {"adapt": 12.5},
            },
        )
    _crossings(folder, individuals)
    if finished:
        run.update(status="finished", seconds={"total": 123.4})
    run.close()
    return folder


def open_run(settings: RunSettings, *, now: datetime = NOW, run_id: str | None = None) -> OpenRun:
    """Open the folder that the settings ask for, as a run does that is given no folder with settings in it."""
    how = {} if run_id is None else {"new_run_id": lambda: run_id}
    return open_prepared(prepare(settings, now=now), resume=settings.resume, now=now, **how)


def open_again(folder: Path, out: Path) -> OpenRun:
    """Open an unfinished made run as a resumed run does."""
    settings = from_run_config({"out": str(out), "target-tasks": "10:12,20:6", "individuals": 2, "profile": "smoke"})
    return open_run(settings.model_copy(update={"resume": True}))


def collective_metrics(seed: int = 0) -> dict[str, object]:
    """Thirteen tasks whose deeper layers settle, one layer that the network got after four of them, and two open-world
    cycles, tried with another score and two other strategies as well."""
    layers = [f"conv {index}" for index in range(1, 14)]
    rho: list[list[float | None]] = [[0.8 * 0.95 ** (task * index / 3) for task in range(13)] for index in range(13)]
    rho[5][:4] = [None] * 4
    shift = float(np.random.default_rng([seed, 1]).normal(0, 1))
    tried = (("energy", "replay"), ("max-logit", "ewc"), ("max-logit", "none"))
    return {
        "tasks": [
            {
                "task": task,
                "classes": [f"class_{5 * task + index}" for index in range(5)],
                "known": min(64, 5 * (task + 1)),
                "steps": 390,
                "loss": 2.5,
                "accuracy": 80.0 - 3 * task + shift,
                "old_accuracy": None if task == 0 else 78.0 - 3 * task + shift,
                "widths": [64] * 13,
                "seconds": 9.0,
            }
            for task in range(13)
        ],
        "base_accuracy": cycles("max-logit", "replay", shift)[-1]["base_accuracy_after"],
        "known_classes": 80,
        "condensed_accuracy": 50.3,
        "gradient_trend": {"layers": layers, "rho": rho, "sigma": 1.5e-4},
        "criterion": {
            "chosen": [11, 12, 13],
            "settled": [index > 7 for index in range(13)],
            "found": 5,
            "similarity": {"per_layer": [0.9 - 0.05 * abs(index - 9) for index in range(13)], "layers": [9, 10, 11]},
        },
        "open_world": {
            "cycles": cycles("max-logit", "replay", shift),
            "comparisons": [
                {"score": score, "strategy": strategy, "cycles": cycles(score, strategy, shift), "stopped": None}
                for score, strategy in tried
            ],
        },
        "learngenes": {
            "condensed": {
                "architecture": "3 -> 16p -> 32p -> 64p -> 64p | 64 -> 64 -> 64p",
                "release": "a" * 64,
                "fisher": {
                    "source": "collective",
                    "estimator": "sampled",
                    "samples": 1024,
                    "clip_micro": 0,
                    "largest": 0.25,
                    "mean": 1e-4,
                },
                "dtype": "bfloat16",
                "bytes": 1_234_567,
                "sizes": [],
            }
        },
        "parameters": {"collective": 1_900_000, "condensed": 190_000},
        "weights_sha256": "b" * 64,
        **CIRCUMSTANCES,
        "seconds": {"train": 100.0, "condense": 28.0, "fisher": 2.0},
    }


def cycles(score: str, strategy: str, shift: float = 0.0) -> list[dict[str, object]]:
    """Two cycles: what each strategy keeps differs, and so does how well each score tells."""
    learned = {"replay": 41.0, "ewc": 38.0, "none": 55.0}[strategy] + shift
    lost = {"replay": 1.5, "ewc": 9.0, "none": 22.0}[strategy]

    def stream(after: bool, number: int) -> dict[str, object]:
        base = {"msp": 70.5, "max-logit": 72.0, "energy": 71.8, "gen": 71.2, "fdbd": 69.3}
        base |= {"relative-mahalanobis": 64.0, "nearest-neighbour": 61}
        known, unknown, right = 1600, 900 - 100 * number, 61.0 + shift - 2 * after
        return {
            name: {
                "known": known,
                "unknown": unknown,
                "auroc": level + shift - (2.5 if after else 0.0) - number,
                "fpr95": 82.0 - shift,
                "aupr": level - 10.0,
                "oscr": level / 2 + shift,
                "open_set_accuracy": level - 25.0,
                "chance": {
                    "auroc": 50.0,
                    "fpr95": 95.0,
                    "aupr": 100 * unknown / (known + unknown),
                    "oscr": right / 2,
                    "all_flagged": 100 * unknown / (known + unknown),
                    "none_flagged": right * known / (known + unknown),
                },
            }
            for name, level in base.items()
        }

    return [
        {
            "cycle": number,
            "score": score,
            "strategy": strategy,
            "threshold": -3.25 + number,
            "stream": 2500,
            "unknown_set": 410 - 30 * number,
            "truly_unknown": 300 - 30 * number,
            "named": 800,
            "dismissed": 140,
            "classes": [f"open_{8 * number + index}" for index in range(8)],
            "known": 64 + 8 * (number + 1),
            "before": stream(False, number),
            "after": stream(True, number),
            "open_accuracy_before": 0.0 if number == 0 else learned / 2,
            "open_accuracy_after": learned - 4 * number,
            "open_only_accuracy_before": 0.0 if number == 0 else 11 + learned / 2,
            "open_only_accuracy_after": 13 + learned - 4 * number,
            "old_open_accuracy_before": None if number == 0 else learned,
            "old_open_accuracy_after": None if number == 0 else learned - lost,
            "base_accuracy_before": 60.0 - lost * number + shift,
            "base_accuracy_after": 60.0 - lost * (number + 1) + shift,
            "retain_weight": 100.0 if strategy == "ewc" else None,
            "steps": 1200,
            "seconds": 30.0,
        }
        for number in range(2)
    ]


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
    records: dict[str, list[dict[str, object]]] = {"collective": []}
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
            records.setdefault(source, []).append(record("out", source, target, kind, time, size))
            records.setdefault(target, []).append(record("in", source, target, kind, time + 1, size))
    for name, own in records.items():
        (folder / "nodes" / name / "state" / "crossings.jsonl").write_bytes(chained(own))


def chained(records: Sequence[dict[str, object]]) -> bytes:
    """A whole log of crossings: each line numbered, and chained to the one before."""
    lines, previous = [], NO_LINE
    for number, one in enumerate(records, start=1):
        line = canonical_json.encode({**one, "number": number, "decision": ALLOWED, "previous": previous})
        lines.append(line + b"\n")
        previous = hashlib.sha256(line).hexdigest()
    return b"".join(lines)


def _json(path: Path, document: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document), encoding="utf-8")


def edit(path: Path, change: Callable[[Any], object]) -> None:
    """Change a JSON file in place."""
    document = json.loads(path.read_text(encoding="utf-8"))
    change(document)
    path.write_text(json.dumps(document), encoding="utf-8")
