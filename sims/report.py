"""The report of a run: one HTML file that holds everything, figures included, and opens anywhere."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from statistics import stdev

from jinja2 import Environment, StrictUndefined

from protocol.storage import write_atomically
from sims.figures import FIGURES
from sims.results import METHODS, PAPER_FIGURES, Results, describe_settings, load
from sims.run_folder import read_record, read_settings
from sims.wording import interval_text, pair_label, verdict

#: What `unconfined` means, in words for a reader of any report.
UNCONFINED = (
    "The node processes ran with the ordinary rights of one user of one computer: the operating system did not stop "
    "one of them from opening another party's folder. That no picture crossed rests here on the code that ran, on the "
    "separate processes and on the record of crossings below, not on the kernel. A simulation on one machine shows "
    "how the parties are separated; it is not a boundary against hostile code."
)

_CAPTIONS = {
    "accuracy.png": "Mean accuracy of every method with its 95 % interval over the target tasks.",
    "curves.png": "Mean accuracy over the target tasks while the individuals adapt.",
    "gradient_trend.png": "Share of each layer's parameters with a large gradient, layer by task (Eq. 4 and 5).",
}


@dataclass(frozen=True)
class Figure:
    """One image of the report; ``uri`` is a data URI."""

    name: str
    uri: str
    caption: str


def write(run_folder: Path) -> Path:
    """Write the figures and ``report.html`` of a run that has its ``results.json``; returns the report's path.

    Raises:
        InputError: the folder is no run, or has no results yet.
    """
    results = load(run_folder)
    figures = []
    for name, draw in FIGURES.items():
        image = draw(results)
        write_atomically(run_folder / name, image)
        uri = "data:image/png;base64," + base64.b64encode(image).decode("ascii")
        figures.append(Figure(name, uri, _CAPTIONS[name]))
    path = run_folder / "report.html"
    write_atomically(path, render(run_folder, results, figures).encode())
    return path


def render(run_folder: Path, results: Results, figures: Sequence[Figure]) -> str:
    """The report's HTML; everything that comes from a file is escaped."""
    kept, record = read_settings(run_folder), read_record(run_folder)
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["interval"] = interval_text
    environment.filters["verdict"] = verdict
    environment.filters["pair_label"] = lambda pair: pair_label(pair, results.methods)
    environment.filters["thousands"] = lambda number: f"{number:,}".replace(",", "\u202f")
    template = environment.from_string(resources.files("sims").joinpath("report.html").read_text(encoding="utf-8"))
    from_individuals = [crossing for crossing in results.crossings if crossing.source != "collective"]
    return template.render(
        results=results,
        record=record,
        figures=figures,
        headline=headline(results),
        descriptions=METHODS,
        paper=PAPER_FIGURES,
        settings=describe_settings(kept.settings),
        task_counts={shots: results.task_count(shots) for shots in results.shots},
        command=kept.settings.command(),
        unconfined=UNCONFINED,
        seconds=[(f"{who}: {what}", value) for who, by in results.seconds.items() for what, value in by.items()],
        individual_bytes=sum(crossing.bytes for crossing in from_individuals),
        individual_kinds=sorted({crossing.kind for crossing in from_individuals}),
        spread={
            shots: stdev(found.per_task)
            for shots, found in results.methods.get("condensed", {}).items()
            if found.tasks > 1
        },
        one_sided=[crossing for crossing in results.crossings if crossing.recorded_by != "both"],
    )


def headline(results: Results) -> list[str]:
    """The result in a few sentences, each number with its interval and its count of tasks."""
    sentences = []
    for shots, found in results.methods.get("condensed", {}).items():
        reached = f"{interval_text(found)} % ({found.tasks} tasks)"
        text = f"With {shots} images a class the condensed learngene reaches {reached}"
        against = [
            f"{interval_text(paired, sign=True)} points against {other} ({verdict(paired)})"
            for other in ("scratch", "floor")
            if (paired := results.paired.get(f"condensed-{other}", {}).get(shots)) is not None
        ]
        sentences.append(text + ("; on the same tasks " + ", ".join(against) if against else "") + ".")
    return sentences
