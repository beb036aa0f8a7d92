"""Who may read a secret's file, and what it may be: the same for every secret, and between two real users."""

import os
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from protocol.errors import InputError
from protocol.files.private_file import read_private
from protocol.keys.key_file import PrivateKey, Unlock, lock, make_key_file, read
from protocol.transport.local_socket import load_couriers_secret, load_secret, make_secret

NODE_USER, COURIER_USER, STRANGER, DOOR_GROUP = 64_601, 64_602, 64_603, 64_700
SECRET = bytes(range(32))
FILE = Unlock("hkdf-sha256", SECRET)
KEY = PrivateKey("ed25519", SECRET, SECRET)


READERS: dict[str, tuple[str, Callable[[Path], object], bytes]] = {
    "key file": ("file", Unlock.key_file, SECRET),
    "private key": ("file", lambda path: read(path, ["ed25519"], FILE), lock(KEY, FILE)),
    "socket's secret": ("file", load_secret, SECRET.hex().encode() + b"\n"),
    "courier's secret": ("file", lambda path: load_couriers_secret(path, path.parent / "sock"), SECRET.hex().encode()),
}
readers = pytest.mark.parametrize("kind", READERS)


@pytest.fixture
def folder() -> Iterator[Path]:
    """One that other users may enter, as pytest's own may not be, of a group that is not this user's."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        os.chmod(name, 0o755)
        yield Path(name)


def good(folder: Path, kind: str) -> tuple[Path, Callable[[Path], object]]:
    """A file that its reader accepts, which is the control of every refusal."""
    name, reader, content = READERS[kind]
    path = folder / name
    path.write_bytes(content)
    path.chmod(0o600)
    reader(path)
    return path, reader


@readers
@pytest.mark.parametrize("mode", [0o604, 0o620, 0o602, 0o644, 0o660, 0o610, 0o601, 0o666])
def test_a_file_that_others_reach_is_refused(tmp_path: Path, kind: str, mode: int) -> None:
    path, reader = good(tmp_path, kind)
    path.chmod(mode)
    with pytest.raises(InputError, match="chmod 600"):
        reader(path)


@pytest.mark.parametrize(
    "kind", [kind for kind in READERS if kind != "courier's secret"]
)  # Of whose folder, see below.
def test_another_user_s_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    path, reader = good(tmp_path, kind)
    user = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: user + 1)
    if user == 0 and kind == "socket's secret":
        assert reader(path) == SECRET, "root's is right for a socket"
        return
    with pytest.raises(InputError, match="chown"):
        reader(path)


@readers
def test_a_symbolic_link_is_refused(tmp_path: Path, kind: str) -> None:
    path, reader = good(tmp_path, kind)
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="symbolic link"):
        reader(path)
    path.unlink()
    path.symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError, match="symbolic link"):
        reader(path)


@readers
def test_what_is_no_file_is_refused_without_waiting(tmp_path: Path, kind: str) -> None:
    path, reader = good(tmp_path, kind)
    path.unlink()
    os.mkfifo(path, 0o600)
    with pytest.raises(InputError, match="is not a file"):
        reader(path)
    path.unlink()
    path.mkdir(mode=0o700)
    with pytest.raises(InputError):
        reader(path)


@readers
def test_a_file_of_another_size_is_refused(tmp_path: Path, kind: str) -> None:
    path, reader = good(tmp_path, kind)
    path.write_bytes(b"0" * (1 << 20))
    with pytest.raises(InputError, match="more than"):
        reader(path)


def test_a_made_file_is_its_owner_s_alone_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        make_secret(tmp_path / "secret")
        make_key_file(tmp_path / "key")
    finally:
        os.umask(before)
    for name in ("secret", "key"):
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o600


def test_a_group_reads_only_where_it_is_the_one_that_may(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    make_secret(path)
    path.chmod(0o640)
    group = path.stat().st_gid
    assert len(load_secret(path, group=group)) == 32
    for other in (None, group + 1):
        with pytest.raises(InputError, match="chmod 600"):
            load_secret(path, group=other)
    for mode in (0o660, 0o650, 0o644, 0o642):
        path.chmod(mode)
        with pytest.raises(InputError, match="640 for the group"):
            load_secret(path, group=group)


def test_it_is_the_open_file_that_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The name can lead to another file by the time it is read."""
    good_one, other = tmp_path / "good", tmp_path / "other"
    for path, mode in ((good_one, 0o600), (other, 0o666)):
        path.write_bytes(b"x" * 40)
        path.chmod(mode)
    really = os.open

    def swapped(path: Path, *arguments: int) -> int:
        descriptor = really(other, *arguments)
        return descriptor

    assert read_private(good_one, "the secret", max_bytes=64)
    monkeypatch.setattr(os, "open", swapped)
    with pytest.raises(InputError, match="chmod 600"):
        read_private(good_one, "the secret", max_bytes=64)


def as_user(user: int, groups: tuple[int, ...], secret: Path, socket: Path) -> str:
    """What another user's courier gets out of a secret's file: its length, or the error."""
    code = f"""
        from pathlib import Path
        from protocol.confinement import privileges
        from protocol.errors import InputError
        from protocol.transport.local_socket import load_couriers_secret
        privileges.become(privileges.User("x", {user}, {user}, {groups!r}))
        try:
            print(len(load_couriers_secret(Path({str(secret)!r}), Path({str(socket)!r}))))
        except InputError as error:
            print(error)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_courier_reads_its_node_s_secret_and_no_stranger_s(folder: Path) -> None:
    """As docs/confinement.md lays it out: the secret of lg-node, 0640 for the group lg-door, in a folder of 0750."""
    door = folder / "door"
    door.mkdir()
    door.chmod(0o750)
    secret, socket = door / "socket.secret", door / "node.sock"
    make_secret(secret)

    def give(owner: int, group: int = DOOR_GROUP, mode: int = 0o640) -> str:
        os.chown(secret, owner, group)
        os.chown(door, NODE_USER, DOOR_GROUP)
        secret.chmod(mode)
        return as_user(COURIER_USER, (COURIER_USER, DOOR_GROUP), secret, socket)

    assert give(NODE_USER) == "32"
    assert give(0) == "32"
    assert give(COURIER_USER, COURIER_USER, 0o600) == "32"
    # A stranger put it there, or another group may read it, or somebody may write it.
    assert "must belong to you" in give(STRANGER)
    assert "must belong to you" in give(NODE_USER, COURIER_USER)
    assert "must belong to you" in give(NODE_USER, mode=0o660)
    assert "must belong to you" in give(NODE_USER, mode=0o644)
    # Who is not in the group does not even reach it.
    give(NODE_USER)
    assert "Permission denied" in as_user(STRANGER, (STRANGER,), secret, socket)
    # Root, before it becomes the node's user, knows whose it is; a stranger's stays wrong for root too.
    assert len(load_secret(secret, node=NODE_USER, group=DOOR_GROUP)) == 32
    with pytest.raises(InputError, match="must belong to you"):
        load_secret(secret, group=DOOR_GROUP)
    give(STRANGER)
    with pytest.raises(InputError, match="must belong to you"):
        load_secret(secret, node=NODE_USER, group=DOOR_GROUP)
