"""The commands ``learngene results`` and ``learngene report``."""

from pathlib import Path
from typing import Annotated

import typer

from protocol.output import console, say
from sims.run.run_folder import run_of


def register(app: typer.Typer) -> None:
    """Add ``results`` and ``report`` to ``learngene``."""
    app.command("results")(results)
    app.command("report")(report)


def results(
    runs: Annotated[list[Path], typer.Argument(help="Folder of a finished run; several: one table over their seeds.")],
) -> None:
    """Print the results of a run again, or one table over several runs of different seeds."""
    # Imported when it is called: a command's help needs none of it.
    from sims.results import summary
    from sims.results.models import load
    from sims.results.tables import results_tables, summary_table

    runs = [run_of(run) for run in runs]
    console().print(results_tables(load(runs[0])) if len(runs) == 1 else summary_table(summary.of_folders(runs)))


def report(run: Annotated[Path, typer.Argument(help="Folder of a finished run.")]) -> None:
    """Make the figures and the report of a run again from its results.json."""
    from sims.results.report import write  # as above

    say(f"report         {write(run_of(run))}")
