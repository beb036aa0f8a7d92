"""The output of commands, all through one gate: lines, JSON, tables, and Rich's drawings.

Nothing else in the packages writes to the terminal (``tests/test_names_on_the_terminal.py``): text from outside cannot
control the terminal, and markup in a name is never interpreted.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from typing import IO, Any

import typer
from rich import box
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.segment import Segment
from rich.style import StyleType
from rich.table import Table
from rich.text import Text

from protocol.visible_text import in_encoding, visible_line


def say(line: str = "", *, error: bool = False) -> None:
    """Print one line on standard output, or on standard error if it is an ``error``."""
    typer.echo(_shown(line), err=error)


def warn(line: str) -> None:
    """Print a warning of one line on standard error."""
    say(f"warning: {line}", error=True)


def say_json(value: object, *, indent: int | None = None) -> None:
    """Print JSON in ASCII: for programs, so nothing is cut and names are unchanged."""
    # `ensure_ascii` leaves only this control character.
    typer.echo(json.dumps(value, indent=indent).replace("\x7f", "\\u007f"))


def plain(text: str, style: str = "") -> Text:
    """One line of text for Rich, safe to show and without markup."""
    return Text(_shown(text), style)


def lines(text: str) -> Text:
    """As ``plain``, but the text's own line breaks stay. Only for texts of this program."""
    return Text("\n".join(_shown(line) for line in text.split("\n")))


def _shown(text: str) -> str:
    """One line of text as standard output can show it, whose encoding may lack characters (``LC_ALL=C``)."""
    return in_encoding(visible_line(text), getattr(sys.stdout, "encoding", None) or "utf-8")


class PlainTable(Table):
    """A table of Rich in which a string is a plain text of one line, in cells, headings and title alike.

    Where it would break a word or leave a letter out to fit, it is drawn as lines instead: one for each value.
    """

    def add_column(self, header: RenderableType = "", *arguments: object, **options: object) -> None:
        """As Rich's."""
        super().add_column(_plain(header), *arguments, **options)  # type: ignore[arg-type]

    def add_row(self, *cells: RenderableType | None, style: StyleType | None = None, end_section: bool = False) -> None:
        """As Rich's."""
        plain_cells = (None if cell is None else _plain(cell) for cell in cells)
        super().add_row(*plain_cells, style=style, end_section=end_section)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """As Rich's, with columns that hold their longest words, or one line for each value."""
        widths = self._widths(console, options.update_width(_NO_LIMIT), options.max_width)
        if widths is None:
            yield from self._as_lines()
            return
        before = [column.width for column in self.columns]
        try:
            for column, width in zip(self.columns, widths, strict=True):
                column.width = width
            yield from super().__rich_console__(console, options)
        finally:
            for column, given in zip(self.columns, before, strict=True):
                column.width = given

    def _widths(self, console: Console, without_limit: ConsoleOptions, room: int) -> list[int] | None:
        """A width for each column with which the table fits and no word is broken; None if there are none."""
        least, most = [], []
        for column in self.columns:
            heading = [console.measure(column.header, options=without_limit)] if self.show_header else []
            cells = [console.measure(cell, options=without_limit) for cell in column.cells]
            whole = column.no_wrap or column.justify == "right"  # a number is not broken at its signs
            most.append(max((one.maximum for one in (*heading, *cells)), default=0))
            least.append(max((one.maximum if whole else one.minimum for one in cells), default=0))
            least[-1] = max(least[-1], *(one.maximum if column.no_wrap else one.minimum for one in heading), 0)
        frame = self.__rich_measure__(console, without_limit).maximum - sum(most)
        room -= frame + sum(least)
        if room < 0:
            return None
        wanted = sum(most) - sum(least)
        share = min(1.0, room / wanted) if wanted else 0.0
        return [low + int(share * (high - low)) for low, high in zip(least, most, strict=True)]

    def _as_lines(self) -> Iterator[Text]:
        if self.title:
            yield _unbroken(self.title, self.title_style)
        headings = [_text(column.header) for column in self.columns] if self.show_header else []
        for row, *cells in zip(self.rows, *(column.cells for column in self.columns), strict=True):
            texts = [_text(cell) for cell in cells]
            if not headings:  # a name and its value
                yield _unbroken(Text("  ").join(texts), row.style)
                continue
            for number, (heading, text) in enumerate(zip(headings, texts, strict=True)):
                if text:
                    named = Text.assemble("  " if number else "", heading, ": " if heading else "", text)
                    yield _unbroken(named, row.style)
            if row.end_section:
                yield Text()


#: More columns than any terminal has.
_NO_LIMIT = 100_000


def _unbroken(text: RenderableType, style: StyleType | None) -> Text:
    """A line that is left to the terminal to break."""
    made = _text(text).copy()
    made.no_wrap, made.overflow = True, "ignore"
    made.stylize(style or "")
    return made


def _text(cell: RenderableType) -> Text:
    return cell if isinstance(cell, Text) else plain(str(cell))


def _plain(cell: RenderableType) -> RenderableType:
    return plain(cell) if isinstance(cell, str) else cell


def console(*, error: bool = False, file: IO[str] | None = None, width: int | None = None) -> Console:
    """Rich's console behind the gate: no markup, no emoji codes, no colours for numbers.

    Args:
        error: write to standard error.
        file: write there instead.
        width: in columns; default: the terminal's, and no limit in a file or a pipe.
    """
    made = _Console(stderr=error, file=file, width=width, markup=False, emoji=False, highlight=False)
    if width is None and not redraws(made):
        made.width = _FILE_WIDTH
    return made


#: Columns of a file or a pipe: more than any table of ours needs.
_FILE_WIDTH = 1000


class _Console(Console):
    """A console that passes everything through the gate, also bars and texts that were not made plain before. At that
    point the layout is fixed, so texts in columns are made plain earlier.
    """

    def print(self, *objects: Any, crop: bool = False, **how: Any) -> None:  # noqa: ANN401
        """As Rich's; what is wider than the terminal is not cut."""
        super().print(*objects, crop=crop, **how)

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
    """Print a table on standard output."""
    console().print(shown)
