"""The gate to a state folder: plain files of one owner and one name; nothing is followed, awaited or swallowed."""

import fcntl
import os
from pathlib import Path

import pytest

from protocol.errors import InputError, RunFailedError, StorageFailedError
from protocol.files import state_files
from tests.protocol.hostile_files import NO_FILE, plant, within

ROOT = os.geteuid() == 0


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """Another party's file."""
    path = tmp_path / "victim"
    path.write_bytes(b"another party's")
    return path


@pytest.fixture
def state(tmp_path: Path) -> Path:
    folder = tmp_path / "state"
    (folder / "inner").mkdir(parents=True)
    return folder


def one_line(error: BaseException) -> str:
    text = str(error)
    assert "\n" not in text
    assert "; " in text
    return text


@pytest.mark.parametrize("name", ["file", "inner/file"])
def test_a_plain_file_is_read_and_written(state: Path, name: str) -> None:
    assert state_files.read(state, name, "the file", max_bytes=9) is None
    assert state_files.look(state, name, "the file", max_bytes=9) is None
    for word in (b"one", b"two"):
        descriptor = state_files.open_to_write(state, name, "the file", os.O_WRONLY | os.O_APPEND)
        os.write(descriptor, word)
        os.close(descriptor)
    assert state_files.read(state, name, "the file", max_bytes=6) == b"onetwo"
    assert (state / name).stat().st_mode & 0o777 == 0o600
    found = state_files.look(state, name, "the file", max_bytes=6)
    assert found is not None
    assert found.st_size == 6


@pytest.mark.parametrize("kind", NO_FILE)
@pytest.mark.parametrize("name", ["file", "inner/file"])
def test_what_is_no_file_is_refused_and_nothing_behind_it_is_touched(
    state: Path, victim: Path, kind: str, name: str
) -> None:
    plant(kind, state / name, victim)
    before = victim.stat()
    for attempt in (
        lambda: state_files.read(state, name, "the file", max_bytes=99),
        lambda: state_files.look(state, name, "the file", max_bytes=99),
        lambda: state_files.open_to_write(state, name, "the file", os.O_WRONLY | os.O_APPEND),
        lambda: state_files.open_to_write(state, name, "the file", os.O_RDWR),
    ):
        with within(5), pytest.raises(InputError) as refused:
            attempt()
        assert "the file" in one_line(refused.value)
    after = victim.stat()
    assert victim.read_bytes() == b"another party's"
    assert (after.st_mtime_ns, after.st_ino) == (before.st_mtime_ns, before.st_ino)


def test_a_dangling_link_makes_no_file_elsewhere(state: Path, tmp_path: Path) -> None:
    (state / "file").symlink_to(tmp_path / "new")
    with pytest.raises(InputError, match="a link stands there"):
        state_files.open_to_write(state, "file", "the file", os.O_WRONLY | os.O_APPEND)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("what", ["link", "file", "pipe"])
def test_a_folder_on_the_way_is_no_link(state: Path, tmp_path: Path, what: str) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "file").write_bytes(b"another party's")
    (state / "inner").rmdir()
    if what == "link":
        (state / "inner").symlink_to(elsewhere)
    elif what == "file":
        (state / "inner").write_bytes(b"")
    else:
        os.mkfifo(state / "inner")
    for attempt in (
        lambda: state_files.read(state, "inner/file", "the file", max_bytes=99),
        lambda: state_files.open_to_write(state, "inner/file", "the file", os.O_WRONLY | os.O_APPEND),
        lambda: state_files.open_to_write(state, "inner/new", "the file", os.O_WRONLY | os.O_APPEND),
        lambda: state_files.subfolder(state, "inner", "the folder"),
        lambda: state_files.subfolder(state, "inner/new", "the folder"),
        lambda: state_files.entries(state, "inner", "the folder"),
    ):
        with within(5), pytest.raises(InputError) as refused:
            attempt()
        one_line(refused.value)
    assert sorted(path.name for path in elsewhere.iterdir()) == ["file"]
    assert (elsewhere / "file").read_bytes() == b"another party's"
    # The control: the state folder's own path is the operator's, and may lead over a link.
    (tmp_path / "operators").symlink_to(elsewhere)
    assert state_files.read(tmp_path / "operators", "file", "the file", max_bytes=99) == b"another party's"


