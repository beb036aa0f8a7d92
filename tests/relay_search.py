"""Watching what the relay holds, processes' memory and files, for pieces of a learngene."""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from sims.boundary.search import (
    CONFIRMED,
    SURELY_FOUND,
    Pieces,
    encodings,
    holding,
    memory_can_be_read,
    memory_of,
    search_files,
    search_process,
)
from sims.run.processes import descendants

__all__ = [
    "CONFIRMED",
    "SURELY_FOUND",
    "Pieces",
    "Watch",
    "encodings",
    "holding",
    "memory_can_be_read",
    "memory_of",
    "search_files",
    "search_process",
]

# Seconds between two looks at a process: one lives for the time of a message, one ends with the round, others stay.
_COURIER = "flwr-clientapp"
_EVERY, _EVERY_OTHER = {_COURIER: 0.4, "flwr-serverapp": 4.0}, 15.0
# In place of a process number.
_FILES = 0


class Watch:
    """Looks through processes and files again and again, in a thread, while they work. Used as a context manager:
    leaving it looks once more.

    Args:
        roots: process numbers; those below them are looked through too. By name of their kind.
        files: a file or folder; what they write lies in it.
        pieces: what to search for, by name; empty as long as there is nothing to search for.

    Attributes:
        in_memory: by kind and program, then by the name of what was searched for, the pieces found.
        in_files: by the file's name, in the same way.
        error: what ended the watching, if something did.
    """

    def __init__(self, roots: Mapping[str, int], files: Path, pieces: Callable[[], Mapping[str, Pieces]]) -> None:
        self._roots, self._files, self._pieces = dict(roots), files, pieces
        self._due: dict[int, float] = {}
        self.in_memory: dict[str, dict[str, set[str]]] = {}
        self.in_files: dict[str, dict[str, set[str]]] = {}
        self.error: Exception | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        if self.error is not None:
            raise self.error

    def _watch(self) -> None:
        try:
            last = False
            while not last:
                last = self._ended.wait(0.3)
                if wanted := self._pieces():
                    self._look(wanted, everywhere=last)
        except Exception as error:  # it is for whoever waits at the end
            self.error = error

    def _look(self, wanted: Mapping[str, Pieces], *, everywhere: bool) -> None:
        """At all couriers, and then at one thing that lasts, so that the next look is not long in coming; at the end
        everywhere."""
        running = [
            (pid, kind, program)
            for kind, root in self._roots.items()
            for pid in (root, *(process.pid for process in descendants(root)))
            if (program := _program(pid)) is not None
        ]
        for pid, kind, program in sorted(running, key=lambda found: found[2] != _COURIER):
            if everywhere or self._is_due(pid, program):
                self._look_at(pid, f"{kind}: {program}", wanted)
                if not everywhere and program != _COURIER:
                    return
        if everywhere or self._is_due(_FILES, "files"):
            for name, pieces in wanted.items():
                for path, names in search_files(self._files, pieces).items():
                    self.in_files.setdefault(path, {other: set() for other in wanted})[name] |= names

    def _look_at(self, pid: int, place: str, wanted: Mapping[str, Pieces]) -> None:
        # A process that is just ending may refuse; what is never read is missing in ``in_memory``.
        with contextlib.suppress(PermissionError):
            for chunk in memory_of(pid):
                found = self.in_memory.setdefault(place, {name: set() for name in wanted})
                for name, pieces in wanted.items():
                    found[name] |= pieces.found_in(chunk)

    def _is_due(self, pid: int, program: str) -> bool:
        now = time.monotonic()
        if now < self._due.get(pid, 0.0):
            return False
        self._due[pid] = now + _EVERY.get(program, _EVERY_OTHER)
        return True


def _program(pid: int) -> str | None:
    """The name of the program that a process runs, if it is one of Flower's; None where it has ended."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return None
    names = [Path(os.fsdecode(word)).name for word in words[:3]]
    return next((name for name in names if name.startswith(("flower-", "flwr-"))), names[0] or None)
