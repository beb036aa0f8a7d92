"""Flower's own folders: one for each run, locked while it lasts, and removed after a command that was killed."""

import subprocess
import sys
from pathlib import Path

import pytest

from sims.flower import _own_folder

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
