"""The command ``learngene run``. Its flags follow from :class:`sims.run.options.Options`."""

import inspect
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import typer
from click.core import ParameterSource

from protocol.errors import InputError, LearngeneError, RunFailedError, StoppedError
from protocol.files.user_files import expanded
from protocol.output import console, say
from sims.data.datasets import DATASETS, check_data_named, dataset_name
from sims.results.wording import describe_settings
from sims.run.changes import join_changes
from sims.run.options import Flag, Options, Value, keys, read_options
from sims.run.run_folder import reserve_folder
from sims.run.settings import RunSettings, check_machine, resolve, typed_data

#: Value of an option on the command line; None: it was not given.
_Given = Value | list[str] | None

#: Options without a flag: the dataset is the command's argument, and the command makes the run's folder itself.
_WITHOUT_FLAG = ("dataset", "folder")


def register(app: typer.Typer) -> None:
    """Add ``run`` to ``learngene``."""
    app.command("run")(run)


def run(context: typer.Context, simulation: str, seeds: str, dry_run: bool, **given: _Given) -> None:
    """Run the whole experiment: a collective learns, its learngene crosses, individuals adapt, a report is made."""
    dataset = dataset_name(simulation)
    if seeds and context.get_parameter_source("seed") is not ParameterSource.DEFAULT:
        raise InputError("--seed and --seeds exclude each other; give one of them")
    options = _options(dataset, given)
    if seeds and options.resume:
        raise InputError("--resume goes on with one run: give the --seed of the unfinished one instead of --seeds")
    check_data_named(dataset, data=bool(options.data), stand_in=options.stand_in)
    wanted = [
        resolve(options.model_copy(update={"seed": seed})) for seed in (_seeds(seeds) if seeds else [options.seed])
    ]
    check_machine(wanted[0])
    if dry_run:
        _say_plan(wanted)
        return
    _run_all(wanted)


def _options(dataset: str, given: Mapping[str, _Given]) -> Options:
    """The options that a command line gives.

    Args:
        given: by the option's name.

    Raises:
        InputError: a value is wrong, or two exclude each other.
    """
    config: dict[str, Value] = {"dataset": dataset}
    for name, key in keys():
        value, flag = given.get(name), _flag(name)
        if value == "" and flag.path:
            # Of a shell's variable without a value; it would mean the working folder.
            raise InputError(f"--{key} is empty; give a path, or leave it out")
        if name == "data" and isinstance(value, str):
            named = typed_data(Path(value), stand_in=bool(given["stand_in"]))
            value = None if named is None else str(named)
        if value is None or value == []:
            continue
        if value == 0 and flag.stands_for:
            raise InputError(f"--{key} must be above zero")
        if isinstance(value, list):
            value = join_changes(value)
        config[key] = _absolute(str(value)) if flag.path else value
    return read_options(config)


def _flag(name: str) -> Flag:
    return next((one for one in Options.model_fields[name].metadata if isinstance(one, Flag)), Flag())


def _signature() -> inspect.Signature:
    """The parameters of the command, as Typer reads them: one for each option that has a flag, among its own."""

    def parameter(name: str, kind: type, default: object) -> inspect.Parameter:
        return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)

    options: list[inspect.Parameter] = []
    for name, key in keys():
        if name in _WITHOUT_FLAG:
            continue
        field, flag = Options.model_fields[name], _flag(name)
        option = typer.Option(
            None if flag.stands_for or field.default == "" else field.default,
            f"--{key}",
            help=field.description,
            show_default=flag.stands_for or not (field.default == "" or field.default is False),
            metavar=flag.metavar,
            envvar=flag.variable,
        )
        options.append(parameter(name, list[str] if flag.repeated else type(field.default), option))
    return inspect.Signature(
        [
            parameter("context", typer.Context, inspect.Parameter.empty),
            parameter("simulation", str, typer.Argument(help=f"What to run: {', '.join(DATASETS)}.")),
            *options,
            parameter("seeds", str, typer.Option("", help="Several runs in one table: 0,1,2.", show_default=False)),
            parameter(
                "dry_run", bool, typer.Option(False, "--dry-run", help="Say what would be done, and do nothing.")
            ),
        ]
    )


# Typer reads a command's parameters from its signature, and a function's own cannot follow from a model.
run.__signature__ = _signature()  # type: ignore[attr-defined]


def _run_all(wanted: list[RunSettings]) -> None:
    # Imported when it is called: a command's help needs none of it.
    from sims.results import summary
    from sims.results.models import Results
    from sims.results.tables import results_tables, summary_table
    from sims.run import runner

    shown_on = console()
    done: list[tuple[Path, Results]] = []
    for number, settings in enumerate(wanted, start=1):
        if len(wanted) > 1:
            say(f"--- run {number} of {len(wanted)}, seed {settings.seed}")
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
    from sims.run import runner  # as above

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
        say(f"folder         {runner.planned_folder(settings, datetime.now(UTC))}")
        say(f"command        {settings.command()}")
        say()
    say("nothing was run (--dry-run)")


def _absolute(path: str) -> str:
    return os.path.abspath(expanded(path))


def _seeds(text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise InputError(f"--seeds must be whole numbers such as 0,1,2, not {text!r}")
    numbers = [int(part) for part in parts]
    if len(set(numbers)) != len(numbers):
        raise InputError(f"--seeds {text!r} names a seed twice")
    return numbers
