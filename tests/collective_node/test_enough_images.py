"""What a collective's images suffice for is known before any training, by every command that sees them."""

import json
from pathlib import Path

import numpy as np
import pytest

from collective_node.configuration import CollectiveConfiguration
from collective_node.enough_images import check_enough
from collective_node.settings import CollectiveSettings
from collective_node.task_sequence import sequence
from protocol.commands.init_command import initialise
from protocol.errors import InputError
from protocol.node.configuration import load
from tests.protocol.parties import ROOT

SETTINGS = CollectiveSettings(tasks=2, classes_per_task=5)


@pytest.mark.parametrize("seed", range(3))
def test_the_images_of_the_taught_classes_are_what_counts(seed: int) -> None:
    taught = {number for task in sequence(20, 5, 2, np.random.default_rng([seed, 20])) for number in task}
    assert 5 <= len(taught) < 20
    each = -(-1024 // len(taught))
    check_enough(SETTINGS, [each if number in taught else 0 for number in range(20)], seed=seed, fewest=1024)
    few = [each - 1 if number in taught else 10**6 for number in range(20)]
    with pytest.raises(InputError, match=str(sum(few[number] for number in taught))):
        check_enough(SETTINGS, few, seed=seed, fewest=1024)


def test_a_diagonal_of_fewer_samples_than_may_leave_is_refused_whatever_the_images() -> None:
    with pytest.raises(InputError, match="fisher_samples to 1024"):
        check_enough(SETTINGS.model_copy(update={"fisher_samples": 128}), [1000] * 20, seed=0, fewest=1024)
    with pytest.raises(InputError, match="classes_per_task=4"):
        check_enough(SETTINGS, [1000] * 4, seed=0, fewest=1024)


def test_a_node_s_folder_is_judged_by_its_manifest(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    initialise(tmp_path / "node", role="collective", data=data, party="collective", root=ROOT.public_hex)
    node = load(tmp_path / "node" / "config.toml", CollectiveConfiguration, "collective")
    assert str(data) in node.data_fault()  # own pictures, or nothing
    for images, fault in ((670, "670"), (1024, "")):
        manifest = {"classes": [f"class {number}" for number in range(8)], "counts": {"train": images}}
        (data / "manifest.json").write_text(json.dumps(manifest))
        assert fault in node.data_fault()
        assert bool(node.data_fault()) == bool(fault)
    (data / "manifest.json").write_text(json.dumps({"classes": ["a", "b"], "counts": {"train": 5000}}))
    assert "classes_per_task=2" in node.data_fault()
