"""What commands print: tables, points in time, and the warning where something is used that should not be."""

import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from protocol.learngene import Doubt


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
    return _in_calendar(seconds, "%Y-%m-%d %H:%M UTC")


def day(seconds: int) -> str:
    """Unix seconds as a date in UTC; as ``moment`` where no calendar reaches that far."""
    return _in_calendar(seconds, "%Y-%m-%d")


def _in_calendar(seconds: int, pattern: str) -> str:
    try:
        return f"{datetime.fromtimestamp(seconds, UTC):{pattern}}"
    except (ValueError, OverflowError, OSError):
        return f"{seconds} s after 1970"


def warn_doubt(doubt: "Doubt", what: str, *, form: str, release: str) -> None:
    """One line on standard error wherever somebody uses what should not be used any more.

    Args:
        doubt: why not.
        what: should not be used: ``this learngene``.
        form, release: of its release: form and digest.
    """
    why = {
        "withdrawn": "was withdrawn by the collective",
        "compromised": "was signed with a key that is revoked as compromised, so that a thief may have made it",
    }[doubt]
    print(f"warning: {what} {why} ({form}, release {release[:16]}); request a new one", file=sys.stderr)
