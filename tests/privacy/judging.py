"""How a test judges an attack: the control must succeed, the attack must not; what was not tried is skipped."""

import functools

import pytest

from sims.boundary.attempt import Attack, make

#: An attempt is made once, whichever tests ask for it.
made_once = functools.cache(make)


def check(attack: Attack) -> None:
    """Make the attack and its control: it is refused as it is expected to be."""
    if attack.lacks:
        pytest.skip(f"left out: {attack.lacks}")
    made = made_once(attack)
    assert made.control == "succeeded", made.detail
    assert made.confined not in ("escaped", "not shown"), made.detail
    if made.confined == "not enforced":
        # Said, and never passed.
        pytest.skip(f"not enforced: {made.detail}")
