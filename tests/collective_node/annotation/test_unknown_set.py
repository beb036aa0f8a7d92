"""The unknown set on disk: a round trip, closed to others, never half of it, never over somebody's labels."""

import dataclasses
import stat
from pathlib import Path

import numpy as np
import pytest

from collective_node.annotation.unknown_set import UnknownSet, cycle_folder, load, store
from protocol.errors import InputError
from tests.collective_node.made_unknown_set import unknown_set


def test_what_is_stored_is_loaded(tmp_path: Path) -> None:
    folder, unknown = cycle_folder(tmp_path, 1), unknown_set()
    store(folder, unknown)
    loaded = load(folder)
    for name in ("images", "scores", "features"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(unknown, name), strict=True)
    assert loaded.known == unknown.known
    assert len(loaded) == 48


def test_it_is_closed_to_other_users(tmp_path: Path) -> None:
    folder = cycle_folder(tmp_path, 1)
    store(folder, unknown_set())
    assert [stat.S_IMODE(path.stat().st_mode) for path in (folder.parent, folder)] == [0o700, 0o700]
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}


def test_cycles_sort_by_their_folder_names(tmp_path: Path) -> None:
    folders = [cycle_folder(tmp_path, cycle) for cycle in (1, 2, 10, 100)]
    assert folders == sorted(folders)


def test_the_same_set_again_leaves_the_labels(tmp_path: Path) -> None:
    folder = tmp_path / "cycle"
    store(folder, unknown_set())
    (folder / "labels.jsonl").write_text("somebody's work")
    store(folder, unknown_set())
    assert (folder / "labels.jsonl").read_text() == "somebody's work"


def test_another_set_is_not_put_in_its_place(tmp_path: Path) -> None:
    folder, unknown = tmp_path / "cycle", unknown_set()
    store(folder, unknown)
    with pytest.raises(InputError, match="holds other unknown images"):
        store(folder, dataclasses.replace(unknown, images=255 - unknown.images))
    with pytest.raises(InputError, match="holds other unknown images"):
        store(folder, dataclasses.replace(unknown, known=("pear",)))
    np.testing.assert_array_equal(load(folder).images, unknown.images)


@pytest.mark.parametrize("name", ["images.npy", "scores.npy", "features.npy", "unknown.json"])
def test_a_missing_or_cut_file_is_an_error(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "cycle"
    store(folder, unknown_set())
    path = folder / name
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(InputError, match="not a whole unknown set"):
        load(folder)
    path.unlink()
    with pytest.raises(InputError, match="not a whole unknown set"):
        load(folder)


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    folder = tmp_path / "cycle"
    store(folder, unknown_set())
    np.save(folder / "scores.npy", np.array([object()] * 48), allow_pickle=True)
    with pytest.raises(InputError, match="not a whole unknown set"):
        load(folder)


def test_files_that_do_not_fit_each_other_are_an_error(tmp_path: Path) -> None:
    folder = tmp_path / "cycle"
    store(folder, unknown_set())
    np.save(folder / "scores.npy", np.zeros(47))
    with pytest.raises(InputError, match="47 scores"):
        load(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": np.zeros((48, 8, 8, 3), np.float32)}, "images must be uint8"),
        ({"images": np.zeros((48, 8, 8), np.uint8)}, "images must be uint8 of rank 4"),
        ({"images": np.zeros((48, 8, 8, 4), np.uint8)}, "neither grey nor of three colours"),
        ({"scores": np.zeros(48, np.float32)}, "scores must be float64"),
        ({"scores": np.full(48, np.nan)}, "not finite"),
        ({"features": np.full((48, 2), np.inf, np.float32)}, "not finite"),
        ({"features": np.zeros((47, 2), np.float32)}, "47 rows of features"),
        (
            {
                "images": np.zeros((0, 8, 8, 3), np.uint8),
                "scores": np.zeros(0),
                "features": np.zeros((0, 2), np.float32),
            },
            "at least one",
        ),
    ],
)
def test_what_is_no_unknown_set_cannot_be_made(changes: dict[str, np.ndarray], message: str) -> None:
    fields = {field.name: getattr(unknown_set(), field.name) for field in dataclasses.fields(UnknownSet)}
    with pytest.raises(ValueError, match=message):
        UnknownSet(**(fields | changes))
