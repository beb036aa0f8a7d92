"""Settings of an individual: which methods it runs, and how it adapts."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from individual_node.method_table import METHODS
from protocol.learngene.architecture import COMPLETE_FORMS, Form
from protocol.learngene.learngene import Estimator

#: The methods that run by default.
DEFAULT_METHODS = ("condensed", "condensed-eq9", "paper", "scratch", "floor")
#: Forms whose first inherited block always takes the image: no block can stand in front of it.
TAKES_THE_IMAGE: Mapping[Form, str] = {
    **{form: f"a {form} learngene begins with its own stem" for form in COMPLETE_FORMS},
    "paper-front": "a learngene from the front of a network takes the image itself",
}

Channels = Annotated[int, Field(ge=1, le=4096)]


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


class IndividualSettings(BaseModel):
    """Everything that decides how an individual adapts; the defaults are the profile ``quick``."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    methods: tuple[str, ...] = DEFAULT_METHODS
    epochs: int = Field(20, ge=1, description="passes over a task's support images (the paper's 30)")
    batch_size: int = Field(32, ge=2)
    learning_rate: float = Field(0.005, gt=0, description="of the methods that inherit (the paper's)")
    scratch_learning_rate: float = Field(0.02, gt=0)
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
    hidden: Channels | None = Field(
        None, description="units of the classifier's two hidden layers; none: twice the last convolution's channels"
    )
    penalty: float = Field(0.3, gt=0, description="L2 penalty of the logistic head on inherited features")
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
                reason = TAKES_THE_IMAGE.get(method.form) if method.form and method.adaptation != "head" else None
                if reason is not None:
                    raise ValueError(f"own_front has no place in the method {name!r}: {reason}; leave one of them out")
        return self

    @property
    def own_layers(self) -> OwnLayers:
        """Depth and width of the individual's own layers."""
        return OwnLayers(self.own_front, self.own_back, self.hidden)
