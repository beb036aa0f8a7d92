"""A hostile program in place of Flower's SuperNode: what it reaches of its site, each attack by name."""

from collections.abc import Iterator, Mapping

import pytest

from sims.boundary.acts.act import Trial
from sims.boundary.acts.expectation import Open
from sims.boundary.attempt import Attack
from sims.boundary.boundary_command import attacks
from sims.boundary.courier_attacks import TRIALS
from tests.privacy.judging import check

UNSTOPPABLE = {
    "ask_session",
    "ask_size",
    "ask_space",
    "connect_unix_path",
    "fill_disk",
    "lock_whole_file",
    "probe_page_cache",
    "send_unix_path",
}


@pytest.fixture(scope="module")
def found() -> Iterator[Mapping[str, Attack]]:
    with attacks("courier") as all_of_them:
        yield {attack.name: attack for attack in all_of_them}


@pytest.mark.parametrize("trial", [trial for trial, _ in TRIALS], ids=lambda trial: trial.act)
def test_a_courier_that_was_taken_over(trial: Trial, found: Mapping[str, Attack]) -> None:
    check(found[trial.name])


def test_what_is_excused_is_what_cannot_be_stopped() -> None:
    assert {trial.act for trial, holds in TRIALS if isinstance(holds, Open)} == UNSTOPPABLE
    assert len({trial.name for trial, _ in TRIALS}) == len(TRIALS)
