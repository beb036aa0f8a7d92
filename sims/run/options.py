"""The options of a run. Each is declared here once: its key, its type and check, its default, and its help.

``learngene run`` has a flag for each (:mod:`sims.run.run_command`), each Flower app a key in its ``pyproject.toml``.
A test checks that these files agree with this one. :mod:`sims.run.settings` resolves the options against a profile.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from protocol.errors import InputError, fault_line
from protocol.node.configuration import DEVICE_PATTERN
from protocol.pictures.formats import NAMES
from sims.data.datasets import CACHE, DatasetName, dataset_name
from sims.data.division_choice import DivisionName
from sims.run.profiles import DEFAULT_PROFILE, PROFILES, ProfileName, profile_name

#: A value of a run configuration (``flwr run --run-config``).
Value = str | int | float | bool

#: Folder of the runs if ``out`` is empty.
DEFAULT_OUT = Path("~/.learngene/runs")

#: The environment variable that names the folder of real images if no ``data`` is given.
DATA_VARIABLE = "LEARNGENE_DATA"
#: The environment variable that names the folder of what is kept for later runs if no ``cache`` is given.
CACHE_VARIABLE = "LEARNGENE_CACHE"


@dataclass(frozen=True)
class Flag:
    """Facts for the command line about an option beyond its name, type and help.

    Attributes:
        stands_for: meaning of the option's default, which is empty or 0; empty: the default has no other meaning.
        metavar: name of its value in the help; empty: the name of its type.
        variable: environment variable that gives its value if the flag is missing.
        path: the value is a path, and may be relative to the working directory.
        repeated: the flag may be repeated.
    """

    stands_for: str = ""
    metavar: str | None = None
    variable: str | None = None
    path: bool = False
    repeated: bool = False


def _number_as_text(value: object) -> object:
    """``--run-config 'shots=10'`` arrives as a number."""
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def _known_device(value: str) -> str:
    if not re.fullmatch(DEVICE_PATTERN, value):
        raise ValueError(f"{value!r} is no device; choose auto, cpu, cuda or cuda:<number>")
    return value


Text = Annotated[str, BeforeValidator(_number_as_text)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
Threads = Annotated[int, Field(ge=0, le=1024)]
Device = Annotated[str, AfterValidator(_known_device)]

_PROFILES_HELP = (
    f"Size of the run. {'; '.join(f'{name}: {profile.purpose}' for name, profile in PROFILES['cifar100'].items())}. "
    "The times are of cifar100."
)
_DEVICE_HELP = "auto, cpu, cuda or cuda:<number>."
DIVISION_HELP = (
    "own: the dataset's own classes for each role. tuning: its base classes alone, divided again, without its novel "
    "ones: settings are chosen there."
)
CACHE_HELP = "Folder of what is downloaded, drawn or decoded once, and kept for later runs."
DIVISION_SEED_HELP = "Which tuning division."
TEST_IMAGES_HELP = "Test images of each class in a target task, drawn anew for each."


def _key(name: str) -> str:
    return name.replace("_", "-")


class Options(BaseModel):
    """All options of a run. A default that is empty or 0 leaves the choice to the profile or the
    machine. The aliases are the keys of the run configuration, and the flags of ``learngene run``."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, alias_generator=_key, populate_by_name=True, allow_inf_nan=False
    )

    dataset: Annotated[DatasetName, BeforeValidator(dataset_name)] = "cifar100"
    profile: Annotated[ProfileName, BeforeValidator(profile_name)] = Field(DEFAULT_PROFILE, description=_PROFILES_HELP)
    seed: Seed = Field(0, description="Seed of everything random.")
    data: Annotated[Text, Flag(metavar="PATH", variable=DATA_VARIABLE, path=True)] = Field(
        "",
        description=f"Folder of real images ({NAMES}): {{train,test}}/<class>/<image>, or for CIFAR-100 one that "
        "torchvision downloaded; without it CIFAR-100 is downloaded, and without a network the stand-in drawn.",
    )
    stand_in: bool = Field(False, description="Draw the stand-in; needs no data, no network.")
    division: DivisionName = Field("own", description=DIVISION_HELP)
    division_seed: Seed = Field(0, description=DIVISION_SEED_HELP)
    out: Annotated[Text, Flag(metavar="PATH", path=True, stands_for=str(DEFAULT_OUT))] = Field(
        "", description="Folder that holds the runs."
    )
    cache: Annotated[Text, Flag(metavar="PATH", variable=CACHE_VARIABLE, path=True, stands_for=str(CACHE))] = Field(
        "", description=CACHE_HELP
    )
    shots: Annotated[Text, Flag("the profile's")] = Field("", description="Support images a class: 10,20.")
    target_tasks: Annotated[Text, Flag("the profile's")] = Field(
        "", description="Target tasks: 40, or by shots 10:40,20:10."
    )
    test_images: Annotated[int, Flag("all")] = Field(0, ge=0, description=TEST_IMAGES_HELP)
    individuals: Annotated[int, Flag("1")] = Field(0, ge=0, description="Individuals that share the target tasks.")
    tasks: Annotated[int, Flag("the profile's")] = Field(0, ge=0, description="Sequential tasks of the collective.")
    width: Annotated[float, Flag("the profile's")] = Field(0.0, ge=0, description="Factor on the paper's layer widths.")
    threads: Threads = Field(0, description="Threads of each node process; 0: as many as it may use cores.")
    collective_device: Device = Field("auto", description=_DEVICE_HELP)
    individual_device: Device = Field("auto", description=_DEVICE_HELP)
    changes: Annotated[Text, Flag(metavar="PARTY.NAME=VALUE", repeated=True)] = Field(
        "",
        alias="set",
        description="Change any training number: collective.classes_per_task=64, in quotes where there are spaces, "
        "'collective.expansion=widen 2 +64,deepen 5 identity'; may be repeated. --dry-run lists them.",
    )
    resume: bool = Field(False, description="Go on with the latest unfinished run of the same settings in --out.")
    #: The run's own folder; without a flag, because ``learngene run`` makes it.
    folder: Text = ""


#: Option by the training number that it sets; every other one is set by ``set`` alone.
TRAINING_NUMBERS: Mapping[str, str] = {"collective.tasks": "tasks", "collective.width": "width"}


def keys() -> Iterator[tuple[str, str]]:
    """Name and key of every option."""
    for name, field in Options.model_fields.items():
        yield name, field.alias or _key(name)


def defaults() -> dict[str, Value]:
    """Every key of the run configuration with its default, as the Flower apps declare them."""
    return Options().model_dump(by_alias=True)


def read_options(config: Mapping[str, Value]) -> Options:
    """The options that a run configuration gives; a missing key has its default.

    Raises:
        InputError: an unknown key, or a value of the wrong type or range.
    """
    known = [key for _, key in keys()]
    unknown = sorted(set(config) - set(known))
    if unknown:
        raise InputError(f"unknown setting {unknown[0]!r}; the settings are: {', '.join(known)}")
    try:
        return Options.model_validate(dict(config))
    except ValidationError as error:
        raise InputError(fault_line(error)) from None
