"""Files that a user names: what exists is never overwritten, whoever is quicker; no more is read than is allowed."""

import errno
import os
import stat
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from protocol.errors import InputError, StorageFailedError, TooLargeError
from protocol.files.user_files import read_limited, read_start, write_new
from protocol.keys import key_file
from protocol.keys.key_file import PrivateKey, Unlock
from protocol.messages import bundle_file
from protocol.messages.bundle_file import BundleFile
from protocol.trust.trust_file import write_trust
from tests.protocol.parties import ROOT, TRUST

#: Everything that promises to overwrite nothing.
WRITERS: dict[str, Callable[[Path], None]] = {
    "a file": lambda path: write_new(path, b"ours"),
    "a bundle file": lambda path: bundle_file.write(path, BundleFile(b"r", b"g", b"b")),
    "a key": lambda path: key_file.write(
        path, PrivateKey("ed25519", b"p" * 32, b"s" * 32), Unlock("hkdf-sha256", b"k" * 32)
    ),
    "a key file": key_file.make_key_file,
    "a trust store": lambda path: write_trust(path, TRUST, ROOT, new=True),
}


def without_hard_links(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on the file system of a memory stick."""

    def refuse(source: str, target: Path) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)


@pytest.mark.parametrize("hard_links", [True, False])
@pytest.mark.parametrize("what", WRITERS)
def test_attack_file_that_appears_while_another_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, hard_links: bool
) -> None:
    """Somebody else takes the name after it was found free."""
    if not hard_links:
        without_hard_links(monkeypatch)
    make, path = tempfile.mkstemp, tmp_path / "taken"
    WRITERS[what](tmp_path / "free")

    def slow(**arguments: object) -> tuple[int, str]:
        path.write_bytes(b"theirs")
        return make(**arguments)  # type: ignore[call-overload, no-any-return]

    monkeypatch.setattr(tempfile, "mkstemp", slow)
    with pytest.raises(InputError, match="not overwritten"):
        WRITERS[what](path)
    assert path.read_bytes() == b"theirs"
    assert sorted(os.listdir(tmp_path)) == ["free", "taken"]


@pytest.mark.parametrize("hard_links", [True, False])
def test_of_many_that_write_one_name_one_succeeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hard_links: bool
) -> None:
    if not hard_links:
        without_hard_links(monkeypatch)
    path, together, written = tmp_path / "file", threading.Barrier(8), []

    def write(number: int) -> None:
        together.wait()
        try:
            write_new(path, bytes([number]) * 1000)
        except InputError:
            return
        written.append(number)

    writers = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert len(written) == 1
    assert path.read_bytes() == bytes(written) * 1000
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("hard_links", [True, False])
def test_a_new_file_is_its_owner_s_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hard_links: bool) -> None:
    if not hard_links:
        without_hard_links(monkeypatch)
    write_new(tmp_path / "one", b"data")
    write_new(tmp_path / "two", b"data", mode=0o644)
    for name, mode in (("one", 0o600), ("two", 0o644)):
        assert (tmp_path / name).read_bytes() == b"data"
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == mode
        assert (tmp_path / name).stat().st_nlink == 1


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(source: str, target: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "link", fail)
    with pytest.raises(StorageFailedError, match="No space left"):
        write_new(tmp_path / "file", b"data")
    assert os.listdir(tmp_path) == []


def test_no_more_is_read_than_is_allowed(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    assert read_limited(tmp_path / "file", "a file", max_bytes=5) == b"12345"
    assert read_start(tmp_path / "file", "a file", max_bytes=4) == b"1234"
    with pytest.raises(TooLargeError, match="more than 4 bytes, the limit of a file"):
        read_limited(tmp_path / "file", "a file", max_bytes=4)
    os.mkfifo(tmp_path / "pipe")
    for name, said in (
        ("pipe", "is not a file"),
        ("gone", "cannot read a file"),
        (".", "cannot read a file|not a file"),
    ):
        with pytest.raises(InputError, match=said):
            read_limited(tmp_path / name, "a file", max_bytes=4)
