"""The figure of accuracy against weights, size by size, as PNG bytes."""

from sims.results.figures import DOTS_PER_INCH
from sims.results.models import Results
from sims.results.plotting import Axes, Figure, as_delivered, png_of
from sims.results.sizes import size_rows

SIZES_FIGURE = "sizes.png"

#: Okabe and Ito's palette.
_COLOURS = ("#0072B2", "#E69F00", "#7F7F7F", "#56B4E9", "#009E73", "#D55E00", "#CC79A7", "#000000")
_MARKERS = ("o", "s", "D", "^", "v", "P", "X", "*")


@as_delivered
def draw_sizes(results: Results) -> bytes | None:
    """Mean accuracy of each method against the weights of its sizes, with 95 % intervals, one panel for each shot
    count; None if no method was scored at several sizes."""
    rows = size_rows(results)
    if not rows:
        return None
    methods = list(dict.fromkeys(row.method for row in rows))
    figure = Figure(dpi=DOTS_PER_INCH, figsize=(4.4 * len(results.shots) + 0.6, 4.2), layout="constrained")
    panels: list[Axes] = list(figure.subplots(1, len(results.shots), sharey=True, squeeze=False).flat)
    for axes, shots in zip(panels, results.shots, strict=True):
        for number, method in enumerate(methods):
            points = [(row, row.by_shots[shots]) for row in rows if row.method == method and shots in row.by_shots]
            # A little beside each other, so that no interval hides another.
            places = [row.facts.parameters * 1.02 ** (number - (len(methods) - 1) / 2) for row, _ in points]
            heights, colour = [found.mean for _, found in points], _COLOURS[number % len(_COLOURS)]
            for width, halves in (
                (0.9, [found.ci95_classes or 0.0 for _, found in points]),
                (2.4, [found.ci95_tasks or 0.0 for _, found in points]),
            ):
                axes.errorbar(places, heights, yerr=halves, color=colour, elinewidth=width, linewidth=0)
            marker = _MARKERS[number % len(_MARKERS)]
            axes.plot(places, heights, color=colour, marker=marker, markersize=5, linewidth=1.4, label=method)
        axes.set_xscale("log")
        counts = {row.facts.parameters: row.facts.size for row in rows}
        axes.set_xticks(list(counts), [f"{size}\n{_short(count)}" for count, size in counts.items()], fontsize=8)
        axes.minorticks_off()
        axes.set_xlabel("size, and its weights")
        axes.set_title(f"{shots} images a class", fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="both", color="#DDDDDD", linewidth=0.6)
        axes.set_axisbelow(True)
    means = [found.mean for row in rows for found in row.by_shots.values()]
    panels[0].set_ylim(max(0, min(means) - 8), min(100, max(means) + 8))
    panels[0].set_ylabel("accuracy on test images, %")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(5, len(methods)), fontsize=8, frameon=False)
    head = f"Accuracy by size\n{results.dataset.name}, profile {results.profile}, seed {results.seed}"
    if results.dataset.notice is not None:
        head += f"\n{results.dataset.warning}"
    figure.suptitle(head, fontsize=11, color="black" if results.dataset.notice is None else "#A03000")
    return png_of(figure)


def _short(count: int) -> str:
    """A number of weights in two or three digits."""
    return f"{count / 1e6:.2g}M" if count >= 1_000_000 else f"{count / 1e3:.3g}k"
