"""Tests of a collective's folder."""

from pathlib import Path

import pytest

from collective_node.collective_images import read, read_truth
from protocol.errors import InputError


def test_a_folder_that_is_no_world_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a collective's folder"):
        read(tmp_path)
    with pytest.raises(InputError, match="holds no labels of the stream"):
        read_truth(tmp_path)
