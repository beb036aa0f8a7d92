"""The individual's node: what its adapt job says of the learngenes that it adapts."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest

from individual_node import program
from individual_node.configuration import IndividualConfiguration
from individual_node.program import IndividualProgram
from individual_node.target_tasks import PrivateImages, TargetTask
from protocol.confinement.guards import Confinement
from protocol.node.configuration import load
from protocol.node.endpoints import load_keys
from protocol.node.metrics import METRICS_FILE
from protocol.trust.trust_file import read_trust, write_trust
from tests.protocol.parties import NEW_COLLECTIVE, ROOT, learngene
from tests.two_folders import make_folders

NONE = np.zeros(0, np.int64)
PIXELS = np.zeros((0, 1, 1, 3), np.uint8)
FIRST = TargetTask(4, 2, NONE, NONE, NONE, NONE, ("7", "0"))
SECOND = TargetTask(9, 2, NONE, NONE, NONE, NONE, ("3", "7"))
#: Two target tasks, one of them at both counts of shots.
IMAGES = PrivateImages(PIXELS, PIXELS, {1: [FIRST, SECOND], 5: [FIRST]})


class NothingToRun:
    """In the place of the evaluation, which needs target tasks and minutes."""

    def __init__(self, *_: object) -> None:
        pass

    def run_all(self) -> tuple[dict[str, object], dict[str, float]]:
        """No method, no figures."""
        return {}, {}


def test_the_adapt_job_says_what_should_not_be_used_any_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folders = make_folders(tmp_path / "site")
    for form in ("condensed", "paper"):
        folders.publish(learngene(form=form))
        folders.exchange(tmp_path / f"{form}.learngene", form)
    configuration = load(folders.individual, IndividualConfiguration, "individual")
    node = IndividualProgram(configuration, Confinement(0, False, ()), load_keys(configuration.node))
    monkeypatch.setattr(program, "Evaluation", NothingToRun)
    monkeypatch.setattr(program.target_tasks, "read", lambda _: IMAGES)

    def statuses() -> tuple[object, list[str]]:
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            node._adapt()
        figures = json.loads((configuration.node.state / METRICS_FILE).read_text())
        return figures["revocation_status"], [record.getMessage() for record in caplog.records]

    assert statuses() == ({}, [])
    figures = json.loads((configuration.node.state / METRICS_FILE).read_text())
    assert figures["task_classes"] == {"4": ["7", "0"], "9": ["3", "7"]}
    paper = folders.individual_endpoint().learngene("paper")
    assert paper is not None
    folders.individual_endpoint()._ledger.withdraw(configuration.node.run_id, paper.release_digest)
    said, log = statuses()
    assert said == {"paper": "withdrawn"}
    assert len(log) == 1
    assert "form paper is withdrawn" in log[0]
    # The running node reads the changed trust store by itself.
    store = read_trust(folders.trust, root=folders.root)
    store = store.without_key(paper.release.signer, "compromised")
    write_trust(folders.trust, store.with_key(NEW_COLLECTIVE.public_hex, "collective", "collective"), ROOT)
    said, log = statuses()
    assert said == {"condensed": "compromised", "paper": "withdrawn"}
    assert len(log) == 2
