"""Tests of a node's record of what it is doing."""

import json
from pathlib import Path

from protocol.node.events import Events


def test_progress_is_thinned_but_an_end_is_always_written(tmp_path: Path) -> None:
    now = [0.0]
    events = Events(tmp_path / "events.jsonl", clock=lambda: now[0], interval=1.0)
    for done in range(1, 11):
        events.append("task", done, 10, "task 1")
        events.append("cycle", done, 10, "beside it")
        now[0] += 0.25
    lines = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert [line["done"] for line in lines if line["event"] == "task"] == [1, 5, 9, 10]
    assert [line["done"] for line in lines if line["event"] == "cycle"] == [1, 5, 9, 10]
    assert set(lines[0]) == {"time", "event", "done", "total", "text"}
