"""The figure of many audiences: time per grant, and bytes sent with one blob for all against one for each."""

from sims.bench.measurements import MEGABYTE, BundleBenchmark
from sims.results.plotting import Figure, as_delivered, png_of

_BLUE, _ORANGE, _BLACK, _LIGHT = "#0072B2", "#D55E00", "#000000", "#DDDDDD"


@as_delivered
def audiences_figure(result: BundleBenchmark) -> bytes:
    """The figure as PNG.

    Raises:
        ValueError: no audiences were measured.
    """
    measured = result.audiences
    if measured is None:
        raise ValueError("no audiences were measured")
    figure = Figure(figsize=(10, 4.2), dpi=150, layout="constrained")
    time, size = figure.subplots(1, 2)
    milliseconds = [1000 * seconds for seconds in measured.each]
    middle = sorted(milliseconds)[len(milliseconds) // 2]
    time.plot(range(1, measured.audiences + 1), milliseconds, ".", markersize=3, color=_BLUE)
    time.axhline(middle, color=_BLACK, linewidth=1, label=f"median {middle:.2f} ms")
    # A disk that stalls sometimes would compress everything else at the axis.
    time.set_ylim(0, max(2 * middle, 1.2 * sorted(milliseconds)[int(0.99 * (len(milliseconds) - 1))]))
    time.set_xlabel("grants made")
    time.set_ylabel("ms for one grant")
    time.set_title(f"Verify the request, seal ({result.kem}), sign, store durably", fontsize=10)
    counts = sorted({1, measured.audiences, *(10**power for power in range(5) if 10**power <= measured.audiences)})
    for label, colour, marker, total in (
        ("a blob for each", _ORANGE, "s", measured.separate_bytes),
        ("one blob for all", _BLUE, "o", measured.shared_bytes),
    ):
        size.plot(
            counts,
            [total(count) / MEGABYTE for count in counts],
            marker=marker,
            color=colour,
            markersize=4,
            label=label,
        )
    size.set_xscale("log")
    size.set_yscale("log")
    size.set_xlabel("individuals")
    size.set_ylabel("MB sent")
    size.set_title(
        f"One learngene of {measured.blob_bytes / MEGABYTE:.1f} MB, grants of {measured.grant_bytes} bytes", fontsize=10
    )
    for axes in (time, size):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color=_LIGHT, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.legend(fontsize=8, frameon=False)
    return png_of(figure)
