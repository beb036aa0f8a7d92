"""Attacks by a process of another user of this machine, which nothing confines; the control is one of the same user."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from sims.boundary.acts.act import Outcome
from sims.boundary.acts.all_acts import TRIALS as EVERY
from sims.boundary.attempt import Attack
from sims.boundary.courier_attacks import answering, copy_acts
from sims.boundary.stage import Stage, set_stage
from sims.boundary.trials import Attacker, attacks_of

#: Number of a user that owns nothing.
STRANGER = 64_001
#: An interpreter that every user can run, unlike a project's own.
PYTHON = "/usr/bin/python3"


def lacks_another_user() -> str:
    """What this machine lacks for a process of another user; empty if nothing."""
    if os.geteuid() != 0:
        return "only root can start a process of another user"
    return "" if os.access(PYTHON, os.X_OK) else f"there is no {PYTHON}, which another user can run"


def _lacks(stage: Stage) -> str:
    return lacks_another_user()


#: Each trial with its expected outcome.
TRIALS = tuple(
    (replace(trial, name=f"another user: {trial.name}", lacks=_lacks), trial.user)
    for trial in EVERY
    if trial.user is not None
)


@contextlib.contextmanager
def user_attacks(folder: Path) -> Iterator[list[Attack]]:
    """All attacks by another user, with everything that they need, until the ``with`` ends.

    Args:
        folder: new or empty, and short: sockets lie in it. Everybody may pass through it from now on, so that what
            refuses is the parties' own folders.
    """
    folder.chmod(0o711)
    with set_stage(folder) as stage, contextlib.ExitStack() as stack:
        nobody = Attacker(lambda act, aims: _never(), stage.victim, folder / "nobody")
        control = there = nobody
        if not _lacks(stage):
            control = stack.enter_context(_process(stage, folder / "same", None))
            there = stack.enter_context(_process(stage, folder / "other", STRANGER))
        yield attacks_of(stage, TRIALS, "users", control, there)


def _never() -> Outcome:
    raise AssertionError("this attack was left out")


@contextlib.contextmanager
def _process(stage: Stage, home: Path, user: int | None) -> Iterator[Attacker]:
    home.mkdir(mode=0o700)
    program = [PYTHON, "-m", "acts", *copy_acts(home)]
    if user is not None:
        for path in (home, *home.rglob("*")):
            os.chown(path, user, user)
    with answering(stage, home, program, user=user) as attacker:
        yield attacker
