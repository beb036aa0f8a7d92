"""Progress: every line once, halves not at all, the time left from the pace, plain lines without a terminal."""

import json
import re
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from protocol.node.events import KINDS
from sims.run.progress import Counters, Event, ProgressView, RunWatcher, Tail, duration
from tests.sims.made_run import record


def append(path: Path, *entries: dict[str, object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(entry) + "\n" for entry in entries)


def event(time: float, done: int, total: int, kind: str = "task", text: str = "a task") -> dict[str, object]:
    return {"time": time, "event": kind, "done": done, "total": total, "text": text}


def test_a_tail_gives_every_whole_line_once(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    tail = Tail(path)
    assert tail.poll() == []
    append(path, event(1, 0, 2))
    assert [entry["done"] for entry in tail.poll()] == [0]
    assert tail.poll() == []
    line = json.dumps(event(2, 1, 2))
    with path.open("a", encoding="utf-8") as file:
        file.write(line[:10])
    assert tail.poll() == []
    with path.open("a", encoding="utf-8") as file:
        file.write(line[10:] + "\nnot json\n[1]\n")
    append(path, event(3, 2, 2))
    assert [entry["done"] for entry in tail.poll()] == [1, 2]


def test_the_watcher_follows_nodes_that_appear_later_in_order_of_time(tmp_path: Path) -> None:
    watcher = RunWatcher(tmp_path)
    assert watcher.poll() == []
    append(tmp_path / "nodes" / "individual-1" / "state" / "events.jsonl", event(3, 1, 2, text="later"))
    append(tmp_path / "nodes" / "collective" / "state" / "events.jsonl", event(2, 1, 2, text="first"))
    append(tmp_path / "events.jsonl", event(1, 0, 0, "run", "world made"))
    assert [(found.party, found.text) for found in watcher.poll()] == [
        ("run", "world made"),
        ("collective", "first"),
        ("individual-1", "later"),
    ]


def test_crossings_are_shown_once_in_the_order_of_the_exchange(tmp_path: Path) -> None:
    asked = record("out", "individual-1", "collective", "request", 5, 900)
    answered = record("in", "collective", "individual-1", "release", 5, 8000)
    # All in one second, and the collective's record is there too.
    append(tmp_path / "nodes" / "collective" / "state" / "crossings.jsonl", {**asked, "direction": "in"})
    append(tmp_path / "nodes" / "collective" / "state" / "crossings.jsonl", {**answered, "direction": "out"})
    append(tmp_path / "nodes" / "individual-1" / "state" / "crossings.jsonl", asked, answered)
    append(tmp_path / "nodes" / "individual-1" / "state" / "events.jsonl", event(5, 0, 0, "crossing", "the same again"))
    found = RunWatcher(tmp_path).poll()
    assert [one.party for one in found] == ["individual-1", "collective"]
    for part in ("request", "collective", "900 bytes", str(asked["digest"])[:12]):
        assert part in found[0].text
    assert "release → individual-1" in found[1].text


def test_a_resumed_run_does_not_show_its_past(tmp_path: Path) -> None:
    path = tmp_path / "nodes" / "collective" / "state" / "events.jsonl"
    append(path, event(1, 1, 9))
    watcher = RunWatcher(tmp_path, from_end=True)
    append(path, event(2, 2, 9))
    assert [found.done for found in watcher.poll()] == [2]


def test_lines_of_the_wrong_shape_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "nodes" / "collective" / "state" / "events.jsonl"
    append(
        path, {"event": "task"}, {"time": "now", "event": "task"}, {"time": 1}, {"time": 1, "event": "x", "done": []}
    )
    append(
        tmp_path / "nodes" / "individual-1" / "state" / "crossings.jsonl",
        {"direction": "out", "bytes": "many", "time": 1},
    )
    assert RunWatcher(tmp_path).poll() == []


def kind_of(number: int) -> str:
    return "".join(chr(97 + number // 26**place % 26) for place in range(6))


@pytest.mark.parametrize("lines", ["ever new kinds", "one kind", "crossings"])
def test_attack_a_log_without_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: str) -> None:
    """A node writes more than anybody reads: a row for each kind, a line for each end of a count, texts of any length.
    A call takes no more of it than an honest node writes, and the display no more rows than there are kinds."""
    made = {
        "ever new kinds": [event(n, 1, 9, kind_of(n)) for n in range(5_000)],
        "one kind": [event(n, 1, 1, "task", "x" * 3_000) for n in range(1_000)],
        "crossings": [record("out", "individual-1", "collective", "request", n, 900) for n in range(5_000)],
    }[lines]
    name = "crossings.jsonl" if lines == "crossings" else "events.jsonl"
    append(tmp_path / "nodes" / "individual-1" / "state" / name, *made)
    append(tmp_path / "nodes" / "collective" / "state" / "events.jsonl", *(event(1, 1, 9, kind) for kind in KINDS))
    monkeypatch.setenv("TERM", "xterm")
    watcher, out, polls, rows = RunWatcher(tmp_path), Terminal(), 0, set()
    with ProgressView(Console(file=out, width=200), lambda: 0.0) as view:
        while found := watcher.poll():
            assert len(found) <= 64 + len(KINDS)
            assert all(len(one.text) + len(one.party) <= 400 for one in found)
            rows |= {(one.party, one.kind) for one in found}
            view.show(found)
            polls += 1
    assert {("collective", kind) for kind in KINDS} <= rows  # the control: they are shown
    assert len(rows) <= 2 * len(KINDS)
    printed = out.getvalue()
    assert 0 < printed.count("(1/1)") + printed.count("request") <= 64 * polls or lines == "ever new kinds"


def test_time_left_is_the_rest_at_the_pace_so_far() -> None:
    counters = Counters()
    first = counters.update(Event("collective", "task", 100.0, 2, 10, ""))
    assert first.seconds_left(100.0) is None
    later = counters.update(Event("collective", "task", 130.0, 5, 10, ""))
    assert later.seconds_left(130.0) == pytest.approx(50.0)  # three took 30 s, five are left
    other = counters.update(Event("individual-1", "task", 130.0, 9, 10, ""))
    assert other.seconds_left(131.0) is None
    again = counters.update(Event("collective", "task", 140.0, 0, 10, ""))
    assert again.seconds_left(140.0) is None


def test_without_a_terminal_every_message_and_every_end_is_one_plain_line() -> None:
    out, now = StringIO(), [0.0]
    console = Console(file=out, force_terminal=False, width=40)
    with ProgressView(console, lambda: now[0]) as view:
        for done in range(1, 101):
            now[0] = done * 0.5
            view.show([Event("collective", "step", now[0], done, 100, "a text that is longer than forty characters")])
        view.show([Event("individual-1", "crossing", 50.0, 0, 0, "request → collective [bold]")])
    lines = out.getvalue().splitlines()
    assert len(lines) < 10  # 50 s, at most one line in 10 s, and the end
    assert all("collective" in line for line in lines)
    assert "(100/100)" in lines[-2]
    assert lines[-1].endswith("request → collective [bold]")
    assert "left" in lines[1]
    assert "\x1b" not in out.getvalue()


def test_on_a_terminal_the_bars_go_when_they_are_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    out = Terminal()
    _show_two(out)
    assert "last task (2/2)" in out.getvalue()
    assert "\x1b[2K" in out.getvalue()


def test_a_file_is_not_drawn_over_although_it_gets_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    out = StringIO()
    _show_two(out)
    assert "last task (2/2)" in out.getvalue()
    # Colours, and nothing that moves or clears.
    assert set(re.findall(r"\x1b\[[0-9;?]*([a-zA-Z])", out.getvalue())) == {"m"}


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


def _show_two(out: StringIO) -> None:
    with ProgressView(Console(file=out, width=100), lambda: 0.0) as view:
        view.show(
            [Event("collective", "task", 0.0, 1, 2, "task two"), Event("collective", "task", 0.0, 2, 2, "last task")]
        )


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, ""), (0.4, "0 s"), (59.4, "59 s"), (59.6, "1:00"), (187.0, "3:07"), (3723.0, "1:02:03")],
)
def test_durations(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text
