"""The settings of a run, fully resolved: its options against its profile, checked against this machine."""

import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from collective_node.settings import CollectiveSettings
from individual_node.method_table import METHODS
from individual_node.settings import IndividualSettings
from protocol.commands.lazy_group import cure
from protocol.errors import InputError, first_fault
from protocol.files.user_files import expanded
from protocol.learngene.architecture import FULL, Form
from protocol.visible_text import is_utf8, visible_name
from sims.data.datasets import DATASETS, DatasetName
from sims.data.division_choice import DivisionChoice, DivisionName
from sims.data.world_plan import WorldPlan
from sims.run.changes import as_text, changed, join_changes, parse_changes
from sims.run.options import (
    CACHE_VARIABLE,
    DATA_VARIABLE,
    DEFAULT_OUT,
    TRAINING_NUMBERS,
    Device,
    Options,
    Seed,
    Threads,
    Value,
    keys,
    read_options,
)
from sims.run.profiles import PROFILES, Profile, ProfileName

_DEFAULT_INDIVIDUALS = 1


class RunSettings(BaseModel):
    """One run, fully resolved: no number depends on a default that could change.

    Attributes:
        dataset: which classes and which size of images.
        data: folder of real images; None: CIFAR-100 is downloaded, or the stand-in drawn if that fails.
        stand_in: draw the stand-in even if real images are available.
        division, division_seed: which division of the classes; runs of earlier versions have the dataset's own.
        out: folder that holds the runs.
        cache: folder of what is downloaded, drawn or decoded once; None: ``sims.data.images.CACHE``.
        folder: this run's own folder; None: a new one under ``out``.
        target_tasks: shots per class -> number of target tasks, over all individuals.
        test_images: of each class in a target task; None, as in runs of earlier versions: all.
        threads: of each node process; 0: one for each core.
        resume: go on with the unfinished run that ``folder`` names, or with the latest of these settings in ``out``.
        collective, individual: the training numbers of the parties; ``set`` of the options changes any.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    dataset: DatasetName
    profile: ProfileName
    seed: Seed
    data: Path | None
    stand_in: bool
    division: DivisionName = "own"
    division_seed: Seed = 0
    out: Path
    cache: Path | None = None
    folder: Path | None
    target_tasks: dict[int, int]
    test_images: int | None = Field(default=None, ge=1)
    individuals: int = Field(ge=1, le=64)
    threads: Threads
    collective_device: Device
    individual_device: Device
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

    @model_validator(mode="after")
    def _sizes_are_offered(self) -> "RunSettings":
        offered = self.collective.condense_sizes
        wanted = [*self.individual.compare_sizes, *([self.individual.size] if self.individual.size != FULL else [])]
        for size in wanted:
            if size not in offered:
                sizes = ",".join((*offered, size))
                raise ValueError(f"the size {size} is in no learngene: set collective.condense_sizes={sizes}")
        return self

    @property
    def choice(self) -> DivisionChoice:
        """The division of the classes."""
        return division_choice(self.division, self.division_seed)

    @property
    def shots(self) -> tuple[int, ...]:
        """The shot counts, smallest first."""
        return tuple(self.target_tasks)

    @property
    def plan(self) -> WorldPlan:
        """The plan by which the images are cut."""
        return WorldPlan(individuals=self.individuals, target_tasks=self.target_tasks, test_images=self.test_images)

    def options(self) -> Options:
        """The options that resolve to these settings."""
        return Options(
            dataset=self.dataset,
            profile=self.profile,
            seed=self.seed,
            data=str(self.data or ""),
            stand_in=self.stand_in,
            division=self.division,
            division_seed=self.division_seed,
            out=str(self.out),
            cache=str(self.cache or ""),
            shots=",".join(str(shots) for shots in self.target_tasks),
            target_tasks=",".join(f"{shots}:{tasks}" for shots, tasks in self.target_tasks.items()),
            test_images=self.test_images or 0,
            individuals=self.individuals,
            tasks=self.collective.tasks,
            width=self.collective.width,
            threads=self.threads,
            collective_device=self.collective_device,
            individual_device=self.individual_device,
            changes=join_changes(self._changes()),
            resume=self.resume,
            folder=str(self.folder or ""),
        )

    def _changes(self) -> list[str]:
        """Training numbers that differ from the profile's and have no option of their own, as ``set`` takes them."""
        profile = PROFILES[self.dataset][self.profile]
        return [
            f"{party}.{name}={as_text(value)}"
            for party, own, default in (
                ("collective", self.collective, profile.collective),
                ("individual", self.individual, profile.individual),
            )
            for name, value in own
            if value != getattr(default, name) and f"{party}.{name}" not in TRAINING_NUMBERS
        ]

    def command(self) -> str:
        """The command line that repeats this run: every option that differs from its profile's."""
        own = self.options()
        try:
            out = str(expanded(DEFAULT_OUT))
        except InputError:  # a user without a home has no default
            out = "/"
        profiles = resolve(Options(dataset=self.dataset, profile=self.profile, out=out)).options()
        words = ["learngene", "run", self.dataset, "--profile", self.profile, "--seed", str(self.seed)]
        for name, key in keys():
            value = getattr(own, name)
            if name in ("dataset", "profile", "seed", "resume", "folder", "shots") or value == getattr(profiles, name):
                continue
            if name == "changes":
                words += [word for change in self._changes() for word in ("--set", change)]
            else:
                words += [f"--{key}"] if value is True else [f"--{key}", str(value)]
        return shlex.join(words)

    def experiment(self) -> dict[str, object]:
        """The settings that decide the numbers of a run: all but its place on the disk and ``resume``."""
        return self.model_dump(mode="json", exclude={"out", "cache", "folder", "resume"})


