"""Live progress of a run: follows the nodes' own event files and records of crossings, and shows what is new."""

import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.text import Text

from protocol.encoding import strict_json
from protocol.errors import InputError
from protocol.files import state_files
from protocol.node.events import KINDS
from protocol.output import plain, redraws
from protocol.visible_text import visible_line
from sims.run.run_folder import individuals_of, state_folder

#: Shortest time in seconds between two lines of the same counter in plain output.
PLAIN_INTERVAL = 10.0
_EVENTS, _CROSSINGS = "events.jsonl", "crossings.jsonl"
#: Most bytes of a log that are read at once, most bytes of a line, and most lines that are taken of what is read: an
#: honest node writes some in a second, and each is printed.
_MOST_AT_ONCE, _LONGEST_LINE, _MOST_LINES = 1 << 20, 4096, 64
#: Characters of a text, and of a party's name, that are shown of a log.
_LONGEST_TEXT, _LONGEST_PARTY = 300, 64
#: Larger times and counters have no meaning; a float keeps smaller ones exactly.
_MOST = 2.0**53


@dataclass(frozen=True)
class Event:
    """Something that happened in a run.

    Attributes:
        party: the party whose file holds it; ``run`` for the run's own.
        kind: one of ``protocol.node.events.KINDS``, or ``crossing``.
        time: unix seconds.
        done, total: a counter; total 0 if there is none.
        text: words for a reader.
    """

    party: str
    kind: str
    time: float
    done: int
    total: int
    text: str


class Tail:
    """New whole lines of a file that another process appends to; it may be a node that was taken over. A half-written
    last line waits for its end; lines that are too long are skipped, and so is anything that is no regular file."""

    def __init__(self, path: Path, *, from_end: bool = False) -> None:
        self._path = path
        self._offset = 0
        if from_end and (file := self._open()) is not None:
            with file:
                self._offset = os.fstat(file.fileno()).st_size

    def poll(self) -> list[dict[str, object]]:
        """JSON objects of the last lines since the last call; other lines are skipped."""
        file = self._open()
        if file is None:
            return []
        with file:
            try:
                file.seek(self._offset)
                data = file.read(_MOST_AT_ONCE)
            except OSError:
                return []
        whole = data[: data.rfind(b"\n") + 1]
        # A program of ours writes no line of this length.
        self._offset += len(whole) if whole or len(data) < _MOST_AT_ONCE else len(data)
        found = []
        for line in whole.splitlines()[-_MOST_LINES:]:
            try:
                found.append(strict_json.parse_object(line[:_LONGEST_LINE], max_depth=2))
            except ValueError:
                continue
        return found

    def _open(self) -> BinaryIO | None:
        try:
            return state_files.open_to_read(self._path.parent, self._path.name, "the log")
        except InputError:
            return None


class RunWatcher:
    """Everything new in a run folder, in order of time.

    Args:
        folder: the run folder; its nodes may appear later.
        from_end: skip existing lines, as for a resumed run.
    """

    def __init__(self, folder: Path, *, from_end: bool = False) -> None:
        self._folder = folder
        self._tails: dict[tuple[str, str], Tail] = {}
        if from_end:
            self._tails = {key: Tail(path, from_end=True) for key, path in self._files().items()}

    def poll(self) -> list[Event]:
        """Events since the last call."""
        events = []
        for key, path in self._files().items():
            party, name = key
            tail = self._tails.setdefault(key, Tail(path))
            make = _crossing if name == _CROSSINGS else _event
            events += [event for entry in tail.poll() if (event := make(party, entry)) is not None]
        return sorted(events, key=lambda event: event.time)

    def _files(self) -> dict[tuple[str, str], Path]:
        """Every log, by party and name."""
        individuals = individuals_of(self._folder)
        # Crossings as the individuals have them: all go from or to one, and its own order is the order of the exchange.
        logs = [(party, _EVENTS) for party in ("collective", *individuals)]
        logs += [(party, _CROSSINGS) for party in individuals]
        found = {(party, name): state_folder(self._folder, party) / name for party, name in logs}
        return {("run", _EVENTS): self._folder / _EVENTS} | found


@dataclass
class Counter:
    """One counter of one party. Its pace gives the time that it still needs."""

    started: float
    first: int
    done: int
    total: int

    def seconds_left(self, now: float) -> float | None:
        """Seconds to the end at the pace since the counter was first seen; None before there is a pace."""
        advanced = self.done - self.first
        if advanced <= 0 or self.total <= 0:
            return None
        per_step = (now - self.started) / advanced
        return max(0.0, per_step * (self.total - self.done))


