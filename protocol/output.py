"""What commands print: tables, points in time, and the warning where something withdrawn is used."""

import sys
from collections.abc import Sequence
from datetime import UTC, datetime

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text


def table(*columns: str, title: str | None = None, right: Sequence[str] = ()) -> Table:
    """An empty table; the columns in ``right`` hold numbers. No column: rows of a name and its value."""
    made = Table(
        title=title,
        box=box.SIMPLE_HEAD if columns else None,
        show_header=bool(columns),
        title_justify="left",
        title_style="bold",
    )
    for column in columns:
        made.add_column(column, overflow="fold", justify="right" if column in right else "left")
    if not columns:
        made.add_column(no_wrap=True)
        made.add_column(overflow="fold")
    return made


def add_row(to: Table, *cells: str) -> None:
    """Add a row of plain texts: what looks like markup in them stays as it is."""
    to.add_row(*(Text(cell) for cell in cells))


def print_table(shown: Table) -> None:
    """To standard output: as wide as the terminal, or as wide as it needs where that is a file or a pipe."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=1000)
    console.print(shown)


def moment(seconds: int) -> str:
    """Unix seconds as a date and time in UTC; as the number where no calendar reaches that far."""
    try:
        return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M} UTC"
    except (ValueError, OverflowError, OSError):
        return f"{seconds} s after 1970"


def warn_withdrawn(what: str, *, form: str, release: str) -> None:
    """One line on standard error wherever somebody uses what the collective has withdrawn.

    Args:
        what: was withdrawn: ``this learngene``.
        form, release: of the withdrawn release: its form and digest.
    """
    print(
        f"warning: {what} was withdrawn by the collective ({form}, release {release[:16]}); request a new one",
        file=sys.stderr,
    )
