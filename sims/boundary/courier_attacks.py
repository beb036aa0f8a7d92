"""Attacks from inside a courier that became the attacker's program; the control is that program by itself."""

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from protocol.errors import RunFailedError
from protocol.node import confine
from sims.boundary import acts
from sims.boundary.acts.act import Outcome
from sims.boundary.acts.all_acts import TRIALS as EVERY
from sims.boundary.attempt import Attack
from sims.boundary.stage import Stage, set_stage
from sims.boundary.trials import Attacker, attacks_of

# Longest time for an answer, in seconds.
_PATIENCE = 60.0


def _named(text: str) -> str:
    """Reword an attack's text for a courier, whose victim is its own site's node."""
    words = (
        ("the other party's", "its node's"),
        ("the other node", "its node"),
        ("the other's", "its node's"),
        ("another's", "its node's"),
        ("its own configuration", "its node's configuration"),
        ("its own trust store", "its node's trust store"),
    )
    for old, new in words:
        text = text.replace(old, new)
    return text


#: Each trial with its expected outcome. A courier may reach the network and its node's door; doing so is no attack.
TRIALS = tuple(
    (replace(trial, name=f"courier: {_named(trial.name)}", tries=_named(trial.tries)), trial.courier)
    for trial in EVERY
    if trial.courier is not None
)


@contextlib.contextmanager
def courier_attacks(folder: Path) -> Iterator[list[Attack]]:
    """All attacks on the courier, with everything that they need, until the ``with`` ends.

    Args:
        folder: new or empty, and short: sockets lie in it.
    """
    with set_stage(folder) as stage, contextlib.ExitStack() as stack:
        control = stack.enter_context(hostile_courier(stage, folder / "no-courier", confined=False))
        confined: Attacker | RunFailedError
        if confine.offered():
            confined = stack.enter_context(hostile_courier(stage, folder / "courier", confined=True))
        else:
            confined = RunFailedError("this kernel does not confine a process")
        yield attacks_of(stage, TRIALS, "courier", control, confined)


@contextlib.contextmanager
def hostile_courier(stage: Stage, home: Path, *, confined: bool, by_hand: bool = False) -> Iterator[Attacker]:
    """Beside the node of the site that is attacked: a program in place of Flower's SuperNode.

    Args:
        home: folder of the courier's own, which is made.
        confined: start it by ``learngene courier``; else by itself.
        by_hand: what it prints goes to the operator's terminal.
    """
    home.mkdir(mode=0o700)
    program = [sys.executable, "-m", "acts", *copy_acts(home)]
    if confined:
        start = "from protocol.commands.learngene import main; main()"
        options = ["--home", str(home), "--config", str(stage.victim.config)]
        program = [sys.executable, "-c", start, "courier", *options, "--", *program]
    with answering(stage, home, program, by_hand=by_hand) as attacker:
        yield attacker


def copy_acts(home: Path) -> tuple[str, str]:
    """Copy the acts and two pipes into a folder. Returns the pipes' paths."""
    shutil.copytree(Path(acts.__file__).parent, home / "acts", ignore=shutil.ignore_patterns("__pycache__"))
    pipes = home / "asked", home / "answered"
    for pipe in pipes:
        os.mkfifo(pipe, 0o600)
    return str(pipes[0]), str(pipes[1])


@contextlib.contextmanager
def answering(
    stage: Stage, home: Path, program: Sequence[str], *, user: int | None = None, by_hand: bool = False
) -> Iterator[Attacker]:
    """A process that makes the acts in ``home``, started as a careless operator starts it.

    Args:
        user: owner of the process, if another user; it then gets no resources.
        by_hand: what it prints goes to the operator's terminal.
    """
    # Opened for reading and writing, so that neither end waits for the other.
    questions, answers = (os.open(home / name, os.O_RDWR | os.O_CLOEXEC) for name in ("asked", "answered"))
    with contextlib.ExitStack() as stack:
        for descriptor in (questions, answers):
            stack.callback(os.close, descriptor)
        left_open, terminal = stack.enter_context(stage.careless())
        log = stack.enter_context((home / "log").open("wb"))
        process = subprocess.Popen(
            program,
            stdin=stage.terminal.descriptor if user is None else subprocess.DEVNULL,
            stdout=stage.terminal.descriptor if by_hand else log,
            stderr=subprocess.STDOUT,
            cwd=home,
            pass_fds=(left_open, terminal) if user is None else (),
            start_new_session=True,
            user=user,
            group=user,
            extra_groups=None if user is None else [],
        )
        stack.callback(_end, process)

        def make(act: str, aims: Mapping[str, str]) -> Outcome:
            given = {"inherited": str(left_open), "terminal": str(terminal)}
            os.write(questions, json.dumps({"name": act, "aims": {**aims, **given}}).encode() + b"\n")
            answer = json.loads(_line(answers, process))
            return Outcome(**{**answer, "evidence": base64.b64decode(answer["evidence"])})

        yield Attacker(make, stage.victim, home / "work", lambda: process.poll() is None, user)


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.kill()
    process.wait()


def _line(pipe: int, process: "subprocess.Popen[bytes]") -> bytes:
    """The next line of the process.

    Raises:
        RunFailedError: it ended, or wrote nothing in time.
    """
    line, deadline = b"", time.monotonic() + _PATIENCE
    while not line.endswith(b"\n"):
        if process.poll() is not None or time.monotonic() > deadline:
            raise RunFailedError(f"the hostile courier does not answer (exit code {process.poll()})")
        if select.select([pipe], [], [], 0.1)[0]:
            line += os.read(pipe, 1 << 16)
    return line
