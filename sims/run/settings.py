"""Every setting of a simulated run and its defaults: the profiles stand at the top, the checks below."""

import difflib
import math
import os
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Literal, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from collective_node.settings import CollectiveSettings
from individual_node.method_table import METHODS
from individual_node.settings import IndividualSettings
from protocol.errors import InputError, fault_line, first_fault
from protocol.node.configuration import DEVICE_PATTERN
from sims.data.datasets import DatasetName, dataset_name
from sims.data.worlds import WorldPlan

ProfileName = Literal["smoke", "quick", "small", "paper"]
Value = str | int | float | bool
_Party = TypeVar("_Party", bound=BaseModel)


class Profile(BaseModel):
    """Defaults of one size of run. ``target_tasks`` maps shots per class to the number of target tasks."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    purpose: str
    target_tasks: dict[int, int]
    needs_cuda: bool = False
    collective: CollectiveSettings
    individual: IndividualSettings


# ---------------------------------------------------------------------------------------------------------------------
# The numbers. ``width``: factor on every width of the paper's network; ``tasks``: sequential tasks of the collective.
# What is not named here has the default of ``CollectiveSettings`` or ``IndividualSettings``.
# ---------------------------------------------------------------------------------------------------------------------
_AT_32: Mapping[ProfileName, Profile] = {
    "smoke": Profile(
        purpose="shows that every part works; its accuracies mean nothing",
        target_tasks={10: 4, 20: 2},
        collective=CollectiveSettings(
            width=0.0625, tasks=2, epochs=0.2, cycles=1, open_epochs=0.2, condense_epochs=0.2
        ),
        individual=IndividualSettings(epochs=2, patches=50, curve_tasks=2),
    ),
    "quick": Profile(
        purpose="at most 4 minutes on two cores",
        target_tasks={10: 40, 20: 10},
        collective=CollectiveSettings(width=0.25, tasks=13),
        individual=IndividualSettings(),
    ),
    "small": Profile(
        purpose="at most 30 minutes on two cores",
        target_tasks={10: 60, 20: 40},
        collective=CollectiveSettings(
            width=0.375,
            tasks=13,
            epochs=4,
            learning_rate=0.1,
            dropout=0.1,
            cycles=2,
            classes_per_cycle=8,
            open_epochs=1,
            condense_epochs=20,
        ),
        individual=IndividualSettings(epochs=30),
    ),
    "paper": Profile(
        purpose="the paper's figures; needs a CUDA device",
        target_tasks={10: 100, 20: 100},
        collective=CollectiveSettings(
            width=1.0,
            tasks=50,
            epochs=8,
            learning_rate=0.1,
            dropout=0.1,
            cycles=2,
            classes_per_cycle=8,
            open_epochs=8,
            condense_epochs=60,
        ),
        individual=IndividualSettings(epochs=30),
        needs_cuda=True,
    ),
}

# A picture of 84x84 has 6.9 times the pixels of one of 32x32 and costs about as much more (measured: 6.4 to 7.9 times a
# training step), so fewer are looked at. The times are estimates from that: nobody here has the images.
_AT_84: Mapping[ProfileName, Profile] = {
    "smoke": Profile(
        purpose="shows that every part works; its accuracies mean nothing",
        target_tasks={10: 2, 20: 1},
        collective=CollectiveSettings(
            width=0.0625, tasks=2, epochs=0.1, cycles=1, open_epochs=0.05, condense_epochs=0.05
        ),
        individual=IndividualSettings(epochs=2, patches=20, curve_tasks=1),
    ),
    "quick": Profile(
        purpose="some 10 minutes on two cores (estimated); ten target tasks, as the paper",
        target_tasks={10: 10, 20: 10},
        collective=CollectiveSettings(width=0.25, tasks=13, epochs=0.3, open_epochs=0.3, condense_epochs=2.5),
        individual=IndividualSettings(epochs=15, patches=200, curve_tasks=5),
    ),
    "small": Profile(
        purpose="an hour or two on two cores (estimated)",
        target_tasks={10: 40, 20: 20},
        collective=CollectiveSettings(
            width=0.375,
            tasks=13,
            epochs=2,
            learning_rate=0.1,
            dropout=0.1,
            cycles=2,
            classes_per_cycle=8,
            open_epochs=1,
            condense_epochs=10,
        ),
        individual=IndividualSettings(epochs=30, patches=200),
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
DEFAULT_OUT = Path("~/.learngene/runs")
DEFAULT_INDIVIDUALS = 1

#: The environment variable that names the folder of real images where no ``data`` is given.
DATA_VARIABLE = "LEARNGENE_DATA"

#: Keys of the run configuration (``flwr run --run-config``; the flags of ``learngene run`` are the same words) and the
#: values that mean "as the profile says". ``sims/<dataset>/pyproject.toml`` repeats them, a test compares.
RUN_CONFIG_DEFAULTS: Mapping[str, Value] = {
    "dataset": "cifar100",
    "profile": DEFAULT_PROFILE,
    "seed": 0,
    "data": "",
    "stand-in": False,
    "out": "",
    "shots": "",
    "target-tasks": "",
    "individuals": 0,
    "tasks": 0,
    "width": 0.0,
    "threads": 0,
    "collective-device": "auto",
    "individual-device": "auto",
    "set": "",
    "resume": False,
    "folder": "",
}
# ---------------------------------------------------------------------------------------------------------------------


class RunSettings(BaseModel):
    """One run, fully resolved: nothing is left to a default that could change.

    Attributes:
        dataset: which classes and which size of images.
        data: folder of real images; None: CIFAR-100 is downloaded, or the stand-in drawn where that fails.
        stand_in: draw the stand-in even where real images could be had.
        out: folder that holds the runs.
        folder: this run's own folder; None: a new one under ``out``.
        target_tasks: shots per class -> number of target tasks, over all individuals.
        threads: of each node process; 0: as many as there are cores.
        resume: go on with the unfinished run that ``folder`` names, or with the latest of these settings in ``out``.
        collective, individual: the training numbers of the parties; ``set`` of the run configuration changes any.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    dataset: DatasetName
    profile: ProfileName
    seed: int = Field(ge=0, lt=2**31)
    data: Path | None
    stand_in: bool
    out: Path
    folder: Path | None
    target_tasks: dict[int, int]
    individuals: int = Field(ge=1, le=64)
    threads: int = Field(ge=0, le=1024)
    collective_device: str
    individual_device: str
    resume: bool
    collective: CollectiveSettings
    individual: IndividualSettings

    @field_validator("target_tasks")
    @classmethod
    def _target_tasks_are_counts(cls, value: dict[int, int]) -> dict[int, int]:
        if not value:
            raise ValueError("at least one shot count is needed")
        for shots, tasks in value.items():
            if not 1 <= shots <= 500:
                raise ValueError(f"{shots} shots a class; it must be 1 to 500")
            if not 1 <= tasks <= 10_000:
                raise ValueError(f"{tasks} target tasks; it must be 1 to 10000")
        return dict(sorted(value.items()))

    @field_validator("collective_device", "individual_device")
    @classmethod
    def _device_is_known(cls, value: str) -> str:
        if not re.fullmatch(DEVICE_PATTERN, value):
            raise ValueError(f"{value!r} is no device; choose auto, cpu, cuda or cuda:<number>")
        return value

    @model_validator(mode="after")
    def _methods_find_their_learngenes(self) -> "RunSettings":
        for method in self.individual.methods:
            form = METHODS[method].form
            if form is not None and form not in self.collective.forms:
                forms = ",".join((*self.collective.forms, form))
                raise ValueError(
                    f"the method {method!r} needs a learngene in the form {form!r}: set collective.forms={forms}"
                )
        return self

    @property
    def shots(self) -> tuple[int, ...]:
        """The shot counts, smallest first."""
        return tuple(self.target_tasks)

    @property
    def plan(self) -> WorldPlan:
        """How the images are cut."""
        return WorldPlan(individuals=self.individuals, target_tasks=self.target_tasks)

    def to_run_config(self) -> dict[str, Value]:
        """The run configuration that ``from_run_config`` turns into these settings again."""
        return {
            "dataset": self.dataset,
            "profile": self.profile,
            "seed": self.seed,
            "data": str(self.data or ""),
            "stand-in": self.stand_in,
            "out": str(self.out),
            "shots": ",".join(str(shots) for shots in self.target_tasks),
            "target-tasks": ",".join(f"{shots}:{tasks}" for shots, tasks in self.target_tasks.items()),
            "individuals": self.individuals,
            "tasks": self.collective.tasks,
            "width": self.collective.width,
            "threads": self.threads,
            "collective-device": self.collective_device,
            "individual-device": self.individual_device,
            "set": join_changes(self._changes()),
            "resume": self.resume,
            "folder": str(self.folder or ""),
        }

    def _changes(self) -> list[str]:
        """Training numbers that differ from the profile's and have no key of their own, as ``set`` takes them."""
        profile = PROFILES[self.dataset][self.profile]
        return [
            f"{party}.{name}={_as_text(value)}"
            for party, own, default in (
                ("collective", self.collective, profile.collective),
                ("individual", self.individual, profile.individual),
            )
            for name, value in own
            if value != getattr(default, name) and f"{party}.{name}" not in _OWN_KEYS
        ]

    def command(self) -> str:
        """The command line that repeats this run: every setting that differs from its profile's."""
        defaults = from_run_config({"dataset": self.dataset, "profile": self.profile}).to_run_config()
        words = ["learngene", "run", self.dataset, "--profile", self.profile, "--seed", str(self.seed)]
        for key, value in self.to_run_config().items():
            if key in ("dataset", "profile", "seed", "resume", "folder", "shots") or value == defaults[key]:
                continue
            if key == "set":
                words += [word for change in self._changes() for word in ("--set", change)]
            else:
                words += [f"--{key}"] if value is True else [f"--{key}", str(value)]
        return shlex.join(words)

    def experiment(self) -> dict[str, object]:
        """What decides the numbers of a run: the settings without its place on the disk and without ``resume``."""
        return self.model_dump(mode="json", exclude={"out", "folder", "resume"})


