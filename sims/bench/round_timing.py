"""Times a whole simulated run beside the work that it is for, and says where the rest of the time goes."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from protocol.errors import RunFailedError
from protocol.node.events import Observer
from sims.bench.rows import Clock, Row, row
from sims.run.run_folder import read_record

#: What a run is for; every other cause of its time is overhead.
WORK = ("evolving", "adapting")
#: Options of the run by default.
SMOKE = ("cifar100", "--profile", "smoke", "--stand-in")


def measure(repeats: int, clock: Clock, observe: Observer, options: Sequence[str] = SMOKE) -> list[Row]:
    """The rows of ``learngene bench round``.

    Args:
        repeats: of the run.
        observe: progress.
        options: of ``learngene run``.
    """
    runs = []
    for repeat in range(repeats):
        observe(repeat, repeats, f"learngene run {' '.join(options)}")
        runs.append(causes_of_a_run(options, clock))
    wall = [sum(causes.values()) for causes in runs]
    work = [sum(causes[name] for name in WORK) for causes in runs]
    named = " ".join(options[:3])
    return [
        row(f"{named}: the whole run, beside the work of its nodes", wall, work, "s", "20 s more at most"),
        *(
            row(f"{named}: {cause}, beside the whole run", [causes[cause] for causes in runs], wall, "s")
            for cause in runs[0]
        ),
    ]


def causes_of_a_run(options: Sequence[str], clock: Clock) -> dict[str, float]:
    """Seconds of a run by cause, which together are all of its wall-clock time.

    Raises:
        RunFailedError: the run failed.
    """
    with tempfile.TemporaryDirectory(prefix="learngene-bench-") as folder:
        command = [sys.executable, "-m", "protocol.commands.learngene", "run", *options, "--out", folder]
        started = clock()
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        wall = clock() - started
        if done.returncode != 0:
            last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
            raise RunFailedError(f"learngene run ended with code {done.returncode}: {''.join(last)}")
        [run] = [path.parent for path in Path(folder).glob("*/run.json")]
        return causes(wall, read_record(run).seconds, _events(run))


def causes(wall: float, seconds: Mapping[str, float], events: Sequence[tuple[float, str]]) -> dict[str, float]:
    """Seconds of a run by cause.

    Args:
        wall: of the whole command.
        seconds: of the run's steps, as ``run.json`` has them.
        events: time and text of the run's events.
    """

    def at(words: str) -> float:
        for time, text in events:
            if words in text:
                return time
        raise RunFailedError(f"the run has no event {words!r}")

    ready, evolving = at("node processes"), at("evolves")
    inherited, adapting, complete = at("inherited"), at("individuals adapt"), at("round is complete")
    report = at("report: ") - complete
    known = {
        "reading and dividing the images": seconds["world"],
        "starting the nodes": seconds["start"] + evolving - ready,
        "evolving": inherited - evolving,
        "exchanging learngenes": adapting - inherited,
        "adapting": complete - adapting,
        "results and report": report,
    }
    return {"starting and ending Flower and Ray": wall - sum(known.values()), **known}


def _events(run: Path) -> list[tuple[float, str]]:
    lines = (run / "events.jsonl").read_text(encoding="utf-8").splitlines()
    return [(line["time"], line["text"]) for line in map(json.loads, lines) if line["event"] == "run"]
