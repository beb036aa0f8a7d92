"""The figures of a run as PNG bytes: accuracies, learning curves, the open world and the gradient trend."""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np

from collective_node.records import CycleFigures
from individual_node.method_table import METHODS, FisherSource, Method, name_and_change, scratch_of
from protocol.learngene.architecture import Form
from sims.results.models import Results, metric_of
from sims.results.plotting import (
    Artist,
    Axes,
    Figure,
    Line2D,
    MaxNLocator,
    Patch,
    Rectangle,
    as_delivered,
    png_of,
)
from sims.results.wording import change_text, kind_label, number_text

_BLUE, _SKY, _GREEN, _ORANGE, _RED, _PURPLE = "#0072B2", "#56B4E9", "#009E73", "#E69F00", "#D55E00", "#CC79A7"
_GREY, _BLACK, _LIGHT = "#7F7F7F", "#000000", "#DDDDDD"
_YELLOW, _PALE, _SILVER, _INDIGO = "#F0E442", "#F8F2A8", "#BDBDBD", "#8585C0"
#: Okabe and Ito's palette, told apart with any colour vision, with more for controls; a method's variants share one.
_COLOURS: Mapping[str, str] = {
    "condensed": _BLUE,
    "direct": _YELLOW,
    "direct-inherited": _PALE,
    "whole": _INDIGO,
    "condensed-eq9": _SKY,
    "paper": _ORANGE,
    "paper-middle": _RED,
    "paper-front": _PURPLE,
    "scratch": _GREY,
    "floor": _GREEN,
}
_MARKERS: Mapping[str, str] = {"condensed-eq9": "o", "paper": "s", "paper-middle": "^", "paper-front": "v"}
_PAPER_LINES = ((0, (6, 2)), (0, (1, 1.5)))
_CHANCE = 20.0
#: Widths of the bars of the intervals: over target tasks, and over new classes.
_THICK, _THIN = 2.8, 0.9
#: Resolution of every figure.
DOTS_PER_INCH = 150
_PLAIN_LEGEND: Mapping[str, object] = {"fontsize": 8, "frameon": False}
#: How a figure names the learngene's form, and what holds the inherited weights; with colour and marker.
_FORMS: Mapping[Form, str] = {
    "condensed": "condensed, Eq. 9",
    "paper": "paper: the chosen layers",
    "paper-middle": "layers from the middle",
    "paper-front": "layers from the front",
}
_HELD: Mapping[FisherSource | str, tuple[str, str, str]] = {
    "collective": ("Fisher of the collective", _BLUE, "o"),
    "individual": ("Fisher of its own", _ORANGE, "s"),
    "none": ("nothing held back", _RED, "^"),
    "frozen": ("inherited layers frozen", _GREEN, "v"),
    "scratch": ("scratch", _GREY, "D"),
}


@as_delivered
def accuracy_figure(results: Results) -> bytes:
    """Bars: mean accuracy of every method, one panel for each shot count, with 95 % intervals over the target tasks and
    over new classes; the paper's figures stand as labelled lines if the images are the paper's."""
    methods, shots = [name for name in results.methods if not name_and_change(name)[1]], results.shots
    places = _places(methods)
    figure = _figure(4.6 * len(shots) + 2.2, 0.27 * (max(places) + 1) + 2.0)
    panels = figure.subplots(1, len(shots), sharey=True, squeeze=False)[0]
    references = results.paper.novel if results.paper else {}
    for axes, count in zip(panels, shots, strict=True):
        for place, method in zip(places, methods, strict=True):
            found = results.methods[method].get(count)
            if found is None:
                continue
            axes.barh(place, found.mean, height=0.74, color=_colour(method), zorder=2)
            for half, width in ((found.ci95_classes, _THIN), (found.ci95_tasks, _THICK)):
                axes.errorbar(found.mean, place, xerr=half or 0.0, color=_BLACK, linewidth=width, zorder=4)
            # At the foot of the bar, where neither an interval nor a reference line can run through it.
            text = axes.text(1.6, place, f"{found.mean:.1f}", va="center", fontsize=8, zorder=5)
            text.set_bbox({"facecolor": "white", "edgecolor": "none", "alpha": 0.9, "pad": 1.0})
        for by_shots, dashes in zip(references.values(), _PAPER_LINES, strict=False):
            if count in by_shots:
                axes.axvline(by_shots[count][0], color=_BLACK, linestyle=dashes, linewidth=1.2, zorder=3)
        axes.axvline(_CHANCE, color="#999999", linewidth=0.8, zorder=1)
        axes.set_title(f"{count} images a class ({results.task_count(count)} target tasks)", fontsize=10)
        axes.set_xlim(0, 100)
        axes.set_xlabel("accuracy on test images, %")
        _plain(axes, "x")
    panels[0].set_yticks(places, methods, fontsize=9)
    panels[0].set_ylim(max(places) + 0.6, -0.6)
    handles = [
        Line2D([], [], color=_BLACK, linewidth=_THICK, label="95 % over target tasks of these classes and images"),
        Line2D([], [], color=_BLACK, linewidth=_THIN, label="95 % over new classes and images"),
        Line2D([], [], color="#999999", linewidth=0.8, label="chance: 20"),
    ]
    for (label, by_shots), dashes in zip(references.items(), _PAPER_LINES, strict=False):
        said = [f"{mean:.2f} ± {half:.2f} at {count}" for count, (mean, half) in by_shots.items() if count in shots]
        if said:
            text = f"{label}: {', '.join(said)} images a class"
            handles.append(Line2D([], [], color=_BLACK, linestyle=dashes, linewidth=1.2, label=text))
    figure.legend(handles=handles, loc="outside lower center", **_PLAIN_LEGEND)
    _title(figure, results, "Accuracy on novel 5-class tasks, mean and 95 % intervals")
    return png_of(figure)