def from_run_config(
    config: Mapping[str, Value],
    *,
    environment: Mapping[str, str] | None = None,
    individuals: int | None = None,
) -> RunSettings:
    """Resolve a run configuration against its profile.

    Args:
        config: keys of ``RUN_CONFIG_DEFAULTS``; a missing key, or its default there, means "as the profile says".
        environment: where ``LEARNGENE_DATA`` is looked up if ``data`` is empty; None: nowhere.
        individuals: how many individuals are connected, where that is known; a different number asked for is an error.

    Raises:
        InputError: an unknown key, a value of the wrong type or range, a relative path, a folder that does not exist.
    """
    unknown = sorted(set(config) - set(RUN_CONFIG_DEFAULTS))
    if unknown:
        raise InputError(f"unknown setting {unknown[0]!r}; the settings are: {', '.join(RUN_CONFIG_DEFAULTS)}")
    given = {**RUN_CONFIG_DEFAULTS, **config}
    for key, default in RUN_CONFIG_DEFAULTS.items():
        given[key] = _typed(key, given[key], default)
    dataset = dataset_name(str(given["dataset"]))
    name = _profile_name(str(given["profile"]))
    profile = PROFILES[dataset][name]
    asked = int(given["individuals"])
    if individuals is not None and asked not in (0, individuals):
        raise InputError(
            f"individuals is {asked}, but {individuals} are connected; "
            f'start Flower with --federation-config "num-supernodes={asked + 1}"'
        )
    data = str(given["data"]) or (environment or {}).get(DATA_VARIABLE, "")
    stand_in = bool(given["stand-in"])
    if stand_in and given["data"]:
        raise InputError("stand-in and data exclude each other; give one of them")
    changes = _parse_changes(str(given["set"]))
    for own, key in _OWN_KEYS.items():
        party, _, field = own.partition(".")
        if given[key] and field in changes[party]:
            raise InputError(f"{key} and set {own} are the same number; give one of them")
        if given[key]:
            changes[party][field] = str(given[key])
    try:
        return RunSettings(
            dataset=dataset,
            profile=name,
            seed=int(given["seed"]),
            data=None if stand_in or not data else _folder("data", data, must_exist=True),
            stand_in=stand_in,
            out=_folder("out", str(given["out"]) or str(DEFAULT_OUT)),
            folder=_folder("folder", str(given["folder"])) if given["folder"] else None,
            target_tasks=_target_tasks(str(given["shots"]), str(given["target-tasks"]), profile),
            individuals=asked or individuals or DEFAULT_INDIVIDUALS,
            threads=int(given["threads"]),
            collective_device=str(given["collective-device"]),
            individual_device=str(given["individual-device"]),
            resume=bool(given["resume"]),
            collective=_changed("collective", profile.collective, changes["collective"]),
            individual=_changed("individual", profile.individual, changes["individual"]),
        )
    except ValidationError as error:
        where, text = first_fault(error)
        raise InputError(f"{where.replace('_', '-')}: {text}" if where else text) from None


