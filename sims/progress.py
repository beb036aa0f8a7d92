"""Live progress of a run: follows the nodes' own event files and records of crossings, and shows what is new."""

import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.text import Text

from protocol.encoding.visible_text import visible_line
from protocol.output import plain

#: In plain output, one line of the same counter at most this often (seconds).
PLAIN_INTERVAL = 10.0


@dataclass(frozen=True)
class Event:
    """Something that happened in a run.

    Attributes:
        party: whose file it stands in; ``run`` for the run's own.
        kind: ``task``, ``epoch``, ``crossing``...
        time: unix seconds.
        done, total: a counter; total 0 where there is none.
        text: words for a reader.
    """

    party: str
    kind: str
    time: float
    done: int
    total: int
    text: str


class Tail:
    """New whole lines of a file that another process appends to. A half-written last line waits for its end."""

    def __init__(self, path: Path, *, from_end: bool = False) -> None:
        self._path = path
        self._offset = path.stat().st_size if from_end and path.is_file() else 0

    def poll(self) -> list[dict[str, object]]:
        """JSON objects of the lines that came since the last call; a line that is none is passed over."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                data = file.read()
        except OSError:
            return []
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        found = []
        for line in whole.splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if isinstance(entry, dict):
                found.append(entry)
        return found


class RunWatcher:
    """Everything new in a run folder, in order of time.

    Args:
        folder: the run folder; its nodes may appear later.
        from_end: pass over what is there already, as for a run that is resumed.
    """

    def __init__(self, folder: Path, *, from_end: bool = False) -> None:
        self._folder = folder
        self._tails: dict[Path, Tail] = {}
        if from_end:
            self._tails = {path: Tail(path, from_end=True) for path in self._files()}

    def poll(self) -> list[Event]:
        """Events since the last call."""
        events = []
        for path in self._files():
            tail = self._tails.setdefault(path, Tail(path))
            party = "run" if path.parent == self._folder else path.parent.parent.name
            make = _crossing if path.name == "crossings.jsonl" else _event
            events += [event for entry in tail.poll() if (event := make(party, entry)) is not None]
        return sorted(events, key=lambda event: event.time)

    def _files(self) -> list[Path]:
        nodes = self._folder / "nodes"
        own = self._folder / "events.jsonl"
        # Crossings as the individuals have them: all go from or to one, and its own order is the order of the exchange.
        events, crossings = nodes.glob("*/state/events.jsonl"), nodes.glob("individual-*/state/crossings.jsonl")
        return [own, *sorted(events), *sorted(crossings)]


@dataclass
class Counter:
    """One counter of one party, and from its own pace the time it still needs."""

    started: float
    first: int
    done: int
    total: int

    def seconds_left(self, now: float) -> float | None:
        """At the pace since the counter was first seen; None while there is no pace yet."""
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
        if console.is_terminal:
            self._bars = Progress(
                TextColumn("{task.fields[party]}", style="cyan", markup=False),
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=24),
                TextColumn("{task.completed:.0f}/{task.total:.0f}"),
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
    kind = str(entry.get("event", ""))
    if kind in ("", "crossing"):
        return None
    try:
        return Event(
            party=party,
            kind=kind,
            time=_number(entry.get("time")),
            done=int(_number(entry.get("done", 0))),
            total=int(_number(entry.get("total", 0))),
            text=str(entry.get("text") or kind),
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
    return Event(str(entry.get("from", party)), "crossing", when, 0, 0, text)


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{value!r} is no number")
    return float(value)
