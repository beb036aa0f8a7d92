"""What a simulation's SuperLink and Ray answer while a run goes on: from outside its network, and from inside."""

import pytest

from protocol.confinement import namespaces
from sims.boundary.attempt import make
from sims.boundary.boundary_command import attacks

pytestmark = pytest.mark.slow


def test_nobody_outside_reaches_a_run() -> None:
    with attacks("runs") as found:
        made = [make(attack) for attack in found if not attack.lacks]
    assert len(made) >= 4
    assert {one.name: one.detail for one in made if one.control != "succeeded"} == {}
    # Where a run gets no network of its own, others reach what listens, and are refused there.
    held = ("blocked", "not enforced") if namespaces.offered() else ("blocked",)
    assert {one.name: (one.confined, one.detail) for one in made if one.confined not in held} == {}
