"""Tests of a collective's folder."""

import json
from pathlib import Path

import numpy as np
import pytest

from collective_node.collective_images import read, read_truth
from protocol.errors import InputError


def test_a_folder_that_is_no_world_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a collective's folder"):
        read(tmp_path)
    with pytest.raises(InputError, match="holds no labels of the stream"):
        read_truth(tmp_path)


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (np.arange(4) % 2, ""),
        ((np.arange(4) % 2).astype(np.int32), "do not fit each other"),
        ((np.arange(4) % 2).astype(np.float64), "do not fit each other"),
        (np.arange(4) % 2 + 1, "names no class"),
        (np.arange(4) % 2 - 1, "names no class"),
        (np.arange(3) % 2, "do not fit each other"),
        (np.array([0, 0, 0, 1]), "fewer than two training images"),
    ],
)
def test_labels_of_another_type_or_beginning_are_refused(tmp_path: Path, labels: np.ndarray, said: str) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps({"classes": ["a", "b"]}))
    for part in ("train", "heldout"):
        np.save(tmp_path / f"{part}_images.npy", np.zeros((4, 32, 32, 3), np.uint8))
        np.save(tmp_path / f"{part}_labels.npy", labels if part == "train" else np.arange(4) % 2)
    if said:
        with pytest.raises(InputError, match=said):
            read(tmp_path)
    else:
        assert read(tmp_path).train_labels.tolist() == [0, 1, 0, 1]
