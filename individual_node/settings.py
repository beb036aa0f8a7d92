"""Settings of an individual: which methods it runs, and how it adapts."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Method = Literal["condensed", "condensed-eq9", "paper", "scratch", "floor"]
METHODS: tuple[Method, ...] = ("condensed", "condensed-eq9", "paper", "scratch", "floor")


class IndividualSettings(BaseModel):
    """Everything that decides how an individual adapts; the defaults are the profile ``quick``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    methods: tuple[Method, ...] = METHODS
    epochs: int = Field(20, ge=1, description="passes over a task's support images (the paper's 30)")
    batch_size: int = Field(32, ge=2)
    learning_rate: float = Field(0.005, gt=0, description="of the methods that inherit (the paper's)")
    scratch_learning_rate: float = Field(0.02, gt=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(5e-4, ge=0)
    retain: float | None = Field(
        None, ge=0, description="lambda of Eq. 9; none: the paper's 1000, or half of what is stable where that is less"
    )
    penalty: float = Field(0.3, gt=0, description="L2 penalty of the logistic head on inherited features")
    networks_at_once: int = Field(10, ge=1, description="target tasks that train as one batched network")
    curve_tasks: int = Field(10, ge=0, description="target tasks behind the learning curves")
    patches: int = Field(400, ge=1, description="filters of the transfer-free floor")
    floor_penalty: float = Field(0.1, gt=0, description="L2 penalty of the floor's logistic head")
