"""The figures of a leakage measurement as PNG bytes: membership on logarithmic axes, and what Fisher diagonals show."""

from collections.abc import Callable, Mapping
from pathlib import Path

from protocol.files.atomic import write_atomically
from sims.leakage.leakage_results import Leakage
from sims.results.figures import DOTS_PER_INCH
from sims.results.plotting import Axes, Figure, as_delivered, png_of

#: Okabe and Ito's palette.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = ("o", "s", "^", "v", "D", "P", "X")
_DASHES = ("-", "--", ":", "-.")


@as_delivered
def membership_figure(found: Leakage) -> bytes | None:
    """True against false positive rates of the attacks on membership, one panel for each variant, mean over the shadows
    as targets."""
    rows = found.of("membership")
    names = list(dict.fromkeys(row.variant for row in rows))
    if not names:
        return None
    figure = _figure(3.6 * len(names), 4.4)
    panels: list[Axes] = list(figure.subplots(1, len(names), sharex=True, sharey=True, squeeze=False).flat)
    attacks = list(dict.fromkeys(row.attack for row in rows))
    lowest = found.grid[0]
    for axes, name in zip(panels, names, strict=True):
        axes.plot(found.grid, found.grid, color="#7F7F7F", linewidth=0.9, label="guessing")
        for row in rows:
            if row.variant == name:
                place = attacks.index(row.attack)
                shown = [max(value, lowest / 2) for value in row.curve]
                label = row.attack
                axes.plot(
                    found.grid,
                    shown,
                    color=_COLOURS[place % 7],
                    linestyle=_DASHES[place % 4],
                    linewidth=1.5,
                    label=label,
                )
        axes.set(xscale="log", yscale="log", xlim=(lowest, 1), ylim=(lowest / 2, 1.05), title=name)
        axes.title.set_fontsize(10)
        axes.set_xlabel("false positive rate")
        axes.set_ylabel("true positive rate")
        axes.label_outer()
        axes.grid(color="#DDDDDD", linewidth=0.6)
    handles = {handle.get_label(): handle for axes in panels for handle in axes.get_lines()}
    figure.legend(handles=list(handles.values()), loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    _title(figure, found, "Membership inference, mean over shadow collectives as targets")
    return png_of(figure)


@as_delivered
def reconstruction_figure(found: Leakage) -> bytes | None:
    """How well images behind a Fisher diagonal are separated from others, against the number of images behind it."""
    rows = [row for row in found.reconstruction if row.layer == "mean"]
    if not rows:
        return None
    templates = list(dict.fromkeys(row.template for row in rows))
    noises = sorted({row.noise for row in rows})
    figure = _figure(8.4, 3.9)
    left, right = figure.subplots(1, 2)
    for number, template in enumerate(templates):
        own = sorted((row for row in rows if row.template == template and row.noise == 0), key=lambda row: row.samples)
        samples = [row.samples for row in own]
        for values, style, text in (
            ([row.inside.value for row in own], "-", "image behind it"),
            ([row.outside.value for row in own], "--", "another image"),
            ([row.guess.value for row in own], ":", "without a diagonal"),
        ):
            left.plot(
                samples, values, style, color=_COLOURS[number], marker=_MARKERS[number], markersize=4,
                label=f"{template}: {text}",
            )  # fmt: skip
        for place, noise in enumerate(noises):
            line = sorted(
                (row for row in rows if row.template == template and row.noise == noise), key=lambda row: row.samples
            )
            errors = [
                [row.auroc.value - row.auroc.low for row in line],
                [row.auroc.high - row.auroc.value for row in line],
            ]
            right.errorbar(
                [row.samples for row in line],
                [row.auroc.value for row in line],
                yerr=errors,
                color=_COLOURS[number],
                linestyle=_DASHES[place % 4],
                marker=_MARKERS[number],
                markersize=4,
                capsize=2,
                label=f"{template}, noise {noise:g}" if noise else template,
            )
    right.axhline(0.5, color="#7F7F7F", linewidth=0.9)
    for axes, text in ((left, "correlation with the diagonal"), (right, "AUROC, behind it or not")):
        axes.set_xscale("log", base=2)
        counts = sorted({row.samples for row in rows})
        axes.set_xticks(counts, [str(count) for count in counts])
        axes.axvline(found.fisher_samples, color="#7F7F7F", linewidth=0.9, linestyle="--")
        axes.set_xlabel("images behind the diagonal (dashed: the release's)")
        axes.set_ylabel(text)
        axes.grid(color="#DDDDDD", linewidth=0.6)
        axes.legend(fontsize=7, frameon=False)
    _title(figure, found, "What a Fisher diagonal shows of single images, mean over the convolutions")
    return png_of(figure)


#: The drawing function of each figure, by the name of its file.
FIGURES: Mapping[str, Callable[[Leakage], bytes | None]] = {
    "leakage_membership.png": membership_figure,
    "leakage_reconstruction.png": reconstruction_figure,
}


def _title(figure: Figure, found: Leakage, text: str) -> None:
    source = f"{found.dataset}, profile {found.profile}, seed {found.run_seed}"
    note = f"STAND-IN IMAGES · {source}" if found.source == "stand-in" else source
    figure.suptitle(f"{text}\n{note}", fontsize=11, color="#A03000" if found.notice else "black")


def _figure(width: float, height: float) -> Figure:
    return Figure(dpi=DOTS_PER_INCH, figsize=(width, height), layout="constrained")


def write(folder: Path, found: Leakage) -> None:
    """Write every figure that the results have something for."""
    for name, draw in FIGURES.items():
        image = draw(found)
        if image is not None:
            write_atomically(folder / name, image)
