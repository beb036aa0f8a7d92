"""The table of methods: how each one solves a target task, by name."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from protocol.learngene.architecture import COMPLETE_FORMS, Form, SizeName

#: ``head``: a logistic head on inherited features. ``random``: the same head on features of random weights. ``eq9``:
#: the network is trained by Eq. 9 (by Eq. 6 if nothing is retained). ``scratch``: the same network, nothing inherited.
#: ``floor``: no network at all.
Adaptation = Literal["head", "random", "eq9", "scratch", "floor"]
#: Origin of the Fisher diagonal of Eq. 8: the collective's images, in the learngene; the individual's own, through its
#: current head (Algorithm 1); or none, so nothing is retained.
FisherSource = Literal["collective", "individual", "none"]


@dataclass(frozen=True)
class Method:
    """One way to solve a target task.

    Attributes:
        name: unique.
        form: of the learngene that is inherited, or whose architecture is borrowed; None: no network.
        adaptation: how the target task is solved.
        fisher: origin of the Fisher diagonal.
        frozen: whether weights and BatchNorm statistics of the inherited blocks are not changed.
        start: methods with one ``start`` and form begin a target task with the same weights of their own.
        head: whether the logistic head on the features of the trained network takes the place of its own classifier.
    """

    name: str
    form: Form | None
    adaptation: Adaptation
    fisher: FisherSource
    frozen: bool
    start: str
    head: bool = False

    @property
    def inherits(self) -> bool:
        """Whether a learngene's weights are used, not only its architecture."""
        return self.adaptation in ("head", "eq9")

    @property
    def trains(self) -> bool:
        """Whether a network is trained on the support images."""
        return self.adaptation in ("eq9", "scratch")


#: Most rows of results: methods, and methods at further sizes.
MOST_SCORED = 100


@dataclass(frozen=True)
class Descent:
    """A learning rate and a weight decay."""

    learning_rate: float
    weight_decay: float

    @property
    def name(self) -> str:
        """In a row of results."""
        return f"rate {self.learning_rate:g} decay {self.weight_decay:g}"


@dataclass(frozen=True)
class Scored:
    """A method as it is scored: as the individual's settings say, or at another size, or with another learning rate and
    weight decay."""

    method: Method
    size: SizeName | None = None
    descent: Descent | None = None

    @property
    def name(self) -> str:
        """Name of a row of results: of the method, and behind a space what differs from the settings."""
        changes = [self.size, None if self.descent is None else self.descent.name]
        return " ".join([self.method.name, *filter(None, changes)])


def name_and_change(name: str) -> tuple[str, str]:
    """The method's name in a row of results, and what differs from the settings, a size or a descent; empty: none."""
    method, _, change = name.partition(" ")
    return method, change


def scratch_of(form: Form) -> str:
    """The method that trains this form's own architecture from scratch."""
    return "scratch" if form in COMPLETE_FORMS else f"{form}-scratch"


def _variants(name: str, form: Form) -> list[Method]:
    """Eq. 9 with the collective's Fisher diagonal, and methods that differ from it in one thing."""
    return [
        Method(name, form, "eq9", "collective", frozen=False, start=name),
        Method(f"{name}-individual", form, "eq9", "individual", frozen=False, start=name),
        Method(f"{name}-none", form, "eq9", "none", frozen=False, start=name),
        Method(f"{name}-frozen", form, "eq9", "none", frozen=True, start=name),
        Method(f"{name}-head", form, "eq9", "collective", frozen=False, start=name, head=True),
    ]


def _scratch(form: Form) -> list[Method]:
    """The form's network from scratch, with its own classifier and with the logistic head."""
    name = scratch_of(form)
    return [
        Method(name, form, "scratch", "none", frozen=False, start=name),
        Method(f"{name}-head", form, "scratch", "none", frozen=False, start=name, head=True),
    ]


_ROWS = (
    Method("condensed", "condensed", "head", "none", frozen=True, start="condensed"),
    *(Method(form, form, "head", "none", frozen=True, start=form) for form in COMPLETE_FORMS if form != "condensed"),
    *_variants("condensed-eq9", "condensed"),
    *_scratch("condensed"),
    Method("random", "condensed", "random", "none", frozen=True, start="scratch"),
    *_variants("paper", "paper"),
    *_scratch("paper"),
    *_variants("paper-middle", "paper-middle"),
    *_scratch("paper-middle"),
    *_variants("paper-front", "paper-front"),
    *_scratch("paper-front"),
    Method("floor", None, "floor", "none", frozen=False, start="floor"),
)

#: Every method by its name.
METHODS: Mapping[str, Method] = {method.name: method for method in _ROWS}
