"""A hostile program in place of Flower's SuperNode: what it reaches of its site, each attack by name."""

from collections.abc import Iterator, Mapping

import pytest

from sims.boundary.attempt import Attack
from sims.boundary.boundary_command import attacks
from sims.boundary.courier_attacks import TRIALS
from sims.boundary.stage import Trial
from tests.privacy.judging import check

UNSTOPPABLE = {"ask_size", "connect_unix_path", "read_terminal"}


@pytest.fixture(scope="module")
def found() -> Iterator[Mapping[str, Attack]]:
    with attacks("courier") as all_of_them:
        yield {attack.name: attack for attack in all_of_them}


@pytest.mark.parametrize("trial", TRIALS, ids=lambda trial: trial.act)
def test_a_courier_that_was_taken_over(trial: Trial, found: Mapping[str, Attack]) -> None:
    check(found[trial.name], stoppable=trial.act not in UNSTOPPABLE)


def test_what_is_excused_is_what_cannot_be_stopped() -> None:
    assert {trial.act for trial in TRIALS if trial.unstoppable} == UNSTOPPABLE
    assert len({trial.name for trial in TRIALS}) == len(TRIALS)
