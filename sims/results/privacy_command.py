"""The command ``learngene privacy``: accuracy against epsilon, from several runs."""

from pathlib import Path
from typing import Annotated

import typer

from protocol.files.atomic import write_atomically
from protocol.output import console, say
from sims.run.run_folder import run_of


def register(app: typer.Typer) -> None:
    """Add the command ``privacy`` to ``app``."""
    app.command("privacy")(privacy)


def privacy(
    runs: Annotated[
        list[Path], typer.Argument(help="Folders of finished runs that differ in collective.privacy_epsilon and seed.")
    ],
) -> None:
    """Table and figure of accuracy against epsilon; they go into the folder and the report of every run.

    Runs without a guarantee may be among them: the last column.

    Example:

      learngene privacy runs/epsilon-1 runs/epsilon-8 runs/no-guarantee
    """
    # Imported when it is called: a command's help needs none of it.
    from sims.results import privacy_figure, privacy_table, report
    from sims.results.tables import privacy_tables

    runs = [run_of(run) for run in runs]
    table = privacy_table.of_folders(runs)
    console().print(privacy_tables(table))
    image = privacy_figure.draw(table)
    for folder in runs:
        write_atomically(folder / privacy_table.PRIVACY_FIGURE, image)
        say(f"{'privacy.json':<14} {privacy_table.write(table, folder)}")
        say(f"{'report.html':<14} {report.write(folder)}")
