"""The figures of a run as PNG bytes: accuracies, learning curves and the gradient trend."""

from collections.abc import Mapping
from io import BytesIO

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from sims.results import METHODS, PAPER_FIGURES, Results

#: Okabe and Ito's palette, told apart with any colour vision; and a hatch and a marker each, for print without colour.
_COLOURS: Mapping[str, str] = {
    "condensed": "#0072B2",
    "condensed-eq9": "#56B4E9",
    "paper": "#E69F00",
    "scratch": "#7F7F7F",
    "floor": "#009E73",
}
_OTHER_COLOURS = ("#D55E00", "#CC79A7", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_PAPER_LINES = (("#D55E00", (0, (6, 2))), ("#000000", (0, (1, 1.5))))
_CHANCE = 20.0
_DOTS_PER_INCH = 150


def accuracy_figure(results: Results) -> bytes:
    """Bars: mean accuracy of every method, one panel for each shot count, with 95 % intervals over the target tasks;
    the paper's figures stand as labelled lines where the images are the paper's."""
    methods = list(results.methods)
    shots = results.shots
    figure = Figure(
        dpi=_DOTS_PER_INCH, figsize=(max(6.4, 1.05 * len(methods) * len(shots) + 1.4), 5.2), layout="constrained"
    )
    panels = figure.subplots(1, len(shots), sharey=True, squeeze=False)[0]
    for axes, count in zip(panels, shots, strict=True):
        for position, method in enumerate(methods):
            found = results.methods[method].get(count)
            if found is None:
                continue
            half = found.ci95 or 0.0
            axes.bar(position, found.mean, width=0.72, color=_colour(method, methods), zorder=2)
            axes.errorbar(position, found.mean, yerr=half, color="black", capsize=4, linewidth=1.2, zorder=4)
            # At the foot of the bar, where neither an interval nor a reference line can run through it.
            text = axes.text(position, 2.5, f"{found.mean:.1f}", ha="center", va="bottom", fontsize=9, zorder=5)
            text.set_bbox({"facecolor": "white", "edgecolor": "none", "alpha": 0.9, "pad": 1.5})
        for (label, by_shots), (colour, dashes) in zip(PAPER_FIGURES.items(), _PAPER_LINES, strict=True):
            # Beside the stand-in the paper's figures would only mislead.
            if count in by_shots and results.dataset.notice is None:
                mean, half = by_shots[count]
                name = f"{label}: {mean:.2f} ± {half:.2f}"
                axes.axhline(mean, color=colour, linestyle=dashes, linewidth=1.4, zorder=3, label=name)
        axes.axhline(_CHANCE, color="#999999", linewidth=0.8, zorder=1, label="chance: 20")
        axes.set_title(f"{count} images a class ({results.task_count(count)} target tasks)", fontsize=10)
        axes.set_xticks(range(len(methods)), methods, rotation=25, ha="right", fontsize=9)
        axes.set_ylim(0, 100)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), fontsize=8, frameon=False)
        _plain(axes)
    panels[0].set_ylabel("accuracy on test images, %")
    _title(figure, results, "Accuracy on novel 5-class tasks, mean and 95 % interval")
    return _png(figure)


def curves_figure(results: Results) -> bytes:
    """Learning curves of the trained methods: mean accuracy over the target tasks against epochs of adaptation."""
    shots = sorted({count for by_shots in results.curves.values() for count in by_shots})
    figure = Figure(dpi=_DOTS_PER_INCH, figsize=(max(6.4, 4.2 * len(shots) + 0.6), 4.2), layout="constrained")
    if not shots:
        axes = figure.subplots()
        axes.text(0.5, 0.5, "this run recorded no learning curves", ha="center", va="center", transform=axes.transAxes)
        axes.set_axis_off()
    else:
        panels = figure.subplots(1, len(shots), sharey=True, squeeze=False)[0]
        ordered = [*filter(results.curves.__contains__, METHODS), *sorted(results.curves.keys() - METHODS.keys())]
        for axes, count in zip(panels, shots, strict=True):
            for index, method in enumerate(ordered):
                curve = results.curves[method].get(count)
                if curve is not None:
                    axes.plot(
                        curve.epochs,
                        curve.accuracy,
                        label=f"{method} ({curve.tasks} tasks)",
                        color=_colour(method, ordered),
                        marker=_MARKERS[index % len(_MARKERS)],
                        markersize=4,
                        linewidth=1.6,
                    )
            axes.set_title(f"{count} images a class", fontsize=10)
            axes.set_xlabel("epochs of adaptation")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.legend(loc="lower right", fontsize=8)
            _plain(axes)
        panels[0].set_ylabel("mean accuracy over the tasks, %")
    _title(figure, results, "Learning curves of the individuals")
    return _png(figure)


def gradient_trend_figure(results: Results) -> bytes:
    """Figure 3 of the paper: layers by tasks, the share of each layer's parameters with a large gradient (Eq. 4, 5)."""
    trend = results.collective.gradient_trend
    figure = Figure(dpi=_DOTS_PER_INCH, figsize=(6.8, 4.8), layout="constrained")
    axes = figure.subplots()
    if trend is None or not trend.rho or not trend.rho[0]:
        axes.text(0.5, 0.5, "this run recorded no gradient trend", ha="center", va="center", transform=axes.transAxes)
        axes.set_axis_off()
    else:
        rho = np.asarray(trend.rho, dtype=np.float64)
        image = axes.imshow(rho, aspect="auto", cmap="cividis", vmin=0.0, vmax=max(float(rho.max()), 1e-9))
        axes.set_yticks(range(len(trend.layers)), trend.layers, fontsize=8)
        step = max(1, -(-rho.shape[1] // 14))
        axes.set_xticks(range(0, rho.shape[1], step), [str(task + 1) for task in range(0, rho.shape[1], step)])
        axes.set_xlabel("task of the collective")
        axes.set_ylabel("layer, front to top")
        figure.colorbar(image, ax=axes, label=f"share of gradients above {trend.sigma:.2g}")
    _title(figure, results, "Gradient trend: layers against tasks")
    return _png(figure)


#: File name -> what draws it.
FIGURES = {
    "accuracy.png": accuracy_figure,
    "curves.png": curves_figure,
    "gradient_trend.png": gradient_trend_figure,
}


def _colour(method: str, methods: list[str]) -> str:
    if method in _COLOURS:
        return _COLOURS[method]
    others = [name for name in methods if name not in _COLOURS]
    return _OTHER_COLOURS[others.index(method) % len(_OTHER_COLOURS)]


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#dddddd", linewidth=0.6, zorder=0)
    axes.set_axisbelow(True)


def _title(figure: Figure, results: Results, text: str) -> None:
    """The title, the run it belongs to, and in plain words that the images are the stand-in where they are."""
    source = f"{results.dataset.name}, profile {results.profile}, seed {results.seed}"
    if results.dataset.notice is None:
        figure.suptitle(f"{text}\n{source}", fontsize=11)
    else:
        figure.suptitle(f"{text}\nSTAND-IN IMAGES, NOT CIFAR-100 · {source}", fontsize=11, color="#A03000")


def _png(figure: Figure) -> bytes:
    buffer = BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
