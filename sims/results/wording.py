"""The words for numbers and comparisons, the same in every output."""

from collections.abc import Mapping
from typing import Protocol

from collective_node.differential_privacy.mechanism import Mechanism
from collective_node.settings import Score, Strategy
from sims.results.models import ChanceLevel, Metric
from sims.run.settings import RunSettings

#: The name of each metric in texts.
METRIC_NAMES: Mapping[Metric, str] = {
    "auroc": "AUROC",
    "fpr95": "FPR95",
    "aupr": "AUPR",
    "oscr": "OSCR",
    "open_set_accuracy": "open-set accuracy",
}
#: Rows below the scores of a stream, and which level each has in the column of which metric.
CHANCE_ROWS: Mapping[str, Mapping[Metric, ChanceLevel]] = {
    "by chance": {"auroc": "auroc", "fpr95": "fpr95", "aupr": "aupr", "oscr": "oscr"},
    "everything flagged": {"open_set_accuracy": "all_flagged"},
    "nothing flagged": {"open_set_accuracy": "none_flagged"},
}
NOT_TOLD_APART = "not told apart"
_STRATEGIES: Mapping[Strategy, str] = {"replay": "replay", "ewc": "EWC", "none": "no strategy"}


class WithInterval(Protocol):
    """A mean and the half width of its 95 % interval."""

    @property
    def mean(self) -> float: ...

    @property
    def ci95(self) -> float | None: ...


class WithIntervals(Protocol):
    """A mean over target tasks and the half widths of its 95 % intervals: over these tasks, and over new classes."""

    @property
    def mean(self) -> float: ...

    @property
    def ci95_tasks(self) -> float | None: ...

    @property
    def ci95_classes(self) -> float | None: ...


#: What :func:`intervals_text` shows, for the head of a table.
INTERVALS = "mean ± 95 % over target tasks (± over new classes and images)"
#: Which interval is about what, in one sentence.
WHICH_INTERVAL = (
    "The first ± is a 95 % interval over target tasks and holds for these classes and images; the one in brackets is "
    "over new classes and images, and says how far the figure may be from that of other classes of the same kind."
)

#: Where the second interval is missing everywhere.
CLASSES_UNKNOWN = (
    "This run does not say which classes its tasks have, so an interval over new classes and images is not known."
)


def number_text(value: float | None, sign: bool = False) -> str:
    """``71.6``, with ``sign`` ``+71.6``; a dash for a missing value."""
    if value is None:
        return "–"
    text = f"{value:+.1f}" if sign else f"{value:.1f}"
    if float(text) == 0:
        text = "0.0"  # no sign before zero
    return text.replace("-", "−")  # a minus sign, no hyphen


def interval_text(result: WithInterval | None, sign: bool = False) -> str:
    """``71.6 ± 2.3``, with ``sign`` ``+71.6 ± 2.3``; a dash for a missing value."""
    if result is None:
        return "–"
    return f"{number_text(result.mean, sign)} ± {number_text(result.ci95)}"


def intervals_text(result: WithIntervals | None, sign: bool = False) -> str:
    """``71.6 ± 2.3 (± 8.9)``, the second over new classes and images; a dash for a missing value."""
    if result is None:
        return "–"
    return f"{number_text(result.mean, sign)} ± {number_text(result.ci95_tasks)} (± {number_text(result.ci95_classes)})"


def change_text(before: float | None, after: float | None) -> str:
    """``71.6 → 70.2``; a dash for a missing value."""
    return "–" if before is None and after is None else f"{number_text(before)} → {number_text(after)}"


def verdict(paired: WithIntervals) -> str:
    """Whether the first method is better, worse or neither on new classes, by the wider interval of the paired
    difference; what holds for these classes alone is said as such."""
    if paired.ci95_tasks is None:
        return "one task: nothing can be said"
    here = _told(paired.mean, paired.ci95_tasks)
    if here == NOT_TOLD_APART or (paired.ci95_classes is not None and _told(paired.mean, paired.ci95_classes) == here):
        return here
    return f"{here} on these classes" + ("" if paired.ci95_classes is None else f", {NOT_TOLD_APART} on new ones")


def _told(mean: float, half: float) -> str:
    if abs(mean) <= half:
        return NOT_TOLD_APART
    return "better" if mean > 0 else "worse"


def pair_label(first: str, second: str) -> str:
    """The difference of two methods, as a label."""
    return f"{first} − {second}"


def layers_text(numbers: tuple[int, ...]) -> str:
    """``11–13`` for layers in a row, ``3, 7, 11–13`` for others, ``none``."""
    rows: list[list[int]] = []
    for number in numbers:
        if rows and number == rows[-1][-1] + 1:
            rows[-1].append(number)
        else:
            rows.append([number])
    return ", ".join(str(row[0]) if len(row) == 1 else f"{row[0]}–{row[-1]}" for row in rows) or "none"


def guarantee_sentences(found: Mechanism) -> list[str]:
    """Sentences on a guarantee of differential privacy: what it covers, and what it does not."""
    one = f"ε = {found.epsilon:g}, δ = {found.delta:.0e}".replace("e-0", "e-")
    if found.scope == "weights-and-fisher":
        what = (
            "Everything that was released - weights, Fisher diagonal, the constants of the input - is differentially "
            f"private with {one}, where two sets of images are neighbours if one has one image more."
        )
    else:
        what = (
            f"The Fisher diagonals are differentially private with {one} given the whole network, its unpublished "
            "classifier and front layers included, and the set of named images, where two sets of images are "
            "neighbours if one has one image more. The weights themselves carry no guarantee, so neither does the "
            "release as a whole."
        )
    return [
        what,
        "The guarantee is for what this one run released: further runs on the same images add their own to it. It "
        "counts no choice of settings that somebody made after looking at results, and does not cover the figures of "
        "this report.",
    ]


def kind_label(score: Score, strategy: Strategy) -> str:
    """The label of cycles: their score and strategy."""
    return f"{score}, {_STRATEGIES[strategy]}"


def describe_settings(settings: RunSettings) -> dict[str, str]:
    """The settings as a reader's table: dotted names and plain values."""
    rows: dict[str, str] = {}
    for name, value in settings.model_dump(mode="json").items():
        if name == "target_tasks":
            rows["target tasks"] = ", ".join(f"{tasks} at {shots} shots" for shots, tasks in value.items())
        elif isinstance(value, dict):
            rows |= {f"{name}.{inner}": _plain(item) for inner, item in value.items()}
        else:
            rows[name.replace("_", " ")] = _plain(value)
    return rows


def _plain(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(_plain(item) for item in value)
    return str(value)
