"""The report of a run: one HTML file that holds everything, figures included, and opens anywhere."""

import base64
import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from statistics import stdev

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from individual_node.method_table import name_and_change
from protocol.errors import InputError
from protocol.files.atomic import write_atomically
from protocol.files.user_files import read_given
from protocol.visible_text import visible_line
from sims.leakage import leakage_figures, leakage_results
from sims.leakage.leakage_results import Leakage
from sims.results.comparison import DEFAULT, METHODS, pair_key, pairs
from sims.results.descents import grid_rows
from sims.results.figures import DOTS_PER_INCH, FIGURES
from sims.results.models import METRICS, Results, chance_of, level_of, load, metric_of
from sims.results.privacy_table import PRIVACY_FIGURE
from sims.results.sizes import size_rows
from sims.results.sizes_figure import SIZES_FIGURE, draw_sizes
from sims.results.wording import (
    CHANCE_ROWS,
    CLASSES_UNKNOWN,
    METRIC_NAMES,
    WHICH_INTERVAL,
    change_text,
    describe_settings,
    guarantee_sentences,
    intervals_text,
    kind_label,
    layers_text,
    number_text,
    pair_label,
    verdict,
)
from sims.run.reach import SENTENCES
from sims.run.run_folder import read_record, read_settings

#: Meaning of `unconfined`, for a reader of the report.
UNCONFINED = (
    "The node processes ran with the ordinary rights of one user of one computer: the operating system did not stop "
    "one of them from opening another party's folder. That no picture crossed rests here on the code that ran, on the "
    "separate processes and on the record of crossings below, not on the kernel. A simulation on one machine shows "
    "how the parties are separated; it is not a boundary against hostile code."
)

#: Meaning of `confined`, for a reader of the report.
CONFINED = (
    "The operating system kept every node process to its own folders and its one socket: Landlock and seccomp, applied "
    "before the node's first thread and tried out in the process itself. Flower's processes of a simulation are not "
    "confined, and all of them run as one user: hostile app code is another matter, which `learngene boundary` tries "
    "on a deployment."
)

#: Scale at which the widest figure fills the page.
_CSS_PIXELS_PER_INCH = 84
_PNG, _LARGEST_FIGURE = b"\x89PNG\r\n\x1a\n", 32 << 20
_CAPTIONS = {
    "accuracy.png": "Mean accuracy of every method. Thick bars: 95 % over target tasks, for these classes and images; "
    "thin bars: 95 % over new classes and images.",
    SIZES_FIGURE: "Mean accuracy against weights (logarithmic), for each method one line over its sizes. Thick bars: "
    "95 % over target tasks, for these classes and images; thin bars: 95 % over new classes and images.",
    "curves.png": "Mean accuracy over the first target tasks while the individuals adapt, on test images. Without "
    "intervals: the methods have the same tasks, on which the table compares them.",
    "tasks.png": "Accuracy on held-out images after each task. It falls by forgetting, and because there are more "
    "classes to confuse.",
    "open_world_scores.png": "How often an unknown image of the stream scores above a known one (AUROC), by score.",
    "open_world_accuracy.png": "Each row from before (hollow) to after (full) a cycle's training; this run in colour.",
    PRIVACY_FIGURE: "Mean accuracy of the methods against epsilon, over runs of one experiment. Bars: 95 % intervals, "
    "for these classes: over training seeds where an epsilon has several runs, else over the target tasks of its run.",
    "gradient_trend.png": "Share of each layer's parameters with a large gradient, layer by task (Eq. 4 and 5), and "
    "what the criteria made of it.",
    "leakage_membership.png": "Membership inference on logarithmic axes: how many training images each attack finds at "
    "how many false alarms, mean over the shadow collectives as targets; on the grey line it guesses.",
    "leakage_reconstruction.png": "Left: how images behind a Fisher diagonal correlate with it, others, and what is "
    "known without it. Right: how well they are told apart.",
}


@dataclass(frozen=True)
class Figure:
    """One image of the report; ``uri`` is a data URI, ``width`` in CSS pixels: letters are as large in every figure."""

    name: str
    uri: str
    caption: str
    width: int


def write(run_folder: Path) -> Path:
    """Write the figures and ``report.html`` of a run that has its ``results.json``; returns the report's path.

    Raises:
        InputError: the folder is no run, or has no results yet.
    """
    results = load(run_folder)
    figures = {}
    for name, draw in {**FIGURES, SIZES_FIGURE: draw_sizes}.items():
        image = draw(results)
        if image is None:  # the page says why
            continue
        write_atomically(run_folder / name, image)
        figures[name] = _embedded(name, image)
    if os.path.lexists(run_folder / PRIVACY_FIGURE):  # `learngene privacy` has put it there
        figures[PRIVACY_FIGURE] = _embedded(PRIVACY_FIGURE, _read_figure(run_folder / PRIVACY_FIGURE))
    leakage = leakage_results.of_run(run_folder)
    if leakage is not None:
        for name, draw_leakage in leakage_figures.FIGURES.items():
            image = draw_leakage(leakage)
            if image is not None:  # the file stands with the measurement
                figures[name] = _embedded(name, image)
    path = run_folder / "report.html"
    write_atomically(path, render(run_folder, results, figures, leakage).encode())
    return path


def _shown(value: object) -> object:
    """A value as the template shows it: characters that reorder or hide text are visible; the page escapes the rest."""
    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    return visible_line(value, length=10 * len(value))


