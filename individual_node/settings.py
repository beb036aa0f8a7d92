"""Settings of an individual: which methods it runs, and how it adapts."""

from dataclasses import dataclass
from itertools import product
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from individual_node.method_table import METHODS, MOST_SCORED, Descent, Method, Scored
from protocol.learngene.architecture import (
    COMPLETE_FORMS,
    FULL,
    MOST_SIZES,
    SIZED_FORMS,
    Architecture,
    Form,
    Size,
    SizeName,
)
from protocol.learngene.learngene import Estimator
from protocol.learngene.sizes import largest_size

#: The methods that run by default.
DEFAULT_METHODS = ("condensed", "condensed-eq9", "scratch", "random", "paper", "paper-scratch", "floor")
#: How many shifted copies of an image there are to choose from: its eight neighbours.
MOST_SHIFTS = 8

#: The first own convolution in front: He's random weights, or filters as the floor has them.
FrontStart = Literal["random", "patches"]
Channels = Annotated[int, Field(ge=1, le=4096)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True)
class OwnLayers:
    """Depth and width of the blocks that an individual adds to the inherited ones; None: as the learngene suggests.

    Attributes:
        front, back: channels of its own convolutions in front of and behind the inherited ones.
        hidden: units of each of the classifier's two hidden layers.
    """

    front: tuple[int, ...] | None = None
    back: tuple[int, ...] | None = None
    hidden: int | None = None


@dataclass(frozen=True)
class HeadChoice:
    """What a logistic head may be: the L2 penalty, and the share of the top's view; the stem's view has the rest."""

    penalty: float
    top_share: float = 0.5


@dataclass(frozen=True)
class HeadSettings:
    """How a logistic head is fitted, and on which views.

    Attributes:
        default: where nothing is chosen, or nothing is clearly better.
        others: what a cross-validation on the support images may choose instead.
        folds: of the cross-validation.
        shifts: shifted copies of each support image that the head learns from too.
        view_shifts: shifted copies beside each image, support or test, over which its views are summed.
    """

    default: HeadChoice
    others: tuple[HeadChoice, ...] = ()
    folds: int = 5
    shifts: int = 0
    view_shifts: int = 0


def takes_the_image(form: Form) -> str | None:
    """The reason why no block can stand in front of a form's first inherited block; None: one can."""
    if form in COMPLETE_FORMS:
        return f"a learngene in the form {form} begins with its own stem"
    return "a learngene from the front of a network takes the image itself" if form == "paper-front" else None


