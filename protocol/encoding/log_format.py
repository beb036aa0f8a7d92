"""A log in which every record is one line, so that text in a record cannot look like another record."""

import logging
import traceback
from types import TracebackType

from protocol.visible_text import visible_line

#: The format of all our logs.
FORMAT = "%(asctime)s %(levelname)s %(message)s"


class OneLineFormatter(logging.Formatter):
    """Line breaks and other characters that control a terminal are made visible in a message; a traceback follows in
    lines of its own, none of which can look like a record."""

    def __init__(self) -> None:
        super().__init__(FORMAT)

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """The line of a record."""
        return visible_line(super().formatMessage(record))

    def formatException(  # noqa: N802 - logging's name
        self, ei: tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]
    ) -> str:
        """The lines of a traceback."""
        return "" if ei[0] is None else "\n".join(traceback_lines(*ei))


def traceback_lines(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> list[str]:
    """A traceback as Python shows it, safe to show. The line that names an exception stays one line, whatever the
    exception's text holds."""
    lines: list[str] = []
    for part in traceback.format_exception(kind, error, trace):
        # Frames, and the inside of a group, are indented; a message begins with the exception's name.
        whole = part.strip("\n")
        lines += map(visible_line, whole.split("\n") if whole.startswith(" ") else [whole])
    return lines
