"""What a node leaves in its state for its next start, that it ends, and starts by hand on a terminal."""

from collections.abc import Iterator, Mapping

import pytest

from protocol.node import confine
from sims.boundary.attempt import Attack, make
from sims.boundary.boundary_command import attacks
from sims.boundary.planted_code import PLANTS

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def found() -> Iterator[Mapping[str, Attack]]:
    with attacks("starts") as all_of_them:
        yield {attack.name: attack for attack in all_of_them}


def test_what_is_left_in_the_state_does_nothing_at_the_next_start(found: Mapping[str, Attack]) -> None:
    made = [make(attack) for attack in found.values() if not attack.lacks]
    assert len(made) > 20
    assert {one.name: one.detail for one in made if one.control != "succeeded"} == {}
    held = ("blocked",) if confine.offered() else ("blocked", "not enforced")
    assert {one.name: (one.confined, one.detail) for one in made if one.confined not in held} == {}


def test_each_place_for_code_is_tried_once() -> None:
    assert len({plant.name for plant in PLANTS}) == len(PLANTS)