def _read_figure(path: Path) -> bytes:
    """Read a PNG of the run folder and no other file: the page may be passed on, and a link may lead anywhere.

    Raises:
        InputError: it is no PNG file of the run folder.
    """
    image = read_given(path, "a figure", max_bytes=_LARGEST_FIGURE)
    if not image.startswith(_PNG):
        raise InputError(f"{path} is no PNG picture; remove it, and `learngene privacy` makes it again")
    return image


def _embedded(name: str, image: bytes) -> Figure:
    uri = "data:image/png;base64," + base64.b64encode(image).decode("ascii")
    width = int.from_bytes(image[16:20])  # the first field of a PNG's header chunk
    return Figure(name, uri, _CAPTIONS[name], round(width / DOTS_PER_INCH * _CSS_PIXELS_PER_INCH))


def render(run_folder: Path, results: Results, figures: Mapping[str, Figure], leakage: Leakage | None = None) -> str:
    """The report's HTML; everything that comes from a file is escaped. ``leakage``: None if nothing was measured."""
    kept, record = read_settings(run_folder), read_record(run_folder)
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=_shown
    )
    environment.filters["intervals"] = intervals_text
    environment.filters["number"] = number_text
    environment.filters["verdict"] = verdict
    environment.filters["layers"] = layers_text
    environment.filters["measure"] = leakage_results.measure_text
    environment.filters["thousands"] = "{:,}".format
    template = environment.from_string(
        resources.files("sims.results").joinpath("report.html").read_text(encoding="utf-8")
    )
    from_individuals = [crossing for crossing in results.crossings if crossing.source != "collective"]
    groups = pairs(results.methods)
    return template.render(
        results=results,
        collective=results.collective,
        open_world=results.collective.open_world,
        criterion=results.collective.criterion,
        record=record,
        figures=figures,
        headline=headline(results),
        descriptions=METHODS,
        default=DEFAULT,
        which_interval=WHICH_INTERVAL,
        classes_unknown=CLASSES_UNKNOWN,
        paired={
            title: [(pair_label(*pair), results.paired.get(pair_key(*pair), {})) for pair in group]
            for title, group in groups.items()
        },
        sizes=size_rows(results),
        grid=grid_rows(results),
        sized={name for name in results.methods if name_and_change(name)[1]},
        comparisons=sum(len(group) for group in groups.values()) * len(results.shots),
        guarantee=[] if results.collective.privacy is None else guarantee_sentences(results.collective.privacy),
        kind_label=kind_label,
        change=change_text,
        metric_of=metric_of,
        chance_of=chance_of,
        level_of=level_of,
        chance_rows=CHANCE_ROWS,
        metrics={metric: METRIC_NAMES[metric] for metric in METRICS},
        settings=describe_settings(kept.settings),
        task_counts={shots: results.task_count(shots) for shots in results.shots},
        command=kept.settings.command(),
        unconfined=UNCONFINED,
        confined=CONFINED,
        reach="" if record.reach is None else SENTENCES[record.reach],
        seconds=[(f"{who}: {what}", value) for who, by in results.seconds.items() for what, value in by.items()],
        individual_bytes=sum(crossing.bytes for crossing in from_individuals),
        individual_kinds=sorted({crossing.kind for crossing in from_individuals}),
        spread={
            shots: stdev(found.per_task) for shots, found in results.methods.get(DEFAULT, {}).items() if found.tasks > 1
        },
        leakage=leakage,
        leakage_sentences=[] if leakage is None else leakage_results.sentences(leakage),
        one_sided=[crossing for crossing in results.crossings if crossing.recorded_by != "both"],
    )


def headline(results: Results) -> list[str]:
    """The result in a few sentences, each number with its interval and its count of tasks."""
    sentences = []
    for shots, found in results.methods.get(DEFAULT, {}).items():
        reached = f"{intervals_text(found)} % ({found.tasks} tasks)"
        text = f"With {shots} images a class the {DEFAULT} learngene reaches {reached}"
        against = [
            f"{intervals_text(paired, sign=True)} points against {other} ({verdict(paired)})"
            for other in ("direct", "random", "scratch", "floor")
            if (paired := results.paired.get(pair_key(DEFAULT, other), {}).get(shots)) is not None
        ]
        sentences.append(text + ("; on the same tasks " + ", ".join(against) if against else "") + ".")
    if sentences:
        sentences.append(WHICH_INTERVAL)
    return sentences + open_world_sentences(results)


def open_world_sentences(results: Results) -> list[str]:
    """The result of the open world in a sentence; none if no cycle was run."""
    cycles = results.collective.open_world.cycles
    if not cycles:
        return []
    first, last = cycles[0], cycles[-1]
    told = metric_of((first.before or {}).get(first.score), "auroc")
    parts = []
    if told is not None:
        parts.append(f"told unknown images from known ones with an AUROC of {number_text(told)} % (50 by chance)")
    count = sum(len(cycle.classes) for cycle in cycles)
    learned = f"learned {count} new class{'' if count == 1 else 'es'}"
    if last.open_accuracy_after is not None:
        learned += f" to an accuracy of {number_text(last.open_accuracy_after)} % among all {last.known} known ones"
    if last.open_only_accuracy_after is not None:
        learned += f" ({number_text(last.open_only_accuracy_after)} % among the new ones alone)"
    kept = f"from {number_text(first.base_accuracy_before)} to {number_text(last.base_accuracy_after)} %"
    parts += [learned, f"went {kept} on its base classes"]
    how = kind_label(first.score, first.strategy)
    return [f"In the open world the collective ({how}) {', '.join(parts[:-1])}, and {parts[-1]}."]
