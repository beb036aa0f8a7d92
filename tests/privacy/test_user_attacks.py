"""A process of another user, which nothing confines: owners and modes keep it out, and not one of the same user."""

from collections.abc import Iterator, Mapping

import pytest

from sims.boundary.acts.act import Trial
from sims.boundary.acts.expectation import Open
from sims.boundary.attempt import Attack
from sims.boundary.boundary_command import attacks
from sims.boundary.user_attacks import TRIALS
from tests.privacy.judging import check


@pytest.fixture(scope="module")
def found() -> Iterator[Mapping[str, Attack]]:
    with attacks("users") as all_of_them:
        yield {attack.name: attack for attack in all_of_them}


@pytest.mark.parametrize("trial", [trial for trial, _ in TRIALS], ids=lambda trial: trial.act)
def test_another_user(trial: Trial, found: Mapping[str, Attack]) -> None:
    check(found[trial.name])


def test_two_users_stop_what_one_users_processes_can_ask_of_each_other() -> None:
    """What a node of the same user is told of another's files."""
    assert not [trial.act for trial, holds in TRIALS if isinstance(holds, Open)]
    assert {"ask_presence", "ask_size", "ask_space", "read_link", "time_presence"} <= {trial.act for trial, _ in TRIALS}
