"""``clock``: it shows both times, lets a node forget one that was wrong, and not while the node runs."""

import fcntl
import os
import time
from pathlib import Path

import pytest

from collective_node.cli import app as collective_app
from individual_node.cli import app as individual_app
from protocol.commands.doctor_node import examine_node
from protocol.encoding.calendar import moment
from protocol.exchange.collective_ledger import CollectiveLedger
from protocol.exchange.individual_ledger import IndividualLedger
from protocol.messages.payloads import SKEW
from tests.two_folders import Folders, make_folders, refused, run, succeeded

YEAR = 365 * 86400


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    """Two nodes whose clock was a year ahead once."""
    folders = make_folders(tmp_path / "nodes")
    folders.collective_endpoint().time(int(time.time()) + YEAR)
    folders.individual_endpoint().time(int(time.time()) + YEAR)
    return folders


def latest(folders: Folders, config: Path) -> int:
    state = folders.node(config).state
    ledger = CollectiveLedger(state) if config == folders.collective else IndividualLedger(state)
    try:
        found = ledger.latest_time()
        assert found is not None
        return found
    finally:
        ledger.close()


@pytest.mark.parametrize("role", ["collective", "individual"])
def test_both_times_are_shown_and_the_wrong_one_is_forgotten(folders: Folders, role: str) -> None:
    app, config = (collective_app, folders.collective) if role == "collective" else (individual_app, folders.individual)
    wrong = latest(folders, config)
    shown = succeeded(run(app, "clock", "--config", config))
    assert moment(wrong) in shown
    assert "--forget" in shown
    assert latest(folders, config) == wrong
    before = int(time.time())
    shown = succeeded(run(app, "clock", "--config", config, "--forget"))
    assert moment(wrong) in shown
    assert before <= latest(folders, config) <= time.time()
    assert "--forget" not in succeeded(run(app, "clock", "--config", config))


def test_nothing_is_forgotten_while_the_node_runs(folders: Folders) -> None:
    state, wrong = folders.node(folders.collective).state, latest(folders, folders.collective)
    node = os.open(state, os.O_RDONLY)
    fcntl.flock(node, fcntl.LOCK_EX)
    refused(run(collective_app, "clock", "--config", folders.collective, "--forget"), "end it first", code=1)
    assert latest(folders, folders.collective) == wrong
    succeeded(run(collective_app, "clock", "--config", folders.collective))
    os.close(node)
    succeeded(run(collective_app, "clock", "--config", folders.collective, "--forget"))


def test_a_node_that_never_ran_and_the_other_role_are_one_line(folders: Folders) -> None:
    refused(run(individual_app, "clock", "--config", folders.other), "never run")
    refused(run(individual_app, "clock", "--config", folders.collective), "the configuration of a collective")


def test_doctor_names_a_clock_that_stands_behind(folders: Folders) -> None:
    model = "individual_node.configuration:IndividualConfiguration"
    wrong = latest(folders, folders.individual)
    for now, behind in ((wrong - SKEW - 1, True), (wrong - SKEW, False)):
        findings = examine_node(folders.individual, "individual", model, gpu=False, now=now)
        found = {finding.subject: finding for finding in findings}
        assert (found["clock"].verdict == "wrong") == behind
        assert ("clock --forget" in found["clock"].advice) == behind
        assert not found["clock"].stops
        assert found["ledger"].verdict == "ok"
