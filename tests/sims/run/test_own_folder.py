"""A run's own folders: locked while it lasts, removed after a command that was killed, short enough for sockets."""

import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from protocol.errors import InputError
from protocol.transport.local_socket import MAX_PATH_BYTES
from sims.run.own_folder import make_own_folder, make_temporary_folder

KEEPER = """
import sys, time
from pathlib import Path
from sims.run.own_folder import make_own_folder
folder = make_own_folder(Path(sys.argv[1]), "run-")
print(folder.path, flush=True)
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
            ours = make_own_folder(home, "run-")
            assert ours.path != theirs
            assert (theirs / "ffs").is_dir()
        finally:
            process.kill()
    third = make_own_folder(home, "run-")
    assert not theirs.exists()
    assert {*home.glob("run-*")} == {ours.path, third.path}
    for folder in (ours, third):
        folder.remove()
        folder.remove()
    assert list(home.glob("run-*")) == []


def test_other_things_in_the_folder_are_left_alone(home: Path) -> None:
    (home / "running").mkdir(parents=True)
    (home / "run-file").touch()
    make_own_folder(home, "run-").remove()
    assert (home / "running").is_dir()
    assert (home / "run-file").is_file()


def ray_sockets(folder: Path) -> Path:
    """The longest path that Ray 2.55 binds there."""
    return folder / "ray" / "session_2026-11-29_15-42-00_801607_4194304" / "sockets" / "plasma_store"


@pytest.mark.parametrize("length", [0, 20, 200])
def test_ray_can_bind_its_sockets_whatever_the_temporary_folder_is(
    tmp_path: Path, length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tempfile.TemporaryDirectory(prefix="", dir="/tmp") as short:
        long = Path(short, "x" * length)
        long.mkdir(exist_ok=True)
        monkeypatch.setattr(tempfile, "tempdir", str(long))
        folder = make_temporary_folder()
        try:
            assert len(os.fsencode(ray_sockets(folder.path))) <= MAX_PATH_BYTES
            assert folder.path.is_relative_to(long) == (length == 0)
            for private in (folder.path, folder.path.parent):
                assert stat.S_IMODE(private.stat().st_mode) == 0o700
                assert private.stat().st_uid == os.getuid()
        finally:
            folder.remove()


def test_a_temporary_folder_that_others_may_enter_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory(prefix="", dir="/tmp") as short:
        theirs = Path(short, f"learngene-{os.getuid()}")
        theirs.mkdir()
        theirs.chmod(0o777)
        monkeypatch.setattr(tempfile, "tempdir", short)
        with pytest.raises(InputError, match="open to other users"):
            make_temporary_folder()
