"""A thread that reaches one folder: what it does elsewhere is refused, and the process itself stays as it is."""

import os
from pathlib import Path

import pytest

from protocol.confinement import landlock
from protocol.confinement.landlock import OWN
from protocol.confinement.one_folder import within

pytestmark = pytest.mark.skipif(not landlock.abi(), reason="this kernel has no Landlock")


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """One folder, and a file beside it."""
    folder, beside = tmp_path / "one", tmp_path / "beside"
    folder.mkdir()
    beside.write_bytes(b"mine")
    return folder, beside


def test_the_thread_reaches_the_folder_and_nothing_else(folders: tuple[Path, Path]) -> None:
    folder, beside = folders
    (folder / "link").symlink_to(beside)
    assert within(folder, lambda: (folder / "file").write_bytes(b"x")) == 1
    for attack in (beside.unlink, beside.read_bytes, (folder / "link").read_bytes, lambda: beside.rename(folder / "b")):
        with pytest.raises(PermissionError):
            within(folder, attack)
    with pytest.raises(OSError, match="cross-device"):
        within(folder, lambda: os.link(beside, folder / "here"))
    assert beside.read_bytes() == b"mine"


def test_the_process_is_as_it_was(folders: tuple[Path, Path]) -> None:
    folder, beside = folders
    within(folder, lambda: None)
    beside.unlink()
    assert os.listdir("/")
    assert not landlock.has_no_new_privileges()


def test_what_it_raises_is_raised_and_what_it_returns_returned(folders: tuple[Path, Path]) -> None:
    def broken() -> None:
        raise ZeroDivisionError

    assert within(folders[0], lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        within(folders[0], broken)


def test_in_a_confined_process_nothing_is_asked_of_the_kernel(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = folders

    def asked() -> int:
        raise AssertionError("a confined node would be noted for it")

    child = os.fork()
    if child == 0:
        landlock.restrict({folder: OWN}, tcp=False)
        monkeypatch.setattr(landlock, "abi", asked)
        os._exit(within(folder, lambda: 7))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