def test_no_more_is_read_than_was_ever_written(state: Path) -> None:
    (state / "file").write_bytes(bytes(100))
    assert state_files.read(state, "file", "the file", max_bytes=100) == bytes(100)
    with (state / "file").open("r+b") as file:
        file.truncate(1 << 40)
    for attempt in (state_files.read, state_files.look):
        with within(5), pytest.raises(InputError, match="more than 100 bytes"):
            attempt(state, "file", "the file", max_bytes=100)


@pytest.mark.skipif(not ROOT, reason="only root can give a file away")
def test_a_file_of_another_user_is_refused_and_the_nodes_own_is_read_by_root(state: Path) -> None:
    (state / "file").write_bytes(b"")
    os.chown(state / "file", 12345, 12345)
    with pytest.raises(InputError, match="belongs to the user 12345"):
        state_files.read(state, "file", "the file", max_bytes=9)
    os.chown(state, 12345, 12345)
    assert state_files.read(state, "file", "the file", max_bytes=9) == b""


def test_folders_are_made_private_and_listed_in_bounds(state: Path) -> None:
    assert state_files.subfolder(state, "a/b", "the folder") == state / "a" / "b"
    assert {path.stat().st_mode & 0o777 for path in (state / "a", state / "a" / "b")} == {0o700}
    assert state_files.entries(state, "absent", "the folder") == []
    state_files.subfolder(state, "absent", "the folder", make=False)
    assert not (state / "absent").exists()
    for number in range(3):
        os.mkdir(os.fsencode(state / "a" / "b") + b"/\xff%d" % number)
    assert len(state_files.entries(state, "a/b", "the folder", most=3)) == 3
    with pytest.raises(InputError, match="more than 2 entries"):
        state_files.entries(state, "a/b", "the folder", most=2)


def test_what_stands_in_the_way_is_removed_and_nothing_behind_it(state: Path, victim: Path) -> None:
    for kind in NO_FILE:
        plant(kind, state / "it", victim)
        state_files.remove(state / "it")
        assert not os.path.lexists(state / "it")
        state_files.remove(state / "it")
    assert victim.read_bytes() == b"another party's"


def test_a_folder_deeper_than_any_is_one_line(state: Path) -> None:
    place = os.open(state, os.O_RDONLY)
    for _ in range(3000):
        os.mkdir("d", dir_fd=place)
        inner = os.open("d", os.O_RDONLY | os.O_DIRECTORY, dir_fd=place)
        os.close(place)
        place = inner
    os.close(place)
    try:
        with within(60), pytest.raises(StorageFailedError) as refused:
            state_files.remove(state / "d")
        one_line(refused.value)
    finally:
        os.system(f"rm -rf '{state}'")  # pytest's own way of removing it would fail as well


def test_a_lock_that_is_never_given_back_holds_nobody_up(state: Path) -> None:
    first, second = (os.open(state / "log", os.O_RDWR | os.O_CREAT) for _ in range(2))
    state_files.lock_within(first, 0)
    with within(10), pytest.raises(StorageFailedError, match="end that one first"):
        state_files.lock_within(second, 0.1)
    os.close(first)
    state_files.lock_within(second, 0)
    os.close(second)


def test_a_state_folder_that_a_node_holds_is_not_held_by_another(state: Path) -> None:
    node = os.open(state, os.O_RDONLY)
    fcntl.flock(node, fcntl.LOCK_EX)
    with pytest.raises(RunFailedError, match="end it first"), state_files.held(state):
        pass
    fcntl.flock(node, fcntl.LOCK_UN)
    with state_files.held(state), pytest.raises(BlockingIOError):
        fcntl.flock(node, fcntl.LOCK_EX | fcntl.LOCK_NB)
    fcntl.flock(node, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(node)
