"""Progress of long work: who is told of it, and a node's own record of it, which never crosses the socket."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

#: Told of work as it goes on: how much is done, of how much, and what it is.
Observer = Callable[[int, int, str], None]


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


class Events:
    """Appends to ``events.jsonl``: one JSON object a line with time, event, done, total, text.

    Args:
        path: the log; its folder exists.
        clock: unix seconds.
        interval: progress of one kind of event is written at most this often (s); what ends a count always is.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.time, interval: float = 0.5) -> None:
        self._path, self._clock, self._interval = path, clock, interval
        self._last: dict[str, float] = {}

    def append(self, event: str, done: int, total: int, text: str) -> None:
        """Record that ``done`` of ``total`` of an event's units are through."""
        now = self._clock()
        if done < total and now - self._last.get(event, float("-inf")) < self._interval:
            return
        self._last[event] = now
        line = {"time": now, "event": event, "done": done, "total": total, "text": text}
        with open(self._path, "a", encoding="utf-8", opener=_private) as file:
            file.write(json.dumps(line) + "\n")
