"""Saving: all of the new content or all of the old, and never half."""

import os
import stat
from pathlib import Path

import pytest

from protocol.errors import StorageFailedError
from protocol.files.atomic import write_atomically, write_folder_atomically


def test_a_file_is_replaced_as_a_whole_with_its_mode_and_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    write_atomically(path, b"old")
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    write_atomically(path, b"new", mode=0o600)
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["settings.json"]


def test_a_crash_before_the_rename_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "settings.json"
    write_atomically(path, b"old")

    def crash(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(StorageFailedError, match="No space left"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["settings.json"]


def test_every_file_is_synced_before_it_is_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    sync, rename = os.fsync, os.replace

    def recorded_sync(descriptor: int) -> None:
        steps.append("sync")
        sync(descriptor)

    def recorded_rename(old: str, new: Path) -> None:
        steps.append("rename")
        rename(old, new)

    monkeypatch.setattr(os, "fsync", recorded_sync)
    monkeypatch.setattr(os, "replace", recorded_rename)
    write_atomically(tmp_path / "file", b"data")
    assert steps == ["sync", "rename", "sync"]


def test_a_missing_folder_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(StorageFailedError, match=r"cannot write .*No such file"):
        write_atomically(tmp_path / "nowhere" / "file", b"data")


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "learngene"
    write_folder_atomically(path, {"a": b"1", "b": b"2"})
    write_folder_atomically(path, {"c": b"3"})
    assert {file.name: file.read_bytes() for file in path.iterdir()} == {"c": b"3"}

    def crash(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "rename", crash)
    with pytest.raises(StorageFailedError):
        write_folder_atomically(tmp_path / "other", {"a": b"1"})
    assert os.listdir(tmp_path) == ["learngene"]
