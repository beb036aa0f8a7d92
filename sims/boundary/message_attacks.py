"""Attacks on messages: through the gate from inside, by commands from outside, by frames, and by sizes."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from sims.boundary.attempt import Attack
from sims.boundary.command_attacks import command_attacks
from sims.boundary.leak_attacks import leak_attacks


@contextlib.contextmanager
def message_attacks(folder: Path, *, unconfined: bool = False) -> Iterator[list[Attack]]:
    """All attacks on messages, with the node processes that they target, until the ``with`` ends.

    Args:
        folder: new or empty, and short: sockets lie in it.
        unconfined: start the node processes unconfined, on a kernel that cannot confine them; the gate and the
            verification are in the programs.
    """
    with (
        leak_attacks(folder / "leaks", unconfined=unconfined) as leaks,
        command_attacks(folder / "commands", unconfined=unconfined) as commands,
    ):
        yield [*leaks, *commands]
