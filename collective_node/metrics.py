"""The model of the collective's ``metrics.json``, with which its node writes the file and every reader reads it."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from collective_node.differential_privacy.mechanism import Mechanism
from collective_node.records import Comparison, CycleRecord, TaskRecord
from protocol.encoding.blob import Dtype
from protocol.encoding.earlier_words import in_todays_words
from protocol.learngene.architecture import MOST_SIZES, CompactForm, Form, Size
from protocol.learngene.learngene import FisherDescription
from protocol.node.metrics import Name, Percent

_FROZEN = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

#: SHA-256 in hexadecimal digits.
Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class GradientTrend(BaseModel):
    """Eq. 4 and 5: ``rho[layer][task]``, the share of a layer's parameters with a gradient above ``sigma``; None if the
    layer did not exist yet.
    """

    model_config = _FROZEN

    layers: tuple[Name, ...]
    rho: tuple[tuple[float | None, ...], ...]
    sigma: float

    @model_validator(mode="after")
    def _as_many_as_layers(self) -> "GradientTrend":
        if len(self.layers) != len(self.rho) or len({len(row) for row in self.rho}) > 1:
            raise ValueError(f"rho must have one row for each of the {len(self.layers)} layers, all as long")
        return self


class Similarity(BaseModel):
    """The second criterion (arXiv 2305.02279): linear CKA of each convolution with a pseudo-descendant's most similar
    one, 0 to 1, and the ``layers`` that it would choose, numbered from 1."""

    model_config = _FROZEN

    per_layer: tuple[float, ...]
    layers: tuple[int, ...]


class Criterion(BaseModel):
    """Which layers make the learngene.

    Attributes:
        chosen: layers that the form ``paper`` took, numbered from 1.
        settled: of each layer, whether its gradient trend settled.
        found: how many settled ones end at the last layer, which is k if the settings leave it open.
        similarity: None if no pseudo-descendant was trained.
    """

    model_config = _FROZEN

    chosen: tuple[int, ...]
    settled: tuple[bool, ...]
    found: int
    similarity: Similarity | None

    @model_validator(mode="after")
    def _as_many_as_layers(self) -> "Criterion":
        numbers = (*self.chosen, *(self.similarity.layers if self.similarity else ()))
        if not all(number >= 1 for number in numbers):
            raise ValueError("layers are numbered from 1")
        if self.similarity is not None and len(self.similarity.per_layer) != len(self.settled):
            raise ValueError(f"settled must hold each of the {len(self.similarity.per_layer)} layers of the similarity")
        return self

    @property
    def settled_layers(self) -> tuple[int, ...]:
        """Numbers of the settled layers, from 1."""
        return tuple(number for number, found in enumerate(self.settled, start=1) if found)


class OpenWorld(BaseModel):
    """The run's own open-world cycles, and the same cycles with other scores and strategies."""

    model_config = _FROZEN

    cycles: tuple[CycleRecord, ...] = ()
    comparisons: tuple[Comparison, ...] = ()


class FisherFacts(FisherDescription):
    """A learngene's Fisher diagonal, with its largest and its mean entry."""

    model_config = ConfigDict(allow_inf_nan=False)

    largest: float
    mean: float


class SizeFacts(BaseModel):
    """One size of a learngene. ``bytes``: of a blob that held nothing else, Fisher diagonal included if it has one.
    ``accuracy``: of its network with the collective's classifier, on held-out images of the base classes."""

    model_config = _FROZEN

    size: Size
    parameters: int = Field(ge=1)
    bytes: int = Field(ge=1)
    accuracy: Percent | None = None


class LearngeneFacts(BaseModel):
    """A published learngene: its blocks in one line, the digest of its release, and its Fisher diagonal.

    Attributes:
        dtype: of its convolutions in the blob.
        bytes: of the blob, Fisher diagonal included; None: an earlier version did not say.
        sizes: the smaller networks in it, smallest first, then the whole; empty: there are none.
    """

    model_config = _FROZEN

    architecture: str
    release: Digest
    fisher: FisherFacts
    dtype: Dtype = "float32"
    bytes: int | None = Field(None, ge=1)
    sizes: tuple[SizeFacts, ...] = Field((), max_length=MOST_SIZES + 1)


class CollectiveMetrics(BaseModel):
    """``metrics.json`` of the collective. Accuracies in per cent, times in seconds of wall clock.

    An evolution with private weights has no sequence of tasks, no gradient trend and no open world: it leaves out the
    fields that have a default.

    Attributes:
        tasks: one record for each task.
        base_accuracy: on held-out images of the classes of the tasks, after everything.
        known_classes: how many classes it knows.
        condensed_accuracy: of the condensed network, on held-out images of the base classes.
        compact_accuracy: the same of every compact form's network.
        learngenes: by form.
        parameters: numbers of weights, by network.
        weights_sha256: of the network; equal for equal weights.
        privacy: the mechanism behind the guarantee of its learngenes, if there is one.
        device, threads: what it was computed on.
        confinement: the node's own line about what the operating system enforced.
        seconds: wall-clock times, by step.
    """

    model_config = _FROZEN

    _earlier = model_validator(mode="before")(in_todays_words)

    tasks: tuple[TaskRecord, ...]
    base_accuracy: Percent | None = None
    known_classes: int = Field(ge=1)
    condensed_accuracy: Percent | None = None
    compact_accuracy: dict[CompactForm, Percent] = {}
    gradient_trend: GradientTrend | None = None
    criterion: Criterion | None = None
    open_world: OpenWorld = OpenWorld()
    learngenes: dict[Form, LearngeneFacts]
    parameters: dict[str, int]
    weights_sha256: Digest | None = None
    privacy: Mechanism | None = None
    device: str
    threads: int = Field(ge=1)
    confinement: str
    seconds: dict[str, float]

    @model_validator(mode="after")
    def _criterion_of_every_layer(self) -> "CollectiveMetrics":
        trend, criterion = self.gradient_trend, self.criterion
        if trend and criterion and len(criterion.settled) != len(trend.layers):
            raise ValueError(f"the criterion must hold each of the {len(trend.layers)} layers")
        return self