class Counters:
    """The counters of a run by party and kind. A counter that falls back starts a new pace."""

    def __init__(self) -> None:
        self._counters: dict[tuple[str, str], Counter] = {}

    def update(self, event: Event) -> Counter:
        """Take an event with a counter and return its counter."""
        key = (event.party, event.kind)
        counter = self._counters.get(key)
        if counter is None or event.done < counter.done or event.total != counter.total:
            counter = Counter(event.time, event.done, event.done, event.total)
        counter.done = event.done
        self._counters[key] = counter
        return counter


class ProgressView:
    """Shows events: on a terminal bars with the time left and lines above them, elsewhere plain lines.

    Args:
        clock: unix seconds.
    """

    def __init__(self, console: Console, clock: Callable[[], float] = time.time) -> None:
        self._console = console
        self._clock = clock
        self._counters = Counters()
        self._started = clock()
        self._printed: dict[tuple[str, str], float] = {}
        self._rows: dict[tuple[str, str], TaskID] = {}
        self._bars: Progress | None = None
        if redraws(console):
            self._bars = Progress(
                TextColumn("{task.fields[party]}", style="cyan", markup=False),
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=24),
                TextColumn("{task.completed:.0f}/{task.total:.0f}", markup=False),
                TextColumn("{task.fields[left]}", style="dim", markup=False),
                console=console,
                transient=True,
            )

    def __enter__(self) -> "ProgressView":
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()

    def say(self, text: str) -> None:
        """Show a line of the run itself at once."""
        self._line(Event("run", "run", self._clock(), 0, 0, text), text)

    def show(self, events: Iterable[Event]) -> None:
        """Show what is new."""
        for event in events:
            if event.total <= 0:
                self._line(event, event.text)
                continue
            counter = self._counters.update(event)
            if self._bars is not None:
                self._bar(self._bars, event, counter)
            else:
                self._plain(event, counter)

    def _bar(self, bars: Progress, event: Event, counter: Counter) -> None:
        key = (event.party, event.kind)
        left = duration(counter.seconds_left(self._clock()))
        if event.done >= event.total:
            if key in self._rows:
                bars.remove_task(self._rows.pop(key))
            self._line(event, f"{event.text} ({event.done}/{event.total})")
            return
        if key not in self._rows:
            self._rows[key] = bars.add_task("", total=event.total, party=visible_line(event.party), left="")
        bars.update(
            self._rows[key],
            completed=event.done,
            total=event.total,
            description=visible_line(event.text),
            left=f"{left} left" if left else "",
        )

    def _plain(self, event: Event, counter: Counter) -> None:
        key, now = (event.party, event.kind), self._clock()
        if event.done < event.total and now - self._printed.get(key, float("-inf")) < PLAIN_INTERVAL:
            return
        self._printed[key] = now
        left = duration(counter.seconds_left(now))
        note = f", {left} left" if left and event.done < event.total else ""
        self._line(event, f"{event.text} ({event.done}/{event.total}{note})")

    def _line(self, event: Event, text: str) -> None:
        since = duration(max(0.0, self._clock() - self._started))
        style = "green" if event.kind == "crossing" else ""
        line = Text.assemble(plain(f"{since:>7}  ", "dim"), plain(f"{event.party:<13} ", "cyan"), plain(text, style))
        # One line each, however long: a line of a log is not wrapped.
        self._console.print(line, soft_wrap=True)


def duration(seconds: float | None) -> str:
    """``42 s``, ``3:07``, ``1:02:03``; empty for None."""
    if seconds is None:
        return ""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _event(party: str, entry: dict[str, object]) -> Event | None:
    """A line of ``events.jsonl``; crossings are shown from their own record, which is the complete one."""
    kind, text = entry.get("event"), entry.get("text")
    # Every kind has a row of its own: a node that was taken over makes no more of them than there are.
    if not isinstance(kind, str) or kind not in KINDS:
        return None
    try:
        return Event(
            party=party,
            kind=kind,
            time=_number(entry.get("time")),
            done=int(_number(entry.get("done", 0))),
            total=int(_number(entry.get("total", 0))),
            text=text[:_LONGEST_TEXT] if isinstance(text, str) and text else kind,
        )
    except ValueError:
        return None


def _crossing(party: str, entry: dict[str, object]) -> Event | None:
    """A line of an individual's ``crossings.jsonl``, told from the sender's side."""
    try:
        size, when = int(_number(entry.get("bytes"))), _number(entry.get("time"))
    except ValueError:
        return None
    text = f"{entry.get('kind')} → {entry.get('to')}, {size:,} bytes, sha256 {str(entry.get('digest'))[:12]}"
    sender = str(entry.get("from", party))[:_LONGEST_PARTY]
    return Event(sender, "crossing", when, 0, 0, text[:_LONGEST_TEXT])


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= _MOST:
        raise ValueError("it is no number that is meant")
    return float(value)
