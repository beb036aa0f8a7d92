"""A hostile program in a node process: what it reaches, each attack by name, and the same program unconfined."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from protocol.confinement.warden import refused_calls
from protocol.node import confine
from sims.boundary.acts.act import Trial
from sims.boundary.acts.expectation import Open
from sims.boundary.attacks_from_a_node import TRIALS, node_attacks
from sims.boundary.attempt import Attack, make
from sims.boundary.boundary_command import attacks
from tests.privacy.judging import check, made_once

#: What nothing on a kernel stops, and no other attack is to be counted so.
UNSTOPPABLE = {
    "ask_name",
    "ask_presence",
    "ask_process",
    "ask_size",
    "fill_disk",
    "lock_shared_file",
    "read_link",
    "rename_itself",
    "time_presence",
    "wait_for_wake",
}


#: What a step's call is to the kernel, where the C library or Python names it otherwise.
TO_THE_KERNEL = {"fork": "clone", "mknod": "mknodat", "prlimit": "prlimit64"}
#: Refused without a line: by a second filter, and (names of hosts) by files beside sockets.
WITHOUT_A_LINE = {"sendmsg", "getaddrinfo"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("n")


@pytest.fixture(scope="module")
def found(folder: Path) -> Iterator[Mapping[str, Attack]]:
    with node_attacks(folder) as all_of_them:
        yield {attack.name: attack for attack in all_of_them}


@pytest.mark.parametrize("trial", [trial for trial, _ in TRIALS], ids=lambda trial: trial.act)
def test_a_node_that_was_taken_over(trial: Trial, found: Mapping[str, Attack]) -> None:
    check(found[trial.name])


@pytest.mark.skipif(not confine.offered(), reason="this kernel does not confine a process")
def test_the_guard_that_is_named_is_the_one_that_refuses(folder: Path, found: Mapping[str, Attack]) -> None:
    """Beside the error that came stands a witness: what the list of calls refuses is noted in the node's log, and what
    another guard refuses is not."""
    made = [made_once(attack) for attack in found.values() if not attack.lacks]
    log = (folder / "collective" / "state" / "node.log").read_text()
    noted = {call.split()[0] for call in refused_calls(log)}
    by_guard: dict[bool, set[str]] = {True: set(), False: set()}
    for one in made:
        if one.confined == "blocked" and one.expected is not None:
            call = one.expected.call.split()[0]
            by_filter = one.expected.guard in ("system calls", "network")
            by_guard[by_filter].add(TO_THE_KERNEL.get(call, call))
    assert by_guard[True] - WITHOUT_A_LINE <= noted
    assert not by_guard[False] & noted
    assert len(noted) > 60


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
