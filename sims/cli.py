"""The commands ``learngene run``, ``learngene results`` and ``learngene report``."""

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from protocol.errors import InputError, LearngeneError, RunFailedError, StoppedError
from protocol.output import console, say
from sims.data.datasets import DATASETS, check_data_named, dataset_name
from sims.run.settings import (
    DATA_VARIABLE,
    DEFAULT_OUT,
    DEFAULT_PROFILE,
    PROFILES,
    RunSettings,
    Value,
    check_machine,
    from_run_config,
    join_changes,
    typed_data,
)

if TYPE_CHECKING:
    from sims.results.results import Results

_PROFILES_HELP = (
    f"Size of the run. {'; '.join(f'{name}: {profile.purpose}' for name, profile in PROFILES['cifar100'].items())}. "
    "The times are of cifar100."
)
_DEVICE_HELP = "auto, cpu, cuda or cuda:<number>."


def register(app: typer.Typer) -> None:
    """Add ``run``, ``results`` and ``report`` to ``learngene``."""
    app.command("run")(run)
    app.command("results")(results)
    app.command("report")(report)


def run(
    simulation: Annotated[str, typer.Argument(help=f"What to run: {', '.join(DATASETS)}.")],
    profile: Annotated[str, typer.Option(help=_PROFILES_HELP)] = DEFAULT_PROFILE,
    seed: Annotated[
        int | None, typer.Option(help="Seed of everything random. [default: 0]", show_default=False)
    ] = None,
    seeds: Annotated[str, typer.Option(help="Several runs in one table: 0,1,2.", show_default=False)] = "",
    data: Annotated[
        Path | None,
        typer.Option(
            envvar=DATA_VARIABLE,
            help="Folder of real images: {train,test}/<class>/<image>, or for CIFAR-100 one that torchvision "
            "downloaded; without it CIFAR-100 is downloaded, and without a network the built-in stand-in drawn.",
        ),
    ] = None,
    stand_in: Annotated[bool, typer.Option("--stand-in", help="Draw the stand-in; needs no data, no network.")] = False,
    out: Annotated[Path, typer.Option(help="Folder that holds the runs.")] = DEFAULT_OUT,
    shots: Annotated[str, typer.Option(help="Support images a class: 10,20.", show_default="the profile's")] = "",
    target_tasks: Annotated[
        str, typer.Option(help="Target tasks: 40, or by shots 10:40,20:10.", show_default="the profile's")
    ] = "",
    individuals: Annotated[int, typer.Option(help="Individuals that share the target tasks.", min=1)] = 1,
    tasks: Annotated[
        int | None, typer.Option(help="Sequential tasks of the collective.", min=1, show_default="the profile's")
    ] = None,
    width: Annotated[
        float | None, typer.Option(help="Factor on the paper's layer widths.", show_default="the profile's")
    ] = None,
    threads: Annotated[int, typer.Option(help="Threads of each node process; 0: all cores.", min=0)] = 0,
    collective_device: Annotated[str, typer.Option(help=_DEVICE_HELP)] = "auto",
    individual_device: Annotated[str, typer.Option(help=_DEVICE_HELP)] = "auto",
    change: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="PARTY.NAME=VALUE",
            help="Change any training number: collective.classes_per_task=64, in quotes where there are spaces, "
            "'collective.expansion=widen 2 +64,deepen 5 identity'; may be repeated. --dry-run lists them.",
            show_default=False,
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the latest unfinished run of the same settings in --out.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")] = False,
) -> None:
    """Run the whole experiment: a collective learns, its learngene crosses, individuals adapt, a report is made."""
    if seeds and seed is not None:
        raise InputError("--seed and --seeds exclude each other; give one of them")
    if seeds and resume:
        raise InputError("--resume goes on with one run: give the --seed of the unfinished one instead of --seeds")
    if width is not None and width <= 0:
        raise InputError("--width must be above zero")
    data = typed_data(data, stand_in=stand_in)
    config: dict[str, Value] = {
        "dataset": dataset_name(simulation),
        "profile": profile,
        "data": _absolute(data) if data else "",
        "stand-in": stand_in,
        "out": _absolute(out),
        "shots": shots,
        "target-tasks": target_tasks,
        "individuals": individuals,
        "tasks": tasks or 0,
        "width": width or 0.0,
        "threads": threads,
        "collective-device": collective_device,
        "individual-device": individual_device,
        "set": join_changes(change or ()),
        "resume": resume,
    }
    check_data_named(dataset_name(simulation), data=data is not None, stand_in=stand_in)
    wanted = [from_run_config({**config, "seed": number}) for number in (_seeds(seeds) if seeds else [seed or 0])]
    check_machine(wanted[0])
    if dry_run:
        _say_plan(wanted)
        return
    _run_all(wanted)