@as_delivered
def curves_figure(results: Results) -> bytes | None:
    """Learning curves of the trained methods: mean accuracy over the target tasks against epochs of adaptation. Where
    something else than the collective's Fisher diagonal held the weights in some of them, one panel for each form."""
    own = {method: by_shots for method, by_shots in results.curves.items() if not name_and_change(method)[1]}
    curves = {(method, shots): curve for method, by_shots in own.items() for shots, curve in by_shots.items()}
    if not curves:
        return None
    shots = sorted({count for _, count in curves})
    variants = [name for name, _ in curves if name in METHODS and METHODS[name].start != name]
    trained = [METHODS[name] for name, _ in curves if name in METHODS and METHODS[name].adaptation == "eq9"]
    forms = list(dict.fromkeys(method.form for method in trained if method.form)) if variants else []
    columns = min(2, len(forms)) if forms else len(shots)
    rows = -(-len(forms) // 2) * len(shots) if forms else 1
    figure = _figure(4.2 * columns + (0.4 if columns > 1 else 2.4), 3.0 * rows + (1.3 if forms else 1.0))
    panels: list[Axes] = list(figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flat)
    if not forms:
        for axes, count in zip(panels, shots, strict=True):
            for method, by_shots in own.items():
                if count in by_shots:
                    marker = _MARKERS.get(method.removesuffix("-scratch"), "D")
                    _curve(axes, results, method, count, _colour(method), marker, method)
            axes.set_title(f"{count} images a class", fontsize=10)
            axes.legend(loc="lower right", **_PLAIN_LEGEND)
    else:
        wanted = [(count, form) for count in shots for form in forms]
        for axes, (count, form) in zip(panels, wanted, strict=False):
            for method in [found.name for found in trained if found.form == form] + [scratch_of(form)]:
                if (method, count) in curves:
                    label, colour, marker = _held(METHODS[method])
                    _curve(axes, results, method, count, colour, marker, label)
            axes.set_title(f"{_FORMS[form]}, {count} images a class", fontsize=10)
        for axes in panels[len(wanted) :]:
            axes.set_axis_off()
        handles = [
            Line2D([], [], color=colour, marker=marker, markersize=4, linewidth=1.4, label=label)
            for label, colour, marker in dict.fromkeys(_held(METHODS[name]) for name, _ in curves if name in METHODS)
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), **_PLAIN_LEGEND)
    for axes in panels:
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_ylabel("accuracy, %")
        axes.label_outer()
        _plain(axes, "y")
    _title(figure, results, "Learning curves of the individuals")
    return png_of(figure)


