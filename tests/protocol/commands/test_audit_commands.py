"""``learngene audit``: the log shown and verified."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from protocol.commands import learngene
from protocol.commands.terminal import exit_code
from protocol.exchange.audit import Crossings


@pytest.fixture
def state(tmp_path: Path) -> Path:
    log = Crossings(tmp_path / "crossings.jsonl", "individual-1", lambda: 1_800_000_000)
    log.append("out", "collective", "request", b"abc")
    log.append("in", "unverified", "blob", b"", "digest_mismatch")
    return tmp_path


def run(*arguments: str) -> str:
    result = CliRunner().invoke(learngene.make(), ["audit", *arguments])
    assert result.exit_code == 0, result.output
    return result.output


def code(*arguments: str) -> int:
    import typer

    return exit_code(
        lambda: typer.main.get_command(learngene.make()).main(["audit", *arguments], standalone_mode=False)
    )


def test_show_and_verify(state: Path) -> None:
    shown = run("show", str(state))
    for word in ("request", "digest_mismatch", "2027-01-15", "2 crossings, 1 of them refused", "head "):
        assert word in shown
    assert "request" not in run("show", str(state), "--refused")
    found = json.loads(run("show", str(state), "--json"))
    assert [line["kind"] for line in found["crossings"]] == ["request", "blob"]
    head = json.loads(run("verify", str(state / "crossings.jsonl"), "--json"))["head"]
    assert head == found["head"]
    assert head in run("verify", str(state), "--head", head)


def test_a_changed_log_a_cut_log_and_no_log(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = state / "crossings.jsonl"
    head = json.loads(run("verify", str(state), "--json"))["head"]
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0])
    assert code("verify", str(state)) == 0
    assert code("verify", str(state), "--head", head) == 1
    path.write_bytes(lines[1] + lines[0])
    assert code("verify", str(state)) == 1
    assert "line 1 of the log of crossings" in capsys.readouterr().err
    assert code("verify", str(state / "nothing")) == 2
