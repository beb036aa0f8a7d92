"""Attacks from inside a node process whose program is the attacker's; the control is the same process, unconfined."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from protocol.errors import RunFailedError
from protocol.node import confine
from protocol.transport.frame import Frame
from sims.boundary.acts.act import Outcome
from sims.boundary.acts.all_acts import TRIALS as EVERY
from sims.boundary.attempt import Attack
from sims.boundary.hostile_program import ATTACK, outcome_of
from sims.boundary.sites import HOSTILE, Site, started
from sims.boundary.stage import Stage, set_stage
from sims.boundary.trials import Attacker, attacks_of

#: Each trial with its expected outcome.
TRIALS = tuple((trial, trial.node) for trial in EVERY if trial.node is not None)


@contextlib.contextmanager
def node_attacks(folder: Path) -> Iterator[list[Attack]]:
    """All attacks on the node, with everything that they need, until the ``with`` ends.

    Args:
        folder: new or empty, and short: sockets lie in it.
    """
    with set_stage(folder) as stage, contextlib.ExitStack() as stack:
        control = stack.enter_context(hostile_node(stage, stage.sites.unprotected, unconfined=True))
        confined: Attacker | RunFailedError
        if confine.offered():
            confined = stack.enter_context(hostile_node(stage, stage.sites.collective, unconfined=False))
        else:
            confined = RunFailedError("this kernel does not confine a process")
        yield attacks_of(stage, TRIALS, "node", control, confined)


@contextlib.contextmanager
def hostile_node(stage: Stage, site: Site, *, unconfined: bool) -> Iterator[Attacker]:
    """A node process with a hostile program, started as a careless operator starts it."""
    with (
        stage.careless() as (left_open, terminal),
        started(
            site,
            unconfined=unconfined,
            module=HOSTILE,
            # A launcher that protects nothing passes on the shell's environment.
            environment=stage.shell if unconfined else {},
            stdin=stage.terminal.descriptor,
            inherited=(left_open, terminal),
        ) as process,
    ):
        given = {"inherited": str(left_open), "terminal": str(terminal)}

        def make(act: str, aims: Mapping[str, str]) -> Outcome:
            answer = site.ask(Frame(ATTACK, fields={**aims, **given, "act": act}))
            if answer.name == "refused":
                raise RunFailedError(f"the hostile node does not attack ({answer.fields.get('code', '')})")
            return outcome_of(answer)

        yield Attacker(make, site, site.node.state / "work", lambda: process.process.poll() is None)
