"""A hostile program in a node process: what it reaches, each attack by name, and the same program unconfined."""

from collections.abc import Iterator, Mapping

import pytest

from protocol.confinement import confine
from sims.boundary.acts.act import Trial
from sims.boundary.acts.expectation import Open
from sims.boundary.attempt import Attack, make
from sims.boundary.boundary_command import attacks
from sims.boundary.node_attacks import TRIALS
from tests.privacy.judging import check

#: What nothing on a kernel stops, and no other attack is to be counted so.
UNSTOPPABLE = {
    "ask_name",
    "ask_presence",
    "ask_process",
    "ask_size",
    "ask_space",
    "fill_disk",
    "lock_shared_file",
    "probe_page_cache",
    "read_link",
    "read_load",
    "rename_itself",
    "time_presence",
    "wait_for_wake",
}


@pytest.fixture(scope="module")
def found() -> Iterator[Mapping[str, Attack]]:
    with attacks("node") as all_of_them:
        yield {attack.name: attack for attack in all_of_them}


@pytest.mark.parametrize("trial", [trial for trial, _ in TRIALS], ids=lambda trial: trial.act)
def test_a_node_that_was_taken_over(trial: Trial, found: Mapping[str, Attack]) -> None:
    check(found[trial.name])


def test_what_is_excused_is_what_cannot_be_stopped() -> None:
    assert {trial.act for trial, holds in TRIALS if isinstance(holds, Open)} == UNSTOPPABLE
    assert len({trial.name for trial, _ in TRIALS}) == len(TRIALS)


def test_where_the_kernel_confines_nothing_nothing_counts_as_blocked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(confine, "offered", lambda: False)
    with attacks("node") as all_of_them:
        chosen = [attack for attack in all_of_them if not attack.lacks][::10]
        made = [make(attack) for attack in chosen]
    assert {one.control for one in made} == {"succeeded"}
    assert {one.confined for one in made} == {"not enforced"}
    assert all("does not confine" in one.detail for one in made)