def typed_data(data: Path | None, *, stand_in: bool) -> Path | None:
    """The folder of images that a command line means: one that only the environment names gives way to the stand-in.

    Raises:
        InputError: a folder and the stand-in were both asked for.
    """
    if not stand_in or data is None:
        return data
    named = os.environ.get(DATA_VARIABLE)
    if named and Path(named) == data:
        return None
    raise InputError("stand-in and data exclude each other; give one of them")


def check_machine(settings: RunSettings, cuda_devices: Callable[[], int] | None = None) -> None:
    """Refuse, before anything is started, a run that this machine cannot do.

    Args:
        cuda_devices: counts the CUDA devices; the default asks torch, and only where the answer matters.

    Raises:
        InputError: the profile or a device setting needs a CUDA device that is not there.
    """
    devices = (settings.collective_device, settings.individual_device)
    needs_profile = PROFILES[settings.dataset][settings.profile].needs_cuda
    if not needs_profile and not any(device.startswith("cuda") for device in devices):
        return
    available = (cuda_devices or _cuda_devices)()
    if needs_profile and available == 0:
        raise InputError(
            f"the profile {settings.profile!r} needs a CUDA device and this machine has none; choose --profile small"
        )
    if needs_profile and settings.collective_device == "cpu":
        raise InputError(f"the profile {settings.profile!r} needs a CUDA device, but collective-device is cpu")
    for key, device in zip(("collective-device", "individual-device"), devices, strict=True):
        index = int(device.partition(":")[2] or 0)
        if device.startswith("cuda") and index >= available:
            raise InputError(f"{key} is {device}, but this machine has {available} CUDA devices; choose auto or cpu")


