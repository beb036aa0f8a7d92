"""The model of an individual's ``metrics.json``: with which its node writes the file and every reader reads it."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

from protocol.encoding.earlier_words import in_todays_words
from protocol.learngene.architecture import Form
from protocol.node.metrics import Name, Percent
from protocol.trust.trust_store import RevocationStatus

_FROZEN = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

#: The classes of a target task.
TaskClasses = Annotated[tuple[Name, ...], Field(min_length=1)]


class LearningCurve(BaseModel):
    """Mean accuracy over the first ``tasks`` target tasks of an individual after each of ``epochs``, per cent."""

    model_config = _FROZEN

    tasks: int = Field(ge=0)
    epochs: tuple[int, ...]
    accuracy: tuple[Percent, ...]

    @model_validator(mode="after")
    def _as_many_as_epochs(self) -> "LearningCurve":
        if len(self.epochs) != len(self.accuracy):
            raise ValueError(f"{len(self.accuracy)} accuracies are given for {len(self.epochs)} epochs")
        return self


class IndividualMetrics(BaseModel):
    """``metrics.json`` of an individual. Accuracies in per cent, times in seconds.

    Attributes:
        methods: method -> shots -> run-wide task number -> accuracy on the task's test images.
        task_classes: run-wide task number -> the task's classes, at every shot count; empty: an earlier version. With
            the accuracies they are all that an interval over new classes needs: a class's images are nested in it.
        curves: method -> shots -> learning curve; only of methods that learn by epochs.
        retain_weight: lambda of Eq. 9 by method (the median, if each task and epoch has its own).
        inherited: blocks of each inherited learngene in one line, by form.
        revocation_status: of each inherited learngene that is withdrawn, or signed with a compromised key, by form.
        device, threads: what it was computed on.
        confinement: the node's own line about what the operating system enforced.
        seconds: processor times, by method: methods run side by side.
    """

    model_config = _FROZEN

    _earlier = model_validator(mode="before")(in_todays_words)

    methods: dict[Name, dict[int, dict[int, Percent]]]
    task_classes: dict[int, TaskClasses] = {}
    curves: dict[Name, dict[int, LearningCurve]]
    retain_weight: dict[Name, float]
    inherited: dict[Form, str]
    revocation_status: dict[Form, RevocationStatus]
    device: str
    threads: int = Field(ge=1)
    confinement: str
    seconds: dict[str, float]
