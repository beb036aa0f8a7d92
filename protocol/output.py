"""The output of commands, all through one gate: lines, JSON, tables, and Rich's drawings.

Nothing else in the packages writes to the terminal (``tests/test_names_on_the_terminal.py``): text from outside cannot
control the terminal, and markup in a name is never interpreted.
"""

import json
from collections.abc import Iterator, Sequence
from typing import IO

import typer
from rich import box
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.style import StyleType
from rich.table import Table
from rich.text import Text

from protocol.visible_text import visible_line


def say(line: str = "", *, error: bool = False) -> None:
    """Print one line on standard output, or on standard error if it is an ``error``."""
    typer.echo(visible_line(line), err=error)


def warn(line: str) -> None:
    """Print a warning of one line on standard error."""
    say(f"warning: {line}", error=True)


def say_json(value: object, *, indent: int | None = None) -> None:
    """Print JSON in ASCII: for programs, so nothing is cut and names are unchanged."""
    # `ensure_ascii` leaves only this control character.
    typer.echo(json.dumps(value, indent=indent).replace("\x7f", "\\u007f"))


def plain(text: str, style: str = "") -> Text:
    """One line of text for Rich, safe to show and without markup."""
    return Text(visible_line(text), style)


def lines(text: str) -> Text:
    """As ``plain``, but the text's own line breaks stay. Only for texts of this program."""
    return Text("\n".join(visible_line(line) for line in text.split("\n")))


class PlainTable(Table):
    """A table of Rich in which a string is a plain text of one line, in cells, headings and title alike."""

    def add_column(self, header: RenderableType = "", *arguments: object, **options: object) -> None:
        """As Rich's."""
        super().add_column(_plain(header), *arguments, **options)  # type: ignore[arg-type]

    def add_row(self, *cells: RenderableType | None, style: StyleType | None = None, end_section: bool = False) -> None:
        """As Rich's."""
        plain_cells = (None if cell is None else _plain(cell) for cell in cells)
        super().add_row(*plain_cells, style=style, end_section=end_section)


def _plain(cell: RenderableType) -> RenderableType:
    return plain(cell) if isinstance(cell, str) else cell


def console(*, error: bool = False, file: IO[str] | None = None, width: int | None = None) -> Console:
    """Rich's console behind the gate: no markup, no emoji codes, no colours for numbers.

    Args:
        error: write to standard error.
        file: write there instead.
        width: in columns; default: the terminal's.
    """
    return _Console(stderr=error, file=file, width=width, markup=False, emoji=False, highlight=False)


class _Console(Console):
    """A console that passes everything through the gate, also bars and texts that were not made plain before. At that
    point the layout is fixed, so texts in columns are made plain earlier.
    """

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        """As Rich's."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(_gated(segment.text), segment.style)


def _gated(drawn: str) -> str:
    # Rich's own line breaks are in it.
    return "\n".join(visible_line(line, length=10 * len(line)) for line in drawn.split("\n"))


def table(*columns: str, title: str | None = None, right: Sequence[str] = ()) -> PlainTable:
    """An empty table; the columns in ``right`` hold numbers. No column: rows of a name and its value."""
    made = PlainTable(
        title=None if title is None else plain(title),
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


def add_row(to: PlainTable, *cells: RenderableType) -> None:
    """Add a row of plain texts: markup in them is not interpreted."""
    to.add_row(*cells)


def redraws(shown_on: Console) -> bool:
    """Whether drawings there can be redrawn. Rich by itself takes a file for a terminal if a variable such as
    ``FORCE_COLOR`` is set, which is meant for colours.
    """
    return shown_on.is_terminal and shown_on.file.isatty()


def print_table(shown: Table) -> None:
    """Print a table on standard output: with the terminal's width, or the width that it needs for a file or a pipe."""
    wide = console()
    if not redraws(wide):
        wide = console(width=1000)
    wide.print(shown)
