"""The log of crossings: a line on disk for everything that crosses, also after a crash."""

import hashlib
import io
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from protocol.errors import MalformedError, StorageFailedError
from protocol.exchange.audit import Crossings, read_chain, read_crossings, verify_chain


def test_a_line_for_each_crossing_in_order(tmp_path: Path) -> None:
    path = tmp_path / "crossings.jsonl"
    log = Crossings(path, "individual-1", lambda: 42)
    log.append("out", "collective", "request", b"abc")
    log.append("in", "collective", "blob", b"", "malformed")
    lines = path.read_bytes().splitlines()
    assert json.loads(lines[0]) == {
        "number": 1,
        "time": 42,
        "direction": "out",
        "from": "individual-1",
        "to": "collective",
        "kind": "request",
        "bytes": 3,
        "digest": hashlib.sha256(b"abc").hexdigest(),
        "decision": "allowed",
        "previous": "0" * 64,
    }
    second = json.loads(lines[1])
    assert (second["number"], second["from"], second["to"], second["bytes"]) == (2, "collective", "individual-1", 0)
    assert second["previous"] == hashlib.sha256(lines[0]).hexdigest()
    assert second["decision"] == "malformed"
    chain = read_chain(path)
    assert [crossing.kind for crossing in chain.crossings] == ["request", "blob"]
    assert chain.head == hashlib.sha256(lines[1]).hexdigest()
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
    assert read_crossings(tmp_path / "nowhere" / "log") == ()


def written(folder: Path) -> list[bytes]:
    log = Crossings(folder / "log", "collective", lambda: 1)
    for number in range(5):
        log.append("out", "individual-1", "grant", bytes([number]))
    return (folder / "log").read_bytes().splitlines(keepends=True)


def broken(data: bytes) -> bool:
    try:
        verify_chain(io.BytesIO(data))
    except MalformedError as error:
        return "of the log of crossings" in str(error)
    return False


def test_every_change_of_the_log_shows(tmp_path: Path) -> None:
    lines = written(tmp_path)
    assert len(verify_chain(io.BytesIO(b"".join(lines))).crossings) == 5
    changed = lines[2].replace(b'"bytes":1', b'"bytes":2')
    assert changed != lines[2]
    attacks = {
        "a line changed": [*lines[:2], changed, *lines[3:]],
        "a line taken out": [*lines[:2], *lines[3:]],
        "the first line taken out": lines[1:],
        "two lines exchanged": [lines[0], lines[2], lines[1], *lines[3:]],
        "a line put in twice": [*lines[:3], *lines[2:]],
        "a line of nothing put in": [*lines[:3], b"\n", *lines[3:]],
        "other words of the same meaning": [lines[0].replace(b",", b", "), *lines[1:]],
    }
    for name, attacked in attacks.items():
        assert broken(b"".join(attacked)), name
    # What a chain cannot show: its end is missing. The head is then another one.
    whole, cut = verify_chain(io.BytesIO(b"".join(lines))), verify_chain(io.BytesIO(b"".join(lines[:-1])))
    assert cut.head != whole.head
    assert cut.head == whole.crossings[-1].previous


def test_every_bit_of_the_log_counts(tmp_path: Path) -> None:
    data = b"".join(written(tmp_path))
    last = data.rstrip(b"\n").rfind(b"\n") + 1
    for bit in range(8 * last):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(MalformedError):
            verify_chain(io.BytesIO(bytes(flipped)))


def test_processes_that_write_at_once_make_one_chain(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from protocol.exchange.audit import Crossings\n"
        "log = Crossings(Path(sys.argv[1]), 'collective', lambda: 1)\n"
        "for _ in range(40): log.append('out', 'individual-1', 'grant', b'x')"
    )
    writers = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "log")]) for _ in range(3)]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    assert len(read_chain(tmp_path / "log").crossings) == 120


@pytest.mark.parametrize("junk", [2049, 4096, 4097, 4098, 5000, 20_000])
def test_a_log_whose_end_is_no_line_is_refused_and_left_as_it_is(tmp_path: Path, junk: int) -> None:
    """A crash leaves at most a part of one line; nothing else may be cut off."""
    data = b"".join(written(tmp_path)) + b"\0" * junk
    path = tmp_path / "log"
    path.write_bytes(data)
    with pytest.raises(StorageFailedError, match=r"no line that was written.*nothing is sent"):
        Crossings(path, "collective", lambda: 1).append("out", "individual-1", "grant", b"x")
    assert path.read_bytes() == data
    with pytest.raises(MalformedError, match="line 6 of the log of crossings has no end"):
        read_chain(path)


def test_as_much_as_a_crash_can_leave_of_a_line_is_cut_off(tmp_path: Path) -> None:
    data = b"".join(written(tmp_path))
    path = tmp_path / "log"
    path.write_bytes(data + b"x" * 2048)
    assert len(read_chain(path).crossings) == 5
    Crossings(path, "collective", lambda: 1).append("out", "individual-1", "grant", b"x")
    assert path.read_bytes().startswith(data)
    assert len(read_chain(path).crossings) == 6


@pytest.mark.parametrize("content", [b"hello", b'{"a": 1}', b"{}", b"[1]"])
def test_a_file_that_never_was_a_log_is_not_called_whole(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "log"
    path.write_bytes(content)
    with pytest.raises(MalformedError, match="no log of crossings"):
        read_chain(path)


def test_a_crash_in_the_first_line_leaves_a_whole_log(tmp_path: Path) -> None:
    first, path = written(tmp_path)[0], tmp_path / "log"
    for size in (0, 2, 40, len(first) - 1):
        path.write_bytes(first[:size])
        assert read_chain(path).crossings == ()


def test_an_empty_line_at_the_end_does_not_begin_the_chain_anew(tmp_path: Path) -> None:
    data = b"".join(written(tmp_path)) + b"\n"
    (tmp_path / "log").write_bytes(data)
    with pytest.raises(StorageFailedError, match="nothing is sent"):
        Crossings(tmp_path / "log", "collective", lambda: 1).append("out", "individual-1", "grant", b"x")
    assert (tmp_path / "log").read_bytes() == data


def test_a_broken_log_is_not_written_on(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"not a line of ours\n")
    with pytest.raises(StorageFailedError, match="nothing is sent"):
        Crossings(tmp_path / "log", "collective", lambda: 1).append("out", "individual-1", "grant", b"")
    assert (tmp_path / "log").read_bytes() == b"not a line of ours\n"
