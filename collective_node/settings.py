"""Settings of the collective: its network, its training, what it publishes."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from protocol.architecture import Form
from protocol.learngene import Estimator

Strategy = Literal["replay", "none"]


class CollectiveSettings(BaseModel):
    """Everything that decides what the collective learns; the defaults are the profile ``quick``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    width: float = Field(0.25, gt=0, le=2, description="factor on every layer's channels")
    tasks: int = Field(13, ge=1, description="sequential tasks; 13 partition the 64 base classes")
    classes_per_task: int = Field(5, ge=2)
    strategy: Strategy = Field("replay", description="against forgetting; none is the paper's")
    expand: bool = Field(True, description="take the paper's widening steps between tasks")
    epochs: float = Field(
        0.7, gt=0, description="passes over the images of all known classes (none: of the task) a task"
    )
    batch_size: int = Field(64, ge=2)
    learning_rate: float = Field(0.05, gt=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(5e-4, ge=0)
    label_smoothing: float = Field(0.1, ge=0, lt=1)
    dropout: float = Field(0.0, ge=0, lt=1)
    sigma: float | None = Field(None, gt=0, description="threshold of Eq. 5; none: from the first task")
    top: int = Field(3, ge=1, le=12, description="k, the inherited top layers")
    forms: tuple[Form, ...] = ("condensed", "paper")
    condense_epochs: float = Field(6.0, gt=0, description="passes over the base images for the light stem")
    condense_learning_rate: float = Field(0.1, gt=0)
    fisher_estimator: Estimator = "sampled"
    fisher_samples: int = Field(1024, ge=1)