#: Training numbers with a key of their own in the run configuration.
_OWN_KEYS: Mapping[str, str] = {"collective.tasks": "tasks", "collective.width": "width"}


def nearest(target: str, known: Sequence[str]) -> str:
    """The setting that a wrong one was meant for, first among those of its party; empty where none is near."""
    party, _, name = target.rpartition(".")
    for candidates in ([one for one in known if one.startswith(f"{party}.")], known):
        names = {one.rpartition(".")[2]: one for one in reversed(candidates)}
        if found := difflib.get_close_matches(name, names, n=1, cutoff=0.7):
            return names[found[0]]
    return ""


def join_changes(changes: Sequence[str]) -> str:
    """Changes ``PARTY.NAME=VALUE`` as the text of ``set``; one that holds a space is quoted as a shell quotes."""
    return shlex.join(changes)


def _parse_changes(text: str) -> dict[str, dict[str, str]]:
    """``collective.NAME=VALUE individual.NAME=VALUE ...`` by party and name; a value with a space stands in quotes."""
    models: Mapping[str, type[BaseModel]] = {"collective": CollectiveSettings, "individual": IndividualSettings}
    found: dict[str, dict[str, str]] = {party: {} for party in models}
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise InputError(f"set: {text!r} cannot be read: {error}") from None
    for word in words:
        target, equals, value = word.partition("=")
        party, dot, name = target.partition(".")
        known = [f"{party}.{name}" for party, model in models.items() for name in model.model_fields]
        if equals and target not in known and (meant := nearest(target, known)):
            raise InputError(f"set: unknown setting {target!r}; did you mean {meant}? --dry-run lists them all")
        if not (equals and dot and party in models):
            raise InputError(f"set: {word!r} is not of the form collective.NAME=VALUE or individual.NAME=VALUE")
        if name not in models[party].model_fields:
            names = ", ".join(models[party].model_fields)
            raise InputError(f"set: unknown setting {target!r}; those of the {party} are: {names}")
        if name in found[party]:
            raise InputError(f"set: {target} is given twice")
        found[party][name] = value
    return found


