"""The collective's node with private weights: one release that states its guarantee, and figures that do too."""

import json
import time
from pathlib import Path

import numpy as np
import pytest
import tomli_w

from collective_node import collective_images
from collective_node.collective_images import CollectiveImages
from collective_node.configuration import CollectiveConfiguration
from collective_node.differential_privacy.mechanism import Mechanism
from collective_node.program import CollectiveProgram
from protocol.confinement.guards import Confinement
from protocol.node.configuration import load, read
from protocol.node.load_keys import load_keys
from protocol.transport.frame import Frame
from tests.two_folders import make_folders

SETTINGS = {
    "width": 0.0625,
    "condense_budget": "own",
    "tasks": 1,
    "classes_per_task": 4,
    "forms": ["condensed"],
    "cycles": 0,
    "privacy_epsilon": 2.5,
    "privacy_epochs": 0.5,
}


def evolve(program: CollectiveProgram) -> None:
    """Give the command, and wait until the work is over."""
    answer = program.handle(Frame("evolve"))
    while answer.fields["state"] == "working":
        time.sleep(0.05)
        answer = program.handle(Frame("status"))
    assert answer.fields["state"] == "done"


def test_the_node_publishes_a_private_learngene_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    # So many that their noisy number is below the 1,024 of a Fisher diagonal once in thousands of runs.
    labels = np.repeat(np.arange(4), 400)
    pixels = rng.integers(0, 256, (len(labels), 32, 32, 3), dtype=np.uint8)
    images = CollectiveImages(("ant", "bee", "cat", "dog"), pixels, labels, pixels[::30], labels[::30])
    monkeypatch.setattr(collective_images, "read", lambda folder: images)
    folders = make_folders(tmp_path)
    tables = read(folders.collective)
    folders.collective.write_bytes(tomli_w.dumps({**tables, "collective": SETTINGS}).encode())
    configuration = load(folders.collective, CollectiveConfiguration, "collective")
    program = CollectiveProgram(configuration, Confinement(0, False, ()), load_keys(configuration.node))
    evolve(program)
    (release,) = folders.collective_endpoint().releases()
    assert release.payload.dp is not None
    assert release.payload.dp.epsilon_micro == 2_500_000
    metrics = json.loads((configuration.node.state / "metrics.json").read_text())
    assert Mechanism.model_validate(metrics["privacy"]).guarantee == release.payload.dp
    assert (metrics["tasks"], metrics["known_classes"]) == ([], 4)
    # A crash after the release and before the figures: asked again, it publishes what it has, no second learngene.
    (configuration.node.state / "metrics.json").unlink()
    evolve(program)
    assert [one.digest for one in folders.collective_endpoint().releases()] == [release.digest]
    assert json.loads((configuration.node.state / "metrics.json").read_text())["privacy"] == metrics["privacy"]
    folders.exchange(tmp_path / "private.learngene", at=int(time.time()))