def results(
    runs: Annotated[list[Path], typer.Argument(help="Folder of a finished run; several: one table over their seeds.")],
) -> None:
    """Print the results of a run again, or one table over several runs of different seeds."""
    from sims.results import summary
    from sims.results.results import load
    from sims.results.tables import results_tables, summary_table
    from sims.run.run_folder import run_of

    runs = [run_of(run) for run in runs]
    console().print(results_tables(load(runs[0])) if len(runs) == 1 else summary_table(summary.of_folders(runs)))


def report(run: Annotated[Path, typer.Argument(help="Folder of a finished run.")]) -> None:
    """Make the figures and the report of a run again from its results.json."""
    from sims.results import report as report_module
    from sims.run.run_folder import run_of

    say(f"report         {report_module.write(run_of(run))}")


def _run_all(wanted: list[RunSettings]) -> None:
    # Only here: torch's and matplotlib's neighbours take a second to load, and --help should not wait for them.
    from sims.results import summary
    from sims.results.tables import results_tables, summary_table
    from sims.run import runner
    from sims.run.run_folder import reserve_folder

    shown_on = console()
    done: list[tuple[Path, Results]] = []
    for number, settings in enumerate(wanted, start=1):
        if len(wanted) > 1:
            shown_on.rule(f"run {number} of {len(wanted)}, seed {settings.seed}")
        try:
            folder, found = runner.run(settings, shown_on)
        except LearngeneError as error:
            if not done:
                raise
            kept = ", ".join(str(path) for path, _ in done)
            text = f"seed {settings.seed}: {error} (finished before it: {kept})"
            if isinstance(error, StoppedError):
                raise StoppedError(text, error.number) from error
            raise RunFailedError(text) from error
        done.append((folder, found))
        shown_on.print(results_tables(found))
        for name in ("results.json", "report.html"):
            say(f"{name:<14} {folder / name}")
    if len(done) > 1:
        total = summary.summarise(done)
        shown_on.print(summary_table(total))
        place = reserve_folder(wanted[0].out, f"{wanted[0].dataset}-seeds", datetime.now(UTC))
        say(f"{'summary.json':<14} {summary.write(total, place)}")


def _say_plan(wanted: list[RunSettings]) -> None:
    """The resolved settings, who would take part and where it would be written."""
    from sims.results.results import describe_settings
    from sims.run.runner import planned_folder

    for settings in wanted:
        for name, value in describe_settings(settings).items():
            say(f"{name:<36} {value}")
        images = "the stand-in" if settings.stand_in else settings.data or DATASETS[settings.dataset].origin
        say()
        say(f"images         {images}")
        say(f"processes      collective, {', '.join(f'individual-{n + 1}' for n in range(settings.individuals))}")
        for shots, count in settings.target_tasks.items():
            each = [len(range(number, count, settings.individuals)) for number in range(settings.individuals)]
            say(f"target tasks   {count} at {shots} shots ({' + '.join(map(str, each))})")
        say(f"folder         {planned_folder(settings, datetime.now(UTC))}")
        say(f"command        {settings.command()}")
        say()
    say("nothing was run (--dry-run)")


def _absolute(path: Path) -> str:
    return os.path.abspath(path.expanduser())


def _seeds(text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise InputError(f"--seeds must be whole numbers such as 0,1,2, not {text!r}")
    numbers = [int(part) for part in parts]
    if len(set(numbers)) != len(numbers):
        raise InputError(f"--seeds {text!r} names a seed twice")
    return numbers