def _changed(party: str, settings: _Party, changes: Mapping[str, str]) -> _Party:
    """A party's settings with some of them replaced, checked as a whole."""
    values: dict[str, object] = settings.model_dump()
    for name, text in changes.items():
        values[name] = _value(text, type(settings).model_fields[name].annotation)
    try:
        changed = type(settings).model_validate(values)
    except ValidationError as error:
        raise InputError(fault_line(error, inside=party)) from None
    for name, value in changed:
        if isinstance(value, float) and not math.isfinite(value):
            raise InputError(f"{party}.{name} must be a finite number, not {value}")
    return changed


def _value(text: str, kind: object) -> object:
    """What pydantic is given for a text: a list, where the setting is one and empty where the text is; None, where it
    may be; else the text."""
    kinds = (kind, *get_args(kind))
    if text == "none" and NoneType in kinds:
        return None
    if any(get_origin(one) is tuple for one in kinds):
        return [part.strip() for part in text.split(",")] if text.strip() else []
    return text


def _as_text(value: object) -> str:
    """A training number as ``set`` takes it."""
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def _cuda_devices() -> int:
    import torch  # costs seconds: only where a CUDA device is asked for

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def _profile_name(text: str) -> ProfileName:
    for name in PROFILES["cifar100"]:
        if name == text:
            return name
    raise InputError(f"unknown profile {text!r}; choose one of: {', '.join(PROFILES['cifar100'])}")


def _typed(key: str, value: Value, default: Value) -> Value:
    """``value`` if it has the type of ``default`` (an integer may stand for a float or a string)."""
    if isinstance(default, str) and isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)  # --run-config 'shots=10' arrives as a number
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not type(default):
        raise InputError(f"{key} must be {_WORDS[type(default)]}, not {value!r}")
    return value


_WORDS: Mapping[type, str] = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}


def _folder(key: str, text: str, *, must_exist: bool = False) -> Path:
    path = Path(text).expanduser()
    if not path.is_absolute():
        raise InputError(f"{key} must be an absolute path, not {text!r}: Flower runs in a folder of its own")
    if must_exist and not path.is_dir():
        raise InputError(f"{key}: no such folder: {path}")
    if not must_exist and path.exists() and not path.is_dir():
        raise InputError(f"{key}: {path} is not a folder")
    return Path(os.path.normpath(path))


def _target_tasks(shots: str, tasks: str, profile: Profile) -> dict[int, int]:
    """Shots per class -> tasks, from ``10,20`` and ``40`` or ``10:40,20:10``; both may be empty.

    A shot count that the profile does not name gets the profile's smallest number of tasks.
    """
    named: dict[int, int] = {}
    overall = 0
    for part in filter(None, tasks.split(",")):
        left, colon, right = part.partition(":")
        if colon:
            named[_whole("target-tasks", left, tasks)] = _whole("target-tasks", right, tasks)
        elif overall or "," in tasks:
            raise InputError(f"target-tasks must be a number or shots:tasks pairs such as 10:40,20:10, not {tasks!r}")
        else:
            overall = _whole("target-tasks", part, tasks)
    if shots:
        counts = [_whole("shots", part, shots) for part in shots.split(",")]
    else:
        counts = list(named) or list(profile.target_tasks)
    stray = sorted(set(named) - set(counts))
    if stray:
        raise InputError(f"target-tasks names {stray[0]} shots, but shots is {shots!r}")
    if tasks and not named and not overall:
        raise InputError("target-tasks must be at least 1")
    fewest = min(profile.target_tasks.values())
    return {count: named.get(count) or overall or profile.target_tasks.get(count, fewest) for count in counts}


def _whole(key: str, part: str, text: str) -> int:
    if not part.strip().isdecimal() or int(part) == 0:
        raise InputError(f"{key}: {text!r} holds {part.strip()!r}, which is no whole number above zero")
    return int(part)
