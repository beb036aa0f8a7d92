"""Progress of long work: the type of an observer, and a node's own record, which never crosses the socket."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal, get_args

from protocol.errors import StorageFailedError
from protocol.files import state_files

#: The kinds of events, of nodes and of a run itself. A reader passes over any other.
Kind = Literal["run", "task", "consolidate", "cycle", "condense", "descendant", "fisher", "method"]
KINDS: tuple[Kind, ...] = get_args(Kind)

#: Is called during long work with the units done, their total, and a description.
Observer = Callable[[int, int, str], None]


class Events:
    """The writer of ``events.jsonl``: one JSON object a line with time, event, done, total, text.

    Args:
        path: the log; its folder exists.
        clock: unix seconds.
        interval: shortest time in seconds between two lines of one kind of event; the last one of a count is always
            written.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.time, interval: float = 0.5) -> None:
        self._path, self._clock, self._interval = path, clock, interval
        self._last: dict[str, float] = {}

    def append(self, event: Kind, done: int, total: int, text: str) -> None:
        """Record that ``done`` of ``total`` units of an event are finished.

        Raises:
            InputError: the file is no regular file: nothing is written through a link or into a pipe.
            StorageFailedError: the line could not be stored.
        """
        now = self._clock()
        if done < total and now - self._last.get(event, float("-inf")) < self._interval:
            return
        self._last[event] = now
        line = {"time": now, "event": event, "done": done, "total": total, "text": text}
        descriptor = state_files.open_to_write(
            self._path.parent, self._path.name, "the log of events", os.O_WRONLY | os.O_APPEND
        )
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise StorageFailedError(f"cannot write {self._path}: {error.strerror or error}; check the disk") from error
