"""The log of crossings: a line on disk for everything that crosses, also after a crash."""

import hashlib
import json
import os
import stat
from pathlib import Path

import pytest

from protocol.audit import Crossings, read_crossings
from protocol.errors import StorageFailedError


def test_a_line_for_each_crossing_in_order(tmp_path: Path) -> None:
    path = tmp_path / "crossings.jsonl"
    log = Crossings(path, "individual-1", lambda: 42)
    log.append("out", "collective", "request", b"abc")
    log.append("in", "collective", "blob", b"")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines[0] == {
        "time": 42,
        "direction": "out",
        "from": "individual-1",
        "to": "collective",
        "kind": "request",
        "bytes": 3,
        "digest": hashlib.sha256(b"abc").hexdigest(),
    }
    assert [(line["from"], line["to"], line["bytes"]) for line in lines[1:]] == [("collective", "individual-1", 0)]
    assert [crossing.kind for crossing in read_crossings(path)] == ["request", "blob"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_half_a_line_that_a_crash_left_spoils_no_other(tmp_path: Path) -> None:
    path = tmp_path / "crossings.jsonl"
    log = Crossings(path, "collective", lambda: 1)
    log.append("out", "individual-1", "grant", b"a")
    with path.open("ab") as file:
        file.write(b'{"time":1,"dire')
    log.append("out", "individual-1", "grant", b"b")
    digests = [crossing.digest for crossing in read_crossings(path)]
    assert digests == [hashlib.sha256(data).hexdigest() for data in (b"a", b"b")]


def test_a_line_is_durable_before_append_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_size))
    Crossings(tmp_path / "log", "collective", lambda: 1).append("in", "individual-1", "request", b"a")
    assert synced == [(tmp_path / "log").stat().st_size]


def test_what_cannot_be_recorded_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StorageFailedError, match="nothing is sent"):
        Crossings(tmp_path / "nowhere" / "log", "collective", lambda: 1).append("out", "individual-1", "grant", b"")
    assert read_crossings(tmp_path / "nowhere" / "log") == []
