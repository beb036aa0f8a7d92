"""Flower's commands that fail."""

import os
from pathlib import Path

import pytest

from protocol.errors import RunFailedError
from sims.run import flower
from sims.run.enclosure import Enclosure
from sims.run.flower import FlowerRun
from sims.run.own_folder import make_own_folder


@pytest.fixture
def run(tmp_path: Path) -> FlowerRun:
    """A run whose SuperLink does nothing."""
    temporary = make_own_folder(tmp_path / "temporary", "t-")
    with open(os.devnull, "wb") as output:
        enclosure = Enclosure(
            lambda ready: ["sh", "-c", f"echo 1 >/dev/fd/{ready}; exec sleep 60"],
            environment=dict(os.environ),
            folder=temporary.path,
            output=output,
        )
    assert enclosure.wait_until_ready(60.0)
    return FlowerRun(temporary, enclosure)


def test_a_command_without_an_answer_is_a_failed_run(
    run: FlowerRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    silent = tmp_path / "silent"
    silent.write_text("#!/bin/sh\nexec sleep 60\n", encoding="utf-8")
    silent.chmod(0o755)
    monkeypatch.setattr(flower, "_program", lambda name: str(silent))
    monkeypatch.setattr(flower, "_COMMAND_SECONDS", 0.1)
    with run, pytest.raises(RunFailedError, match=r"`flwr list` gave no answer in 0\.1 s"):
        run.status()


def test_a_closed_run_is_lost_and_leaves_no_folder(run: FlowerRun, tmp_path: Path) -> None:
    run.close()
    run.close()
    assert run.status() == "lost"
    assert list(run.stream()) == []
    assert not list(tmp_path.glob("*/t-*"))
