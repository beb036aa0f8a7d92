"""Progress of long work: who is told of it, and a node's own record of it, which never crosses the socket."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

from protocol.errors import StorageFailedError
from protocol.files import state_files

#: Told of work as it goes on: how much is done, of how much, and what it is.
Observer = Callable[[int, int, str], None]


class Events:
    """The writer of ``events.jsonl``: one JSON object a line with time, event, done, total, text.

    Args:
        path: the log; its folder exists.
        clock: unix seconds.
        interval: progress of one kind of event is written at most this often (s); what ends a count always is.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.time, interval: float = 0.5) -> None:
        self._path, self._clock, self._interval = path, clock, interval
        self._last: dict[str, float] = {}

    def append(self, event: str, done: int, total: int, text: str) -> None:
        """Record that ``done`` of ``total`` units of an event are finished.

        Raises:
            InputError: what stands there is no log: nothing is written through a link or into a pipe.
            StorageFailedError: the disk does not take it.
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
