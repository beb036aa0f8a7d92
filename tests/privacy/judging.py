"""How a test judges an attack: the control must succeed, the attack must not; what was not tried is skipped."""

import pytest

from sims.boundary.attempt import Attack, make


def check(attack: Attack, *, stoppable: bool = True) -> None:
    """Make the attack and its control.

    Args:
        stoppable: whether the operating system can stop it at all.
    """
    if attack.lacks:
        pytest.skip(f"left out: {attack.lacks}")
    made = make(attack)
    assert made.control == "succeeded", made.detail
    assert made.confined != "escaped", made.detail
    if made.confined == "not enforced":
        # Said, and never passed.
        pytest.skip(f"not enforced: {made.detail}")
    assert stoppable, "it counts as unstoppable, and was stopped"