@as_delivered
def tasks_figure(results: Results) -> bytes | None:
    """Accuracy of the collective after each of its tasks, on all known classes and on those known before the task."""
    tasks = results.collective.tasks
    if not tasks:
        return None
    figure = _figure(7.2, 3.9)
    axes = figure.subplots()
    numbers = [task.task + 1 for task in tasks]
    size = 4.0 if len(tasks) < 30 else 2.5
    axes.plot(
        numbers, [task.accuracy for task in tasks], color=_BLUE, marker="o", markersize=size, label="all known classes"
    )
    older = [(task.task + 1, task.old_accuracy) for task in tasks if task.old_accuracy is not None]
    if older:
        axes.plot(*zip(*older, strict=True), color=_RED, marker="s", markersize=size, label="classes known before it")
    chance = [100 / task.known for task in tasks]
    axes.plot(numbers, chance, color="#999999", linewidth=0.9, label="chance, 100 / known classes")
    axes.set_ylim(0, 100)
    axes.set_xlabel("task of the collective")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_ylabel("accuracy on held-out images, %")
    figure.legend(loc="outside lower center", ncols=3, **_PLAIN_LEGEND)
    _plain(axes, "y")
    _title(figure, results, "The collective, task by task")
    return png_of(figure)


@as_delivered
def open_world_scores_figure(results: Results) -> bytes | None:
    """AUROC of every score in this run's cycles, on the stream before the new classes were learned and after."""
    open_world = results.collective.open_world
    cycles = [cycle for cycle in open_world.cycles if cycle.before]
    if not open_world.measured or not cycles:
        return None
    scores = list(cycles[0].before or {})
    columns = min(2, len(cycles))
    rows = -(-len(cycles) // columns)
    figure = _figure(4.3 * columns + 2.2, (0.34 * len(scores) + 0.95) * rows + 1.0)
    panels: list[Axes] = list(figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flat)
    values = [50.0]
    for axes, cycle in zip(panels, cycles, strict=False):
        for place, score in enumerate(scores):
            before = metric_of((cycle.before or {}).get(score), "auroc")
            after = metric_of((cycle.after or {}).get(score), "auroc")
            _dumbbell(axes, place, before, after, _BLUE if score == cycle.score else _GREY)
            _beside(axes, place, change_text(before, after), bold=score == cycle.score)
            values += [value for value in (before, after) if value is not None]
        axes.axvline(50, color="#999999", linewidth=0.9, zorder=1)
        axes.set_title(f"cycle {cycle.cycle + 1}: {len(cycle.classes)} classes added", fontsize=10)
        axes.set_xlabel("AUROC, %")
        _plain(axes, "x")
    for axes in panels[len(cycles) :]:
        axes.set_axis_off()
    used = cycles[0].score
    panels[0].set_yticks(range(len(scores)), [f"{score} (used)" if score == used else score for score in scores])
    panels[0].set_ylim(len(scores) - 0.4, -0.6)
    panels[0].set_xlim(*_around(values))
    for axes in panels:
        axes.label_outer()
        axes.tick_params(axis="y", labelsize=9)
    chance = Line2D([], [], color="#999999", linewidth=0.9, label="chance: 50")
    figure.legend(handles=[*_before_after(), chance], loc="outside lower center", ncols=3, **_PLAIN_LEGEND)
    _title(figure, results, "Telling unknown images of the stream from known ones")
    return png_of(figure)


@as_delivered
def open_world_accuracy_figure(results: Results) -> bytes | None:
    """Accuracy before and after each cycle's training, by score and strategy: what is remembered of the base classes,
    and learned of the open-world ones.
    """
    kinds = [kind for kind in results.collective.open_world.every if kind.cycles]
    if not kinds:
        return None
    rows: list[tuple[str, CycleFigures, bool]] = []
    places: list[float] = []
    for number, kind in enumerate(kinds):
        for cycle in kind.cycles:
            label = kind_label(kind.score, kind.strategy) + (" (this run)" if number == 0 else "")
            first = cycle is kind.cycles[0]
            rows.append(
                (f"{label} · cycle {cycle.cycle + 1}" if first else f"cycle {cycle.cycle + 1}", cycle, number == 0)
            )
            places.append((places[-1] + (1.7 if first else 1.0)) if places else 0.0)
    figure = _figure(11.6, 0.27 * (places[-1] + 1) + 2.0)
    base, opened = figure.subplots(1, 2, sharey=True)
    kept = [(cycle.base_accuracy_before, cycle.base_accuracy_after) for _, cycle, _ in rows]
    learned = [(cycle.open_accuracy_before, cycle.open_accuracy_after) for _, cycle, _ in rows]
    for axes, title, colour, changes in (
        (base, "base classes: what is kept", _BLUE, kept),
        (opened, "open-world classes: what is learned", _GREEN, learned),
    ):
        values: list[float] = []
        for place, (_, _, own), (before, after) in zip(places, rows, changes, strict=True):
            _dumbbell(axes, place, before, after, colour if own else _GREY)
            text = change_text(before, after)
            if before is not None and after is not None:
                text += f" ({number_text(after - before, sign=True)})"
            _beside(axes, place, text, bold=own)
            values += [value for value in (before, after) if value is not None]
        if not values:
            axes.text(0.5, 0.5, "nobody knows the truth", ha="center", va="center", transform=axes.transAxes)
        axes.set_xlim(*_around(values or [0.0, 100.0]))
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("accuracy on held-out images, %")
        axes.tick_params(axis="y", labelsize=9)
        _plain(axes, "x")
    base.set_yticks(places, [label for label, _, _ in rows])
    base.set_ylim(places[-1] + 0.8, -0.8)
    figure.legend(handles=_before_after(), loc="outside lower center", ncols=2, **_PLAIN_LEGEND)
    _title(figure, results, "What adding classes brings and what it costs, by score and strategy")
    return png_of(figure)


@as_delivered
def gradient_trend_figure(results: Results) -> bytes | None:
    """Heat map, layers by tasks: the share of each layer's parameters with a large gradient (Eq. 4, 5); beside it which
    layers settled, which were chosen, and how like a pseudo-descendant's they are."""
    trend, criterion = results.collective.gradient_trend, results.collective.criterion
    if trend is None or not trend.rho or not trend.rho[0]:
        return None
    similarity = criterion.similarity if criterion else None
    rho = np.ma.masked_invalid(np.array(trend.rho, dtype=np.float64))  # None becomes NaN
    layers = range(len(trend.layers))
    figure = _figure(7.6 + (2.2 if similarity else 0.0), 0.23 * len(trend.layers) + 2.3)
    if similarity:
        axes, beside = figure.subplots(1, 2, sharey=True, width_ratios=(3.6, 1))
    else:
        axes, beside = figure.subplots(), None
    image = axes.imshow(
        rho, aspect="auto", cmap="cividis", interpolation="nearest", vmin=0.0, vmax=max(float(rho.max()), 1e-9)
    )
    axes.autoscale(False)
    handles: list[Artist] = []
    for layer, task in np.argwhere(np.ma.getmaskarray(rho)):
        axes.add_patch(Rectangle((task - 0.5, layer - 0.5), 1, 1, facecolor="white", edgecolor="#BBBBBB", hatch="////"))
    if np.ma.getmaskarray(rho).any():
        handles.append(Patch(facecolor="white", edgecolor="#BBBBBB", hatch="////", label="layer not there yet"))
    axes.set_yticks(layers, trend.layers, fontsize=8)
    step = max(1, -(-rho.shape[1] // 14))
    axes.set_xticks(range(0, rho.shape[1], step), [str(task + 1) for task in range(0, rho.shape[1], step)])
    axes.set_xlabel("task of the collective")
    axes.set_ylabel("layer, front to top")
    if criterion:
        right = rho.shape[1] - 0.5
        settled = [number - 1 for number in criterion.settled_layers]
        mark = axes.scatter(
            [right + 0.022 * rho.shape[1]] * len(settled), settled, s=22, color=_GREEN, clip_on=False, label="settled"
        )
        handles += [mark] if settled else []
        for first, last in _in_a_row([number - 1 for number in criterion.chosen]):
            axes.add_patch(_frame((-0.5, first - 0.5), rho.shape[1], last - first + 1))
        handles.append(Patch(facecolor="none", edgecolor=_RED, linewidth=2.0, label="chosen (form paper)"))
    if similarity and beside is not None:
        colours = [_PURPLE if number + 1 in similarity.layers else "#C8C8C8" for number in layers]
        beside.barh(layers, similarity.per_layer, height=0.74, color=colours, zorder=2)
        beside.set_xlim(0, 1)
        beside.set_xlabel("similarity (linear CKA)")
        beside.set_title("to a pseudo-descendant", fontsize=9)
        _plain(beside, "x")
        handles.append(Patch(facecolor=_PURPLE, label="most similar layers"))
    figure.colorbar(image, ax=axes, label=f"share of gradients above {trend.sigma:.2g}", pad=0.045)
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), **_PLAIN_LEGEND)
    _title(figure, results, "Gradient trend: layers against tasks")
    return png_of(figure)


#: The drawing function of each figure, by file name; it returns None if the run has nothing to draw.
FIGURES: Mapping[str, Callable[[Results], bytes | None]] = {
    "accuracy.png": accuracy_figure,
    "curves.png": curves_figure,
    "tasks.png": tasks_figure,
    "open_world_scores.png": open_world_scores_figure,
    "open_world_accuracy.png": open_world_accuracy_figure,
    "gradient_trend.png": gradient_trend_figure,
}


def _colour(method: str) -> str:
    found = METHODS.get(method)
    if found is not None and found.adaptation in ("scratch", "random"):
        return _GREY
    return _COLOURS.get(found.start, _SILVER) if found else _SILVER


def _frame(corner: tuple[float, float], width: float, height: float) -> Rectangle:
    """A frame around chosen layers, above the frame of the panel."""
    return Rectangle(corner, width, height, fill=False, edgecolor=_RED, lw=2.4, clip_on=False, zorder=5)


def _held(method: Method) -> tuple[str, str, str]:
    """What holds the inherited weights: label, colour, marker."""
    if method.adaptation == "scratch":
        return _HELD["scratch"]
    return _HELD["frozen" if method.frozen else method.fisher]


def _places(methods: Sequence[str]) -> list[float]:
    """A row for each method, with a gap between those that differ in more than in what holds the weights."""
    starts = [METHODS[name].start if name in METHODS else name for name in methods]
    gap = 0.5 if len(set(starts)) < len(starts) else 0.0
    places: list[float] = []
    for number, start in enumerate(starts):
        places.append(places[-1] + 1 + (gap if start != starts[number - 1] else 0.0) if places else 0.0)
    return places


def _curve(axes: Axes, results: Results, method: str, shots: int, colour: str, marker: str, label: str) -> None:
    curve = results.curves[method][shots]
    axes.plot(curve.epochs, curve.accuracy, color=colour, marker=marker, markersize=4, linewidth=1.4, label=label)


def _dumbbell(axes: Axes, place: float, before: float | None, after: float | None, colour: str) -> None:
    """A hollow mark before, a full one after, and a line between them; a value that is None is left out."""
    if before is not None and after is not None:
        axes.plot([before, after], [place, place], color=colour, linewidth=1.8, zorder=2)
    if before is not None:
        axes.plot([before], [place], "o", markersize=6.5, markerfacecolor="white", markeredgecolor=colour, zorder=3)
    if after is not None:
        axes.plot([after], [place], "o", markersize=6.5, color=colour, zorder=4)


def _before_after() -> list[Line2D]:
    marks = (("white", "before the new classes are learned"), (_BLACK, "after"))
    return [
        Line2D([], [], linestyle="", marker="o", markerfacecolor=face, markeredgecolor=_BLACK, label=label)
        for face, label in marks
    ]


def _beside(axes: Axes, place: float, text: str, *, bold: bool) -> None:
    """Numbers to the right of a panel."""
    weight = "bold" if bold else "normal"
    axes.text(
        1.02,
        place,
        text,
        va="center",
        fontsize=8,
        fontweight=weight,
        transform=axes.get_yaxis_transform(),
        clip_on=False,
    )


def _around(values: Sequence[float]) -> tuple[float, float]:
    """Limits that hold all values and span at least 20 points."""
    low, high = min(values), max(values)
    margin = max(0.06 * (high - low), (20 - (high - low)) / 2, 1.0)
    return max(-1.5, low - margin), min(101.5, high + margin)


def _in_a_row(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """First and last of each run of consecutive numbers."""
    found: list[tuple[int, int]] = []
    for number in sorted(numbers):
        if found and number == found[-1][1] + 1:
            found[-1] = (found[-1][0], number)
        else:
            found.append((number, number))
    return found


def _figure(width: float, height: float) -> Figure:
    """Width and height in inches."""
    return Figure(dpi=DOTS_PER_INCH, figsize=(width, height), layout="constrained")


def _plain(axes: Axes, grid: Literal["x", "y"]) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis=grid, color=_LIGHT, linewidth=0.6, zorder=0)
    axes.set_axisbelow(True)


def _title(figure: Figure, results: Results, text: str) -> None:
    """The title, the run it belongs to, and in plain words if the images are the stand-in or divided for tuning."""
    source = f"{results.dataset.name}, profile {results.profile}, seed {results.seed}"
    if results.dataset.notice is None:
        figure.suptitle(f"{text}\n{source}", fontsize=11)
    else:
        figure.suptitle(f"{text}\n{results.dataset.warning} · {source}", fontsize=10, color="#A03000")