def from_run_config(
    config: Mapping[str, Value],
    *,
    environment: Mapping[str, str] | None = None,
    individuals: int | None = None,
) -> RunSettings:
    """Resolve a run configuration against its profile.

    Args:
        config: keys and values as :class:`sims.run.options.Options` declares them.
        environment: as of ``resolve``.
        individuals: as of ``resolve``.

    Raises:
        InputError: an unknown key, a value of the wrong type, or as ``resolve``.
    """
    return resolve(read_options(config), environment=environment, individuals=individuals)


def resolve(
    options: Options,
    *,
    environment: Mapping[str, str] | None = None,
    individuals: int | None = None,
) -> RunSettings:
    """Resolve options against their profile.

    Args:
        environment: the environment in which ``LEARNGENE_DATA`` and ``LEARNGENE_CACHE`` are looked up if ``data`` and
            ``cache`` are empty; None: they are not looked up.
        individuals: number of connected individuals, if known; an option with a different number is an error.

    Raises:
        InputError: a value out of range, a relative path, a folder that does not exist, two options that exclude each
            other.
    """
    profile = PROFILES[options.dataset][options.profile]
    if individuals is not None:
        check_connected(options.individuals or individuals, individuals)
    if options.stand_in and options.data:
        raise InputError("stand-in and data exclude each other; give one of them")
    variables = environment or {}
    data = "" if options.stand_in else options.data or variables.get(DATA_VARIABLE, "")
    cache = options.cache or variables.get(CACHE_VARIABLE, "")
    choice = division_choice(options.division, options.division_seed)
    changes = _training_changes(options)
    try:
        collective = changed("collective", profile.collective, changes["collective"])
        individual = profile.individual
        if "methods" not in changes["individual"]:  # named forms bring the profile's methods that need no others
            individual = individual.model_copy(update={"methods": _possible(individual.methods, collective.forms)})
        return RunSettings(
            dataset=options.dataset,
            profile=options.profile,
            seed=options.seed,
            data=_folder("data", data, must_exist=True) if data else None,
            stand_in=options.stand_in,
            division=choice.name,
            division_seed=choice.seed,
            out=_folder("out", options.out or str(DEFAULT_OUT)),
            cache=_folder("cache", cache) if cache else None,
            folder=_folder("folder", options.folder) if options.folder else None,
            target_tasks=_target_tasks(options.shots, options.target_tasks, profile),
            test_images=options.test_images or None,
            individuals=options.individuals or individuals or _DEFAULT_INDIVIDUALS,
            threads=options.threads,
            collective_device=options.collective_device,
            individual_device=options.individual_device,
            resume=options.resume,
            collective=collective,
            individual=changed("individual", individual, changes["individual"]),
        )
    except ValidationError as error:
        where, text = first_fault(error)
        raise InputError(f"{where.replace('_', '-')}: {text}" if where else text) from None


