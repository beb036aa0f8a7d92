"""Flower's own folders, locked while a run lasts and removed after a command that was killed; commands that fail."""

import subprocess
import sys
from pathlib import Path

import pytest

from protocol.errors import InputError, RunFailedError
from sims import flower
from sims.flower import FlowerRun, _own_folder

KEEPER = """
import sys, time
from pathlib import Path
from sims.flower import _own_folder
folder, lock = _own_folder(Path(sys.argv[1]))
print(folder, flush=True)
time.sleep(60)
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def test_folders_of_killed_commands_go_and_those_of_living_ones_stay(home: Path) -> None:
    command = [sys.executable, "-c", KEEPER, str(home)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            theirs = Path(process.stdout.readline().strip())
            (theirs / "ffs").mkdir()
            ours, lock = _own_folder(home)
            assert ours != theirs
            assert (theirs / "ffs").is_dir()
        finally:
            process.kill()
    third, another = _own_folder(home)
    assert not theirs.exists()
    assert ours.is_dir()
    lock.close()
    another.close()
    last, again = _own_folder(home)
    again.close()
    assert list(home.glob("run-*")) == [last]
    assert third != last


def test_other_things_in_the_folder_are_left_alone(home: Path) -> None:
    (home / "running").mkdir(parents=True)
    (home / "run-file").touch()
    _, lock = _own_folder(home)
    lock.close()
    assert (home / "running").is_dir()
    assert (home / "run-file").is_file()


def test_a_folder_that_cannot_be_written_is_wrong_input(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"cannot write to Flower's folder .*/file/flower"):
        flower.submit(tmp_path, {}, home=tmp_path / "file" / "flower")


def test_a_command_without_an_answer_is_a_failed_run(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    silent = tmp_path / "silent"
    silent.write_text("#!/bin/sh\nexec sleep 60\n", encoding="utf-8")
    silent.chmod(0o755)
    monkeypatch.setattr(flower, "_program", lambda name: str(silent))
    monkeypatch.setattr(flower, "_COMMAND_SECONDS", 0.1)
    own, lock = _own_folder(home)
    with (
        FlowerRun(own, subprocess.Popen(["sleep", "60"]), lock) as run,
        pytest.raises(RunFailedError, match=r"`flwr list` gave no answer in 0\.1 s"),
    ):
        run.status()
