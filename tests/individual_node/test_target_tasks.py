"""Tests of reading an individual's folder: what is there is read, what does not fit is named."""

import json
from pathlib import Path

import numpy as np
import pytest

from individual_node.target_tasks import read
from protocol.errors import InputError


def folder(path: Path, **changes: object) -> Path:
    """Two classes, three support and two test images each, one task at one and two shots."""
    pixels = np.arange(10 * 8 * 8 * 3, dtype=np.uint8).reshape(10, 8, 8, 3)
    np.save(path / "support_images.npy", pixels[:6])
    np.save(path / "support_labels.npy", np.array([4, 4, 4, 7, 7, 7]))
    np.save(path / "test_images.npy", pixels[6:])
    np.save(path / "test_labels.npy", np.array([7, 7, 4, 4]))
    task = {"task": 3, "classes": [7, 4], "support": {"1": [3, 0], "2": [3, 5, 0, 2]}, "test": [0, 1, 2, 3]}
    (path / "tasks.json").write_text(json.dumps({"format": 1, "tasks": [{**task, **changes}]}))
    return path


def test_labels_are_ways_in_the_order_of_the_tasks_classes(tmp_path: Path) -> None:
    found = read(folder(tmp_path))
    assert sorted(found.tasks) == [1, 2]
    task = found.tasks[2][0]
    assert (task.number, task.ways) == (3, 2)
    assert task.support.tolist() == [3, 5, 0, 2]
    assert task.support_labels.tolist() == [0, 0, 1, 1]
    assert task.test_labels.tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize(
    "changes", [{"test": [9]}, {"support": {"1": [3, 6]}}, {"classes": [7, 5]}], ids=["test", "support", "class"]
)
def test_rows_and_classes_that_are_not_there_are_refused(tmp_path: Path, changes: dict[str, object]) -> None:
    with pytest.raises(InputError, match=r"tasks\.json names rows or classes"):
        read(folder(tmp_path, **changes))


def test_a_row_below_zero_is_refused_and_does_not_count_from_the_end(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not an individual's folder"):
        read(folder(tmp_path, test=[-1]))


def test_pickled_images_are_refused(tmp_path: Path) -> None:
    folder(tmp_path)
    np.save(tmp_path / "test_images.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match="not an individual's folder"):
        read(tmp_path)


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not an individual's folder"):
        read(tmp_path)