def _possible(methods: Sequence[str], forms: Sequence[Form]) -> tuple[str, ...]:
    """The methods that need no learngene, or one in these forms; ``scratch`` only borrows an architecture."""
    return tuple(name for name in methods if METHODS[name].form is None or METHODS[name].form in forms)


def division_choice(name: DivisionName, seed: int) -> DivisionChoice:
    """The division that two options ask for.

    Raises:
        InputError: a seed is given to the dataset's own division, which has none.
    """
    if seed and name == "own":
        raise InputError("division-seed is the seed of the tuning division: give division tuning too, or leave it out")
    return DivisionChoice(name=name, seed=seed)


def check_connected(wanted: int, connected: int) -> None:
    """Refuse a number of individuals that differs from the number of connected ones.

    Raises:
        InputError: the numbers differ.
    """
    if wanted != connected:
        raise InputError(
            f"individuals is {wanted}, but {connected} are connected; "
            f'start Flower with --federation-config "num-supernodes={wanted + 1}"'
        )


def _training_changes(options: Options) -> dict[str, dict[str, str]]:
    """Changed training numbers by party and name: those of ``set``, and those with an option of their own."""
    changes = parse_changes(options.changes)
    for target, name in TRAINING_NUMBERS.items():
        party, _, number = target.partition(".")
        value = getattr(options, name)
        if value and number in changes[party]:
            raise InputError(f"{name} and set {target} are the same number; give one of them")
        if value:
            changes[party][number] = str(value)
    return changes


def typed_data(data: Path | None, *, stand_in: bool) -> Path | None:
    """The folder of images for a command line: ``--stand-in`` overrides a folder that only the environment names.

    Raises:
        InputError: a folder and the stand-in were both given.
    """
    if not stand_in or data is None:
        return data
    named = os.environ.get(DATA_VARIABLE)
    if named and Path(named) == data:
        return None
    raise InputError("stand-in and data exclude each other; give one of them")


def check_machine(settings: RunSettings, cuda_devices: Callable[[], int] | None = None) -> None:
    """Refuse, before anything is started, a run that this machine or this installation cannot do, or nobody.

    Args:
        cuda_devices: counts the CUDA devices; the default asks torch, and only if the answer matters.

    Raises:
        InputError: the profile or a device setting needs a CUDA device that is not there, a setting needs an extra that
            is not installed, or two settings do not go together.
    """
    _check_apart_from_images(settings)
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


def _check_apart_from_images(settings: RunSettings) -> None:
    """Refuse what the nodes would refuse later, after their training, perhaps."""
    collective, individual = settings.collective, settings.individual
    if individual.early_stopping is not None and min(settings.target_tasks) < 2:
        raise InputError(
            "early_stopping holds a support image of each class back, so it takes 2 shots or more: leave 1 out of "
            "shots, or set individual.early_stopping=none"
        )
    if collective.privacy_epsilon is not None and (
        missing := next((name for name in _OF_PRIVACY if find_spec(name) is None), None)
    ):
        raise InputError(f"privacy_epsilon needs the module {missing}; install it with: {cure('privacy')}")
    profile = PROFILES[settings.dataset][settings.profile]
    if collective != profile.collective:
        # Imported when it matters: it loads torch. The profiles' own networks fit.
        from collective_node.evolution_plan import check_network

        size = DATASETS[settings.dataset].size
        check_network(collective, channels=3, height=size, width=size)


#: Modules of the extra `privacy`.
_OF_PRIVACY = ("opacus", "dp_accounting")


def _cuda_devices() -> int:
    import torch  # takes seconds, so only if a CUDA device is asked for

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def _folder(key: str, text: str, *, must_exist: bool = False) -> Path:
    try:
        path = expanded(text)
    except InputError as error:
        raise InputError(f"{key}: {error}") from None
    if not is_utf8(path):
        raise InputError(
            f"{key}: {visible_name(path)} is not UTF-8, as the files are that would name it; choose another"
        )
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
