"""The figure of accuracy against epsilon as PNG bytes."""

from sims.results.figures import DOTS_PER_INCH
from sims.results.plotting import Axes, Figure, as_delivered, png_of
from sims.results.privacy_table import PrivacyTable

#: Okabe and Ito's palette.
_COLOURS = ("#0072B2", "#56B4E9", "#E69F00", "#7F7F7F", "#009E73", "#D55E00", "#CC79A7", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


@as_delivered
def draw(table: PrivacyTable) -> bytes:
    """Mean accuracy of every method at each epsilon, with 95 % intervals, one panel for each shot count; at the right
    the runs without a guarantee."""
    names = ["none" if point.epsilon is None else f"{point.epsilon:g}" for point in table.points]
    figure = Figure(dpi=DOTS_PER_INCH, figsize=(4.4 * len(table.shots) + 0.6, 4.2), layout="constrained")
    panels: list[Axes] = list(figure.subplots(1, len(table.shots), sharey=True, squeeze=False).flat)
    for axes, shots in zip(panels, table.shots, strict=True):
        for number, method in enumerate(table.methods):
            found = [point.methods[method][shots] for point in table.points]
            # A little beside each other, so that no interval hides another.
            places = [place + 0.04 * (number - (len(table.methods) - 1) / 2) for place in range(len(found))]
            axes.errorbar(
                places,
                [one.mean for one in found],
                yerr=[one.ci95 or 0.0 for one in found],
                color=_COLOURS[number % len(_COLOURS)],
                marker=_MARKERS[number % len(_MARKERS)],
                markersize=5,
                linewidth=1.4,
                capsize=3,
                label=method if axes is panels[0] else None,
            )
        axes.set_xticks(range(len(names)), names)
        axes.set_xlim(-0.5, len(names) - 0.5)
        axes.set_xlabel("ε (smaller: more private)")
        axes.set_title(f"{shots} images a class", fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#DDDDDD", linewidth=0.6)
        axes.set_axisbelow(True)
    panels[0].set_ylabel("accuracy on test images, %")
    figure.legend(loc="outside lower center", ncols=min(5, len(table.methods)), fontsize=8, frameon=False)
    what = "weights and Fisher" if table.scope == "weights-and-fisher" else "Fisher given the whole network"
    delta = f"{table.delta:.0e}".replace("e-0", "e-")
    head = f"Accuracy against epsilon (δ = {delta}, {what})\n{table.dataset.name}, profile {table.profile}"
    if table.dataset.notice is not None:
        head = f"Accuracy against epsilon (δ = {delta}, {what})\nSTAND-IN IMAGES, NOT CIFAR-100 OR IMAGENET100"
    figure.suptitle(head, fontsize=11, color="black" if table.dataset.notice is None else "#A03000")
    return png_of(figure)
