"""The profiles: settings of a run's training and target tasks, by its size and dataset."""

from collections.abc import Mapping
from functools import partial
from typing import Literal

from pydantic import BaseModel, ConfigDict

from collective_node.settings import CollectiveSettings
from individual_node.settings import IndividualSettings
from protocol.errors import InputError
from protocol.learngene.architecture import Form
from sims.data.datasets import DatasetName

ProfileName = Literal["smoke", "quick", "small", "paper"]


class Profile(BaseModel):
    """Defaults of one size of run. ``target_tasks`` maps shots per class to the number of target tasks."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    purpose: str
    target_tasks: dict[int, int]
    needs_cuda: bool = False
    collective: CollectiveSettings
    individual: IndividualSettings


#: Forms and methods of a run: the learngenes, and the controls that one of them must beat.
_FORMS: tuple[Form, ...] = ("condensed", "direct", "whole", "paper")
_METHODS = (
    "condensed",
    "direct",
    "whole",
    "condensed-eq9",
    "scratch",
    "random",
    "paper",
    "paper-scratch",
    "floor",
)
_collective = partial(CollectiveSettings, forms=_FORMS)
_individual = partial(IndividualSettings, methods=_METHODS)

# The numbers. ``width``: factor on every width of the paper's network; ``tasks``: sequential tasks of the collective.
# What is not named here has the default of ``CollectiveSettings`` or ``IndividualSettings``.
_AT_32: Mapping[ProfileName, Profile] = {
    "smoke": Profile(
        purpose="shows that every part works; its accuracies mean nothing",
        target_tasks={10: 4, 20: 2},
        collective=_collective(
            width=0.0625,
            tasks=2,
            epochs=0.2,
            consolidate_epochs=0.2,
            parts=2,
            cycles=1,
            open_epochs=0.2,
            condense_epochs=0.2,
            condense_budget="own",
        ),
        individual=_individual(epochs=2, patches=50, curve_tasks=2),
    ),
    "quick": Profile(
        purpose="some 10 minutes on two cores",
        target_tasks={10: 40, 20: 10},
        collective=_collective(width=0.25, tasks=13, parts=2),
        individual=_individual(),
    ),
    "small": Profile(
        purpose="some 45 minutes on two cores",
        target_tasks={10: 60, 20: 40},
        collective=_collective(
            width=0.375,
            tasks=13,
            epochs=0.25,
            consolidate_epochs=6,
            parts=2,
            learning_rate=0.1,
            cycles=2,
            classes_per_cycle=8,
            open_epochs=1,
            condense_epochs=15,
            condense_budget="1M",
        ),
        individual=_individual(),
    ),
    "paper": Profile(
        purpose="the paper's figures; needs a CUDA device",
        target_tasks={10: 100, 20: 100},
        collective=_collective(
            width=1.0,
            classifier="mlp",
            tasks=50,
            epochs=8,
            consolidate_epochs=0,
            open_learning_rate=None,
            learning_rate=0.1,
            dropout=0.1,
            cycles=2,
            classes_per_cycle=8,
            open_epochs=8,
            condense_epochs=60,
            condense_budget="2M",
        ),
        individual=_individual(epochs=30),
        needs_cuda=True,
    ),
}

# A picture of 84x84 has 6.9 times the pixels of one of 32x32 and costs about as much more (measured: 6.4 to 7.9 times a
# training step), so fewer are used. The times are estimates from this, because we do not have the images.
_AT_84: Mapping[ProfileName, Profile] = {
    "smoke": Profile(
        purpose="shows that every part works; its accuracies mean nothing",
        target_tasks={10: 2, 20: 1},
        collective=_collective(
            width=0.0625,
            tasks=2,
            epochs=0.1,
            consolidate_epochs=0.05,
            parts=2,
            cycles=1,
            open_epochs=0.05,
            condense_epochs=0.05,
            condense_budget="own",
        ),
        individual=_individual(epochs=2, patches=20, curve_tasks=1),
    ),
    "quick": Profile(
        purpose="some 10 minutes on two cores (estimated); ten target tasks, as the paper",
        target_tasks={10: 10, 20: 10},
        collective=_collective(
            width=0.25, tasks=13, epochs=0.1, consolidate_epochs=1, parts=2, open_epochs=0.3, condense_epochs=2.5
        ),
        individual=_individual(epochs=15, patches=200, curve_tasks=5),
    ),
    "small": Profile(
        purpose="an hour or two on two cores (estimated)",
        target_tasks={10: 40, 20: 20},
        collective=_collective(
            width=0.375,
            tasks=13,
            epochs=0.25,
            consolidate_epochs=3,
            parts=2,
            learning_rate=0.1,
            cycles=2,
            classes_per_cycle=8,
            open_epochs=1,
            condense_epochs=8,
            condense_budget="1M",
        ),
        individual=_individual(epochs=30, patches=200),
    ),
    "paper": _AT_32["paper"],
}

#: A folder of one's own has the numbers of CIFAR-100, whatever size its images have.
PROFILES: Mapping[DatasetName, Mapping[ProfileName, Profile]] = {
    "cifar100": _AT_32,
    "imagenet100": _AT_84,
    "folder": _AT_32,
}
DEFAULT_PROFILE: ProfileName = "quick"


def profile_name(text: str) -> ProfileName:
    """The profile of that name.

    Raises:
        InputError: there is none.
    """
    for name in PROFILES["cifar100"]:
        if name == text:
            return name
    raise InputError(f"unknown profile {text!r}; choose one of: {', '.join(PROFILES['cifar100'])}")
