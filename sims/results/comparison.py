"""The methods of an individual as tables name and order them, and which of them are compared on the same tasks."""

from collections.abc import Iterable, Mapping

from individual_node import method_table
from individual_node.method_table import FisherSource, Method
from protocol.learngene.architecture import Form
from protocol.node.metrics import Percent
from sims.results.models import PairedResult
from sims.results.statistics import paired_difference

_INHERITED: Mapping[Form, str] = {
    "condensed": "the condensed learngene",
    "direct": "a compact network trained on the base images alone, no large network behind it",
    "direct-inherited": "as direct, its top layers started from the collective's",
    "whole": "the collective's whole network",
    "paper": "the paper's form: the layers that the criterion chose",
    "paper-middle": "layers from the middle of the collective",
    "paper-front": "layers from the front of the collective",
}
_HELD: Mapping[FisherSource, str] = {
    "collective": "Eq. 9 with the collective's Fisher diagonal",
    "individual": "Eq. 9 with its own Fisher diagonal (Algorithm 1)",
    "none": "fine-tuned, nothing held back (Eq. 6)",
}


def _described(method: Method) -> str:
    if method.form is None:
        return "no transfer at all: whitened patches of the support images, logistic regression"
    if method.adaptation == "scratch":
        return "the condensed form's network, nothing inherited"
    if method.adaptation == "head":
        return f"{_INHERITED[method.form]}; a logistic head on its features"
    return f"{_INHERITED[method.form]}; {'inherited weights frozen' if method.frozen else _HELD[method.fisher]}"


#: Methods in the order of every table and figure, with what each one is.
METHODS: Mapping[str, str] = {name: _described(method) for name, method in method_table.METHODS.items()}


def pairs(methods: Iterable[str]) -> dict[str, list[tuple[str, str]]]:
    """Which methods are compared on the same tasks: heading -> (first, second), each pair once.

    The default against every other; the chosen layers against those of other positions; each source of the Fisher
    diagonal against the collective's, with the same start; and every other use of a learngene against scratch.
    """
    given = list(methods)
    known = [method_table.METHODS[name] for name in given if name in method_table.METHODS]
    trained = [method for method in known if method.adaptation == "eq9"]
    wanted = {
        "the default against every other": [("condensed", name) for name in given if name != "condensed"],
        "the chosen layers against other positions": [("paper", "paper-middle"), ("paper", "paper-front")],
        "the source of the Fisher diagonal, against the collective's": [
            (method.name, method.start) for method in trained if method.name != method.start
        ],
        "a learngene against none": [(method.name, "scratch") for method in trained],
    }
    found = {title: [pair for pair in group if set(pair) <= set(given)] for title, group in wanted.items()}
    return {title: group for title, group in found.items() if group}


def pair_key(first: str, second: str) -> str:
    """The key of a pair in ``Results.paired``."""
    return f"{first}-{second}"


def compare(accuracies: Mapping[str, Mapping[int, Mapping[int, Percent]]]) -> dict[str, dict[int, PairedResult]]:
    """Compare every pair of methods at every shot count on the tasks that both have."""
    paired: dict[str, dict[int, PairedResult]] = {}
    for first, second in [pair for group in pairs(accuracies).values() for pair in group]:
        by_shots = paired.setdefault(pair_key(first, second), {})
        for shots, tasks in accuracies[first].items():
            difference = paired_difference(tasks, accuracies[second].get(shots, {}))
            if difference is not None:
                by_shots[shots] = PairedResult(mean=difference.mean, ci95=difference.ci95, tasks=difference.count)
    return paired
