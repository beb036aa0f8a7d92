"""The methods of an individual as tables name and order them, and which of them are compared on the same tasks."""

from collections.abc import Iterable, Mapping, Sequence

from individual_node import method_table
from individual_node.method_table import FisherSource, Method, name_and_change, scratch_of
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


#: Whose architecture a method borrows that inherits nothing.
_BORROWED: Mapping[Form, str] = {
    "condensed": "the condensed form's network",
    "paper": "the network of `paper`",
    "paper-middle": "the network of `paper-middle`",
    "paper-front": "the network of `paper-front`",
}


def _described(method: Method) -> str:
    if method.form is None:
        return "no transfer at all: whitened patches of the support images, logistic regression"
    if method.adaptation == "random":
        return f"{_BORROWED[method.form]} with random weights; the same logistic head on its features"
    if method.adaptation == "head":
        return f"{_INHERITED[method.form]}; a logistic head on its features"
    if method.adaptation == "scratch":
        trained = f"{_BORROWED[method.form]}, trained from scratch"
    else:
        trained = f"{_INHERITED[method.form]}; {'inherited weights frozen' if method.frozen else _HELD[method.fisher]}"
    return f"{trained}, then the logistic head on its features" if method.head else trained


#: What a user should run.
DEFAULT = "condensed"
#: What the default is measured against, in the order of every table; ``whole`` is the upper reference.
CONTROLS = ("direct", "direct-inherited", "random", "scratch", "scratch-head", "whole")


def in_order(names: Iterable[str]) -> list[str]:
    """Names of methods as tables and figures order them: the default, its controls, then the others as they come."""
    first = {name: place for place, name in enumerate((DEFAULT, *CONTROLS))}
    return sorted(names, key=lambda name: first.get(name, len(first)))


#: Methods in the order of every table and figure, with what each one is.
METHODS: Mapping[str, str] = {name: _described(method_table.METHODS[name]) for name in in_order(method_table.METHODS)}


def pairs(methods: Iterable[str]) -> dict[str, list[tuple[str, str]]]:
    """Which methods are compared on the same tasks: heading -> (first, second), each pair once.

    The default against every other, its controls among them; the chosen layers against those of other positions; each
    source of the Fisher diagonal against the collective's, with the same start; every network that inherits and trains
    against the same architecture from scratch, with the same head; and on one trained network the logistic head
    against the network's own classifier. What training adds under the same head, against frozen features: of inherited
    layers it is in the first group, of random ones a group of its own. At each smaller size the default against the
    other methods at that size.
    """
    every = list(methods)
    given = [name for name in every if not name_and_change(name)[1]]
    sized = [(name, *name_and_change(name)) for name in every if name_and_change(name)[1]]
    known = [method_table.METHODS[name] for name in given if name in method_table.METHODS]
    trained = [method for method in known if method.adaptation == "eq9" and method.form is not None]
    headed = [method for method in known if method.head]
    wanted = {
        "the default against every other": [(DEFAULT, name) for name in given if name != DEFAULT],
        "the chosen layers against other positions": [("paper", "paper-middle"), ("paper", "paper-front")],
        "the source of the Fisher diagonal, against the collective's": [
            (method.name, method.start) for method in trained if method.name != method.start and not method.head
        ],
        "a learngene against none": [(method.name, _from_scratch(method)) for method in trained],
        "the logistic head against the network's own classifier": [(method.name, method.start) for method in headed],
        "training against random weights, the same head": [("scratch-head", "random")],
        "the default against others, size by size": [
            (f"{DEFAULT} {size}", name) for name, method, size in sized if method != DEFAULT
        ],
    }
    found = {title: [pair for pair in group if set(pair) <= set(every)] for title, group in wanted.items()}
    return {title: group for title, group in found.items() if group}


def _from_scratch(method: Method) -> str:
    """The method that trains the same architecture from scratch, and names images by the same kind of head."""
    assert method.form is not None
    return f"{scratch_of(method.form)}{'-head' if method.head else ''}"


def pair_key(first: str, second: str) -> str:
    """The key of a pair in ``Results.paired``."""
    return f"{first}-{second}"


def compare(
    accuracies: Mapping[str, Mapping[int, Mapping[int, Percent]]], classes: Sequence[tuple[str, ...]] = ()
) -> dict[str, dict[int, PairedResult]]:
    """Compare every pair of methods at every shot count on the tasks that both have.

    Args:
        accuracies: method -> shots -> run-wide task number -> accuracy.
        classes: of every run-wide task, for the interval over new classes; empty: not known.
    """
    of_task = dict(enumerate(classes))
    paired: dict[str, dict[int, PairedResult]] = {}
    for first, second in [pair for group in pairs(accuracies).values() for pair in group]:
        by_shots = paired.setdefault(pair_key(first, second), {})
        for shots, tasks in accuracies[first].items():
            difference = paired_difference(tasks, accuracies[second].get(shots, {}), of_task)
            if difference is not None:
                by_shots[shots] = PairedResult(
                    mean=difference.mean,
                    ci95_tasks=difference.ci95,
                    ci95_classes=difference.ci95_classes,
                    tasks=difference.count,
                )
    return paired
