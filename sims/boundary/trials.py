"""Attacks made of acts: each is made by an unconfined attacker, and by one with all protections in force."""

import os
import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from protocol.errors import RunFailedError
from sims.boundary.acts.act import Outcome, Trial
from sims.boundary.acts.expectation import NO_EFFECT, Holds
from sims.boundary.attempt import Area, Attack, Escaped, Failed, Found, NotEnforced, Refusal
from sims.boundary.sites import Site
from sims.boundary.stage import Stage

# Seconds until an effect is visible; waiting time for it here; and waiting time if it was refused before.
_SHOWS, _SHOWS_HERE, _STAYS_AWAY = 2.0, 1.0, 0.05


@dataclass(frozen=True)
class Attacker:
    """An attacker, who makes acts.

    Attributes:
        make: makes an act of that name, with its aims.
        site: that it is in.
        own: a folder that it may write to.
        alive: whether it is still running; one that ended has become another program.
        user: user of the attacker, if it is not ours.
    """

    make: Callable[[str, Mapping[str, str]], Outcome]
    site: Site
    own: Path
    alive: Callable[[], bool] = lambda: True
    user: int | None = None


def attacks_of(
    stage: Stage,
    trials: Iterable[tuple[Trial, Holds]],
    area: Area,
    control: Attacker,
    confined: Attacker | RunFailedError,
) -> list[Attack]:
    """The attacks of these trials, each with its expected outcome.

    Args:
        control: an unconfined attacker.
        confined: one with all protections in force; or why this kernel cannot have it.
    """
    return [_attack(stage, trial, holds, area, control, confined) for trial, holds in trials]


def _attack(
    stage: Stage, trial: Trial, holds: Holds, area: Area, control: Attacker, confined: Attacker | RunFailedError
) -> Attack:
    def unprotected() -> bool:
        reached, outcome = _made(stage, trial, control, _SHOWS)
        if outcome.word != "done":
            raise RunFailedError(f"{outcome.call} {outcome.error} {outcome.evidence.decode(errors='replace')}")
        return reached

    def protected() -> Found:
        if isinstance(confined, RunFailedError):
            return NotEnforced(str(confined))
        try:
            reached, outcome = _made(stage, trial, confined, _SHOWS_HERE)
        except Exception:
            if confined.alive():
                raise
            return Escaped("the attacker's process is gone: it ended, or became another program")
        return Escaped() if reached else _refusal(outcome)

    return Attack(trial.name, area, trial.tries, holds, unprotected, protected, trial.lacks(stage))


def _refusal(outcome: Outcome) -> Found:
    """The outcome of an act that did not succeed."""
    text = outcome.evidence.decode(errors="replace")
    match outcome.word:
        case "stopped":
            return Refusal(outcome.call, outcome.error, text)
        case "done":
            return Refusal(outcome.call, NO_EFFECT, "it was done, and nothing came of it")
    return Failed(text)


def _made(stage: Stage, trial: Trial, attacker: Attacker, patience: float) -> tuple[bool, Outcome]:
    """Make the act; returns whether it succeeded, and its outcome. Afterwards the surroundings are restored."""
    token, site = secrets.token_hex(16), attacker.site
    stage.set_up(attacker.own)
    if attacker.user is not None:
        os.chown(attacker.own, attacker.user, attacker.user)
    trial.prepare(stage, token)
    aims = stage.aims(attacker.own, site, token)
    kept = {path: path.read_bytes() for path in (site.config, site.node.trust)}
    try:
        outcome = attacker.make(trial.act, aims)
        evidence, effect = trial.seen.evidence, trial.seen.effect
        reached = outcome.word == "done" and evidence is not None and evidence(stage, outcome.evidence)
        if effect is not None:
            deadline = time.monotonic() + (patience if outcome.word == "done" else _STAYS_AWAY)
            while not (reached := effect(stage, token)) and time.monotonic() < deadline:
                time.sleep(0.01)
        return reached, outcome
    finally:
        stage.go_on()
        (site.data / "dropped").unlink(missing_ok=True)
        for path, content in kept.items():
            path.write_bytes(content)
