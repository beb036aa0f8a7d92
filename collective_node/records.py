"""Records of each task and each open-world cycle; all accuracies in per cent."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from collective_node.settings import Score, Strategy

_FROZEN = ConfigDict(frozen=True, extra="forbid")

#: A share in per cent.
Percent = Annotated[float, Field(ge=0, le=100)]


class ChanceLevels(BaseModel):
    """What a score that says nothing about an image reaches on a stream, in per cent: the level that each metric is to
    be read against.

    Attributes:
        auroc, fpr95: 50 and 95, whatever the stream.
        aupr: the share of unknown images.
        oscr: half the closed-set accuracy, the share of known images that their largest logit names rightly.
        all_flagged: open-set accuracy when every image is flagged: the share of unknown images.
        none_flagged: open-set accuracy when none is: the share of images that are known and named rightly.
    """

    model_config = _FROZEN

    auroc: Percent = 50.0
    fpr95: Percent = 95.0
    aupr: Percent
    oscr: Percent
    all_flagged: Percent
    none_flagged: Percent


class StreamMetrics(BaseModel):
    """Metrics of a stream of ``known`` and ``unknown`` images, in per cent; each by the function of its name in
    :mod:`collective_node.open_world.metrics`. ``chance`` is None in files of before it was measured."""

    model_config = _FROZEN

    known: int = Field(ge=1)
    unknown: int = Field(ge=1)
    auroc: Percent
    fpr95: Percent = Field(description="FPR at 95 % TPR")
    aupr: Percent
    oscr: Percent
    open_set_accuracy: Percent
    chance: ChanceLevels | None = None


class TaskFigures(BaseModel):
    """Figures of one finished task: its classes by name, the number of known classes after it, its steps, and its
    accuracies on held-out images of all known classes and of those known before it (none before the first). Equal runs
    have equal figures."""

    model_config = _FROZEN

    task: int
    classes: list[str]
    known: int
    steps: int
    loss: float
    accuracy: Percent
    old_accuracy: Percent | None
    widths: list[int]


class TaskRecord(TaskFigures):
    """A task's figures, and the wall-clock time that it took."""

    seconds: float


class Named(BaseModel):
    """The answer of an annotator in one cycle: rows of the stream, and the class of each."""

    model_config = _FROZEN

    rows: list[int]
    names: list[str]


class CycleFigures(BaseModel):
    """Figures of one open-world cycle. Those that need the stream's labels are None if these are not known. Equal
    runs have equal figures.

    Attributes:
        stream: images of this cycle's part of the stream.
        unknown_set: how many of them were above the threshold; ``truly_unknown``: how many of these are unknown.
        named, dismissed: images that got a new class (further examples included), and images of the unknown set that
            did not. ``found`` and ``given``: how many of the named ones recognition found, being in the unknown set,
            and how many the oracle added as further examples.
        classes: the new classes. ``known``: all known ones after the cycle.
        before, after: by score, on this part of the stream before the classes were added, and on the next part after
            they were; None if that part holds no unknown (or no known) image, or the score could not be taken.
        open_accuracy_before, open_accuracy_after: on held-out images of all classes named so far, this cycle's among
            them, and among all known classes, before and after this cycle's training.
        open_only_accuracy_before, open_only_accuracy_after: on the same images among the named classes alone: the
            largest of their logits counts. None in files of before it was measured.
        old_open_accuracy_before, old_open_accuracy_after: of those named in earlier cycles alone; None in the first.
        base_accuracy_before, base_accuracy_after: on held-out images of the classes of the tasks. The loss of these and
            of the earlier named ones is forgetting.
        retain_weight: weight of the EWC penalty, with the strategy ``ewc``.
    """

    model_config = _FROZEN

    cycle: int
    score: Score
    strategy: Strategy
    threshold: float
    stream: int
    unknown_set: int
    truly_unknown: int | None
    named: int
    dismissed: int
    classes: list[str]
    known: int
    before: dict[Score, StreamMetrics | None] | None
    after: dict[Score, StreamMetrics | None] | None
    open_accuracy_before: Percent | None
    open_accuracy_after: Percent | None
    old_open_accuracy_before: Percent | None
    old_open_accuracy_after: Percent | None
    base_accuracy_before: Percent
    base_accuracy_after: Percent
    retain_weight: float | None
    steps: int
    open_only_accuracy_before: Percent | None = None
    open_only_accuracy_after: Percent | None = None

    @property
    def found(self) -> int:
        """Named images that recognition found."""
        return self.unknown_set - self.dismissed

    @property
    def given(self) -> int:
        """Named images that were not in the unknown set: the oracle's further examples."""
        return self.named - self.found


class CycleRecord(CycleFigures):
    """A cycle's figures, and the wall-clock time that it took."""

    seconds: float


class Comparison(BaseModel):
    """The cycles with another score or strategy, from the same state after the last task. ``stopped`` says why they
    ended early, if they did.
    """

    model_config = _FROZEN

    score: Score
    strategy: Strategy
    cycles: list[CycleRecord]
    stopped: str | None = None