class IndividualSettings(BaseModel):
    """Everything that decides how an individual adapts; the defaults are the profile ``quick``."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    methods: tuple[str, ...] = DEFAULT_METHODS
    epochs: int = Field(20, ge=1, description="passes over a task's support images (the paper's 30)")
    batch_size: int = Field(32, ge=2)
    learning_rate: float = Field(0.005, gt=0, description="of the methods that inherit (the paper's)")
    scratch_learning_rate: float = Field(0.02, gt=0, description="of `scratch`, a complete network")
    scratch_epochs: int | None = Field(None, ge=1, description="of `scratch`; none: as many as `epochs`")
    paper_scratch_learning_rate: float = Field(
        0.02, gt=0, description="of `paper-scratch` and those of other positions"
    )
    paper_scratch_epochs: int | None = Field(None, ge=1, description="likewise; none: as many as `epochs`")
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(5e-4, ge=0)
    retain_weight: float | None = Field(
        None, ge=0, description="lambda of Eq. 9; none: the paper's 1000, or half of what is stable where that is less"
    )
    fisher_estimator: Estimator = Field("sampled", description="of an individual's own Fisher diagonal (Algorithm 1)")
    fisher_every: int = Field(1, ge=1, description="epochs from one Fisher diagonal of its own to the next")
    early_stopping: int | None = Field(
        None, ge=1, description="epochs without a better validation loss before a network stops; none: no validation"
    )
    validation_share: float = Field(
        0.2, gt=0, lt=1, description="of each class's support images, held out for early stopping"
    )
    own_front: tuple[Channels, ...] | None = Field(
        None, max_length=24, description="channels of its own convolutions in front; none: as the learngene suggests"
    )
    own_back: tuple[Channels, ...] | None = Field(
        None, max_length=24, description="channels of its own convolutions behind; none: as the learngene suggests"
    )
    own_front_start: FrontStart = Field(
        "random", description="of the first own convolution in front: random, or whitened patches of the support images"
    )
    statistics_weight: float = Field(
        0.0, ge=0, description="of the loss that fits own layers in front to the BatchNorm statistics of inherited ones"
    )
    hidden: Channels | None = Field(
        None, description="units of the classifier's two hidden layers; none: twice the last convolution's channels"
    )
    penalty: float = Field(0.3, gt=0, description="L2 penalty of the logistic head on a network's features")
    top_share: Share = Field(0.5, description="of the top's view of an image in the head; the stem's view has the rest")
    cross_validation: int | None = Field(
        None, ge=2, description="folds by which each head chooses from the two grids; none: `penalty` and `top_share`"
    )
    penalty_grid: tuple[Positive, ...] = Field((0.1, 0.3, 1.0), max_length=16)
    top_share_grid: tuple[Share, ...] = Field((0.5,), max_length=16)
    view_shifts: int = Field(
        0, ge=0, le=MOST_SHIFTS, description="shifted copies that are looked at beside each image, of support and test"
    )
    support_shifts: int = Field(
        0, ge=0, le=MOST_SHIFTS, description="shifted copies of each support image from which the head learns too"
    )
    size: Size = Field("full", description="of a learngene that has smaller ones: full, or one that it offers")
    most_weights: int | None = Field(
        None, ge=1, description="instead of `size`: the largest size of at most so many weights"
    )
    compare_sizes: tuple[SizeName, ...] = Field(
        (), max_length=MOST_SIZES, description="sizes at which the methods of condensed and direct are scored besides"
    )
    compare_learning_rates: tuple[Positive, ...] = Field(
        (),
        max_length=8,
        description="with which methods that train are scored besides, each with every weight decay",
    )
    compare_weight_decays: tuple[NotNegative, ...] = Field(
        (), max_length=8, description="likewise; empty: the setting's own"
    )
    networks_at_once: int = Field(4, ge=1, description="target tasks that train as one batched network")
    curve_tasks: int = Field(10, ge=0, description="target tasks behind the learning curves")
    patches: int = Field(400, ge=1, description="filters of the transfer-free floor")
    floor_penalty: float = Field(0.1, gt=0, description="L2 penalty of the floor's logistic head")

    @field_validator("methods")
    @classmethod
    def _methods_are_known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if name not in METHODS:
                raise ValueError(f"unknown method {name!r}; the methods are: {', '.join(METHODS)}")
        return value

    @model_validator(mode="after")
    def _own_layers_have_a_place(self) -> "IndividualSettings":
        if self.own_front is not None:
            for name in self.methods:
                method = METHODS[name]
                reason = takes_the_image(method.form) if method.form and method.trains else None
                if reason is not None:
                    raise ValueError(f"own_front has no place in the method {name!r}: {reason}; leave one of them out")
        return self

    @model_validator(mode="after")
    def _comparisons_fit(self) -> "IndividualSettings":
        if self.most_weights is not None and self.size != FULL:
            raise ValueError("size and most_weights say the same thing: give one of them")
        if len(set(self.compare_sizes)) != len(self.compare_sizes):
            raise ValueError("compare_sizes: a size stands twice")
        if self.compare_sizes and (self.most_weights is not None or self.size != FULL):
            raise ValueError("compare_sizes are compared with the whole: leave size and most_weights out")
        if self.compare_weight_decays and not self.compare_learning_rates:
            raise ValueError("compare_weight_decays go with compare_learning_rates: give both")
        for values in (self.compare_learning_rates, self.compare_weight_decays):
            if len(set(values)) != len(values):
                raise ValueError(f"compare_learning_rates, compare_weight_decays: {values} has a value twice")
        if len(self.scored) > MOST_SCORED:
            raise ValueError(
                f"methods and what they are compared at make {len(self.scored)} rows of results, at most {MOST_SCORED}"
            )
        return self

    def size_of(self, architecture: Architecture) -> Size:
        """The size to which a learngene descends; ``full`` in a form that has no sizes.

        Raises:
            InputError: no size of the learngene has as few weights.
        """
        if architecture.form not in SIZED_FORMS:
            return FULL
        return self.size if self.most_weights is None else largest_size(architecture, self.most_weights)

    @property
    def scored(self) -> tuple[Scored, ...]:
        """What is scored: every method as it is set; then those of sized forms at other sizes, and those that train
        with other learning rates and weight decays."""
        methods = [METHODS[name] for name in self.methods]
        sized = [method for method in methods if method.form in SIZED_FORMS]
        trained = [method for method in methods if method.trains]
        decays = self.compare_weight_decays or (self.weight_decay,)
        descents = [Descent(*pair) for pair in product(self.compare_learning_rates, decays)]
        return (
            *map(Scored, methods),
            *(Scored(method, size) for size in self.compare_sizes for method in sized),
            *(Scored(method, descent=descent) for descent in descents for method in trained),
        )

    def with_descent(self, descent: Descent) -> "IndividualSettings":
        """The same settings with this learning rate, of methods that inherit and of those that do not, and weight
        decay."""
        rates = ("learning_rate", "scratch_learning_rate", "paper_scratch_learning_rate")
        changes = dict.fromkeys(rates, descent.learning_rate) | {"weight_decay": descent.weight_decay}
        return self.model_copy(update=changes)

    @property
    def own_layers(self) -> OwnLayers:
        """Depth and width of the individual's own layers."""
        return OwnLayers(self.own_front, self.own_back, self.hidden)

    @property
    def head(self) -> HeadSettings:
        """How a logistic head on features is fitted."""
        grid = [HeadChoice(*one) for one in product(self.penalty_grid, self.top_share_grid)]
        default = HeadChoice(self.penalty, self.top_share)
        if self.cross_validation is None:
            return HeadSettings(default, shifts=self.support_shifts, view_shifts=self.view_shifts)
        others = tuple(choice for choice in dict.fromkeys(grid) if choice != default)
        return HeadSettings(default, others, self.cross_validation, self.support_shifts, self.view_shifts)

    def schedule_of(self, method: Method) -> tuple[float, int]:
        """Learning rate and epochs of a method that trains a network."""
        if method.adaptation != "scratch" or method.form is None:
            return self.learning_rate, self.epochs
        if method.form in COMPLETE_FORMS:
            return self.scratch_learning_rate, self.scratch_epochs or self.epochs
        return self.paper_scratch_learning_rate, self.paper_scratch_epochs or self.epochs
