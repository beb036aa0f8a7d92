"""Tests of reading an individual's folder: what is there is read, what does not fit is named."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from individual_node.target_tasks import TargetTask, read
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
    assert task.classes == ("7", "4")


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


def uneven(*counts: int) -> TargetTask:
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))
    nothing = np.zeros(0, np.int64)
    return TargetTask(3, len(counts), np.arange(100, 100 + len(labels)), labels, nothing, nothing)


@pytest.mark.parametrize(
    ("share", "held_of_each"), [(0.2, [1, 1, 2, 4]), (0.01, [1, 1, 1, 1]), (0.5, [1, 2, 5, 10]), (0.99, [1, 4, 9, 19])]
)
def test_a_share_of_each_class_is_held_out_and_some_of_it_is_left(share: float, held_of_each: list[int]) -> None:
    task = uneven(2, 5, 10, 20)
    assert task.images_per_class() == (2, 5, 10, 20)
    learning, held = task.held_out(share, torch.Generator().manual_seed(0))
    assert list(held.images_per_class()) == held_of_each
    assert [a + b for a, b in zip(learning.images_per_class(), held_of_each, strict=True)] == [2, 5, 10, 20]
    assert sorted([*learning.support, *held.support]) == task.support.tolist()
    label = dict(zip(task.support, task.support_labels, strict=True))
    for part in (learning, held):
        assert part.support_labels.tolist() == [label[row] for row in part.support]


def test_what_is_held_out_is_drawn_from_the_generator() -> None:
    task = uneven(10, 10)
    drawn = [task.held_out(0.2, torch.Generator().manual_seed(seed))[1].support.tolist() for seed in (0, 0, 1, 2)]
    assert drawn[0] == drawn[1]
    assert len({tuple(rows) for rows in drawn}) > 1


def test_a_class_with_a_single_image_cannot_be_divided() -> None:
    with pytest.raises(InputError, match="class '1' of target task 3 has 1 support image"):
        uneven(4, 1).held_out(0.2, torch.Generator())
