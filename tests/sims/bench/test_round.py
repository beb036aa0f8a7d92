"""``learngene bench round``: where the time of a run goes, from what the run wrote of itself."""

import pytest

from protocol.errors import RunFailedError
from sims.bench.round_timing import WORK, causes

EVENTS = [
    (100.0, "the images are loaded, and each party's own are put in its folder"),
    (107.0, "2 node processes: collective (pid 1), individual-1 (pid 2)"),
    (110.0, "2 nodes: collective, individual-1"),
    (110.5, "collective evolves"),
    (150.0, "individual-1 inherited 'condensed' (10 bytes)"),
    (150.25, "individual-1 inherited 'paper' (20 bytes)"),
    (150.5, "1 of 1 individuals adapt"),
    (180.5, "the round is complete"),
    (180.75, "the results are collected, and the report is made of them"),
    (182.0, "report: /runs/1/report.html"),
]
SECONDS = {"world": 5.0, "start": 2.0, "round": 73.5}


def test_causes_are_all_of_the_time_and_each_is_counted_once() -> None:
    found = causes(90.0, SECONDS, EVENTS)
    assert sum(found.values()) == pytest.approx(90.0)
    assert all(value >= 0 for value in found.values())
    assert {name: found[name] for name in WORK} == {"evolving": 39.5, "adapting": 30.0}
    assert found["exchanging learngenes"] == 0.5
    assert found["starting the nodes"] == 5.5  # with the time until they answer


def test_a_run_that_did_not_come_so_far_is_refused() -> None:
    with pytest.raises(RunFailedError, match="round is complete"):
        causes(90.0, SECONDS, EVENTS[:7])
