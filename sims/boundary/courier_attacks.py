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
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from protocol.confinement import confine
from protocol.errors import RunFailedError
from sims.boundary import hostile_acts
from sims.boundary.attempt import Attack
from sims.boundary.hostile_acts import Outcome
from sims.boundary.node_attacks import TRIALS as NODE_TRIALS
from sims.boundary.sites import Site
from sims.boundary.stage import HEARD, Attacker, Stage, Trial, attacks_of, set_stage

_ONE_USER = (
    "Landlock does not look at the path of a Unix socket on this kernel, and a courier needs one; where each site has "
    "a user of its own, the folder's mode (0700) stops it"
)
# Seconds for an answer.
_PATIENCE = 60.0
#: What a courier tries on its site's node, by the acts of a hostile node. A courier is to reach the network, and its
#: node's door with the secret for it; there, nothing is an attack.
_ACTS = (
    "read_file",
    "list_folder",
    "read_key",
    "read_key_file",
    "read_log",
    "read_ledger",
    "read_accounts",
    "read_by_raw_call",
    "read_by_c_library",
    "map_file",
    "reopen_path_descriptor",
    "read_through_own_root",
    "read_from_thread",
    "read_from_child",
    "read_by_program",
    "read_by_program_in_memory",
    "run_dropped_program",
    "follow_new_link",
    "follow_planted_link",
    "link_here",
    "move_here",
    "exchange",
    "open_by_handle",
    "read_inherited",
    "change_root",
    "mount_here",
    "clone_mount",
    "pivot_root",
    "new_namespaces",
    "join_namespace",
    "make_device",
    "drop_in_data",
    "write_file",
    "cut_file",
    "remove_file",
    "replace_file",
    "drop_in_temporary",
    "drop_in_shared_memory",
    "drop_in_site_packages",
    "drop_in_package",
    "change_own_configuration",
    "change_own_trust",
    "change_mode",
    "change_owner",
    "change_owner_by_descriptor",
    "change_time",
    "set_attribute",
    "get_attribute",
    "watch_folder",
    "ask_size",
    "read_memory_file",
    "read_memory_by_call",
    "write_memory",
    "trace",
    "read_environment",
    "read_through_its_root",
    "list_descriptors",
    "take_descriptor",
    "list_processes",
    "stop_by_signal",
    "stop_by_descriptor",
    "stop_by_owner",
    "limit_other",
    "slow_other",
    "regain_capabilities",
    "run_set_user_id",
    "ring_of_calls",
    "leave_key",
    "type_into_terminal",
    "read_terminal",
    "shared_segment",
    "existing_segment",
    "message_queue",
    "connect_abstract",
    "send_abstract",
)


def _trials() -> list[Trial]:
    by_act = {trial.act: trial for trial in NODE_TRIALS}
    trials = [by_act[act] for act in _ACTS]
    words = (
        ("the other party's", "its node's"),
        ("the other node", "its node"),
        ("the other's", "its node's"),
        ("another's", "its node's"),
        ("its own configuration", "its node's configuration"),
        ("its own trust store", "its node's trust store"),
    )

    def named(text: str) -> str:
        for old, new in words:
            text = text.replace(old, new)
        return text

    there = "speak to a third party's Unix socket"
    return [
        *(replace(trial, name=f"courier: {named(trial.name)}", tries=named(trial.tries)) for trial in trials),
        Trial(f"courier: {there}", "connect_unix_path", "connect to a path", HEARD, _ONE_USER),
    ]


TRIALS = _trials()


@contextlib.contextmanager
def courier_attacks(folder: Path) -> Iterator[list[Attack]]:
    """All attacks on the courier, with everything that they need, which ends with the ``with``.

    Args:
        folder: new or empty, and short: sockets lie in it.
    """
    with set_stage(folder) as stage, contextlib.ExitStack() as stack:
        control = stack.enter_context(hostile_courier(stage, folder / "no-courier", confined=False))
        confined: tuple[Attacker, Site, Path] | RunFailedError
        if confine.offered():
            confined = stack.enter_context(hostile_courier(stage, folder / "courier", confined=True))
        else:
            confined = RunFailedError("this kernel does not confine a process")
        yield attacks_of(stage, TRIALS, "courier", control, confined)


@contextlib.contextmanager
def hostile_courier(stage: Stage, home: Path, *, confined: bool) -> Iterator[tuple[Attacker, Site, Path]]:
    """Beside the node of the site that is attacked: a program in place of Flower's SuperNode.

    Args:
        home: folder of the courier's own, to be made.
        confined: start it by ``learngene courier``; else by itself.
    """
    home.mkdir(mode=0o700)
    script, asked, answered = home / "hostile.py", home / "asked", home / "answered"
    shutil.copyfile(hostile_acts.__file__, script)
    for pipe in (asked, answered):
        os.mkfifo(pipe, 0o600)
    program = [sys.executable, str(script), str(asked), str(answered)]
    if confined:
        start = "from protocol.cli import main; main()"
        options = ["--home", str(home), "--config", str(stage.victim.config)]
        program = [sys.executable, "-c", start, "courier", *options, "--", *program]
    # It is started as a careless operator starts it: on a terminal, with a descriptor left open.
    left_open = os.open(stage.victim.private, os.O_RDONLY)
    # For both, so that neither end waits for the other.
    questions, answers = os.open(asked, os.O_RDWR | os.O_CLOEXEC), os.open(answered, os.O_RDWR | os.O_CLOEXEC)
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(
            program,
            stdin=stage.terminal,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=home,
            pass_fds=(left_open,),
            start_new_session=True,
        )

    def attack(act: str, aims: Mapping[str, str]) -> Outcome:
        question = {"name": act, "aims": {**aims, "inherited": str(left_open)}}
        os.write(questions, json.dumps(question).encode() + b"\n")
        answer = json.loads(_line(answers, process))
        return answer["word"], base64.b64decode(answer["evidence"]), answer["errno"]

    try:
        yield attack, stage.victim, home / "work"
    finally:
        process.kill()
        process.wait()
        for descriptor in (left_open, questions, answers):
            os.close(descriptor)


def _line(pipe: int, process: "subprocess.Popen[bytes]") -> bytes:
    """What the process says next.

    Raises:
        RunFailedError: it ended, or says nothing.
    """
    line, deadline = b"", time.monotonic() + _PATIENCE
    while not line.endswith(b"\n"):
        if process.poll() is not None or time.monotonic() > deadline:
            raise RunFailedError(f"the hostile courier does not answer (exit code {process.poll()})")
        if select.select([pipe], [], [], 0.1)[0]:
            line += os.read(pipe, 1 << 16)
    return line
