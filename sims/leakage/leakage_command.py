"""The command ``learngene leakage``: attack the released learngene of a run, and report what it reveals."""

import shlex
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError

from protocol.errors import InputError, fault_line
from protocol.files.atomic import make_folder
from protocol.files.user_files import check_free, expanded, write_new
from protocol.output import console, say
from protocol.visible_text import visible_name
from sims.leakage.leakage_settings import LeakageSettings
from sims.run.progress import Event, ProgressView
from sims.run.run_folder import run_of


def register(app: typer.Typer) -> None:
    """Add the command ``leakage`` to ``app``."""
    app.command("leakage")(leakage)


def leakage(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    shadows: Annotated[
        int, typer.Option(help="Shadow collectives for each question; an even number, 4 or more.")
    ] = LeakageSettings().shadows,
    candidates: Annotated[
        int, typer.Option(help="Images whose membership is asked for, at most; half of them members.")
    ] = LeakageSettings().candidates,
    seed: Annotated[int, typer.Option(help="Seed of everything random in the attacks.")] = 0,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the results to this new file too.", show_default=False)
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for shadows, results and figures.", show_default="RUN/leakage"),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Use the shadows that an earlier call with the same arguments left in --out."),
    ] = False,
    change: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="Change any other number: noise=0.1,1 or samples=8,1024 or repetitions=20; may be repeated.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Attack a run's released learngene: membership, class presence, and what its Fisher diagonal shows.

    Trains shadow collectives by the run's own recipe, twice --shadows of them and a twin: minutes for a run of the
    profile smoke, and about as many times the collective's own training for a larger one. Every attack is also tried on
    cases with a known answer.

    Examples:

      learngene leakage ~/.learngene/runs/20260102-030405-cifar100

      learngene leakage RUN --shadows 32 --candidates 2000 --json leakage.json

      learngene leakage RUN --resume
    """
    if json_file is not None:
        json_file = expanded(json_file)
        check_free(json_file)
    # Imported when it is called: a command's help needs none of it.
    from sims.leakage import leakage_figures, leakage_results
    from sims.leakage.attacked_run import open_attacked, released
    from sims.leakage.leakage_table import leakage_tables
    from sims.leakage.measurement import SHADOWS, TWIN_FILE, measure
    from sims.results import report

    settings = _settings(change or [], shadows=shadows, candidates=candidates, seed=seed)
    run = run_of(expanded(run))
    attacked = open_attacked(run, released(run))
    folder = expanded(out or run / leakage_results.FOLDER)
    own = {*SHADOWS, TWIN_FILE, leakage_results.FILE, *leakage_figures.FIGURES}
    _open_folder(folder, own, resume=resume)
    with _progress() as tell:
        found = measure(attacked, settings, folder, _command(run, settings, change or []), tell)
    leakage_results.write(folder / leakage_results.FILE, found)
    leakage_figures.write(folder, found)
    if json_file is not None:
        write_new(json_file, leakage_results.to_json(found), mode=0o644)
    console().print(leakage_tables(found))
    say(f"results        {folder / leakage_results.FILE}")
    if out is None and (run / "results.json").is_file():
        say(f"report         {report.write(run)}")


def _settings(changes: list[str], **given: int) -> LeakageSettings:
    values: dict[str, object] = dict(given)
    for word in changes:
        name, equals, value = word.partition("=")
        if not equals or name in given or name not in LeakageSettings.model_fields:
            names = ", ".join(other for other in LeakageSettings.model_fields if other not in given)
            raise InputError(f"--set {word!r}: it must be NAME=VALUE, with a name of: {names}")
        many = name in ("noise", "samples")
        values[name] = [part for part in value.split(",") if part.strip()] if many else value
    try:
        return LeakageSettings.model_validate(values)
    except ValidationError as error:
        raise InputError(fault_line(error)) from None


def _command(run: Path, settings: LeakageSettings, changes: list[str]) -> str:
    words = ["learngene", "leakage", str(run), "--shadows", str(settings.shadows)]
    words += ["--candidates", str(settings.candidates), "--seed", str(settings.seed)]
    return shlex.join([*words, *(part for change in changes for part in ("--set", change))])


def _open_folder(folder: Path, own: Collection[str], *, resume: bool) -> None:
    """Make the folder of a measurement, or with ``resume`` use the existing one; ``own``: names in it that are its own.

    Raises:
        InputError: it is not empty and ``resume`` is not given, it holds something else than a measurement, or it
            cannot be written.
    """
    try:
        make_folder(folder)
        taken = sorted(entry.name for entry in folder.iterdir())
    except OSError as error:
        raise InputError(f"cannot write to {folder}: {error.strerror or error}") from None
    if taken and not resume:
        raise InputError(f"{folder} holds a measurement already; go on with --resume, or name another --out")
    if (foreign := next((name for name in taken if name not in own and name[0] != "."), None)) is not None:
        raise InputError(f"{folder} holds {visible_name(foreign)}, which is of no measurement; name another --out")


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    """Shows the current work, its progress and the time left on standard error."""
    with ProgressView(console(error=True)) as view:

        def tell(text: str, done: int, total: int) -> None:
            view.show([Event("leakage", text, time.time(), done, total, text)])

        yield tell
