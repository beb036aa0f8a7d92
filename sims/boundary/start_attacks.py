"""Attacks by files that a node leaves for its next start, on the end of a node, and on starts by hand on a terminal."""

import base64
import contextlib
import os
import secrets
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import tomli_w

from protocol.confinement import isolated_start
from protocol.errors import RunFailedError
from protocol.node import confine
from protocol.node.configuration import node_table, read
from protocol.transport.frame import Frame
from protocol.transport.local_socket import DisconnectedError
from sims.boundary.acts.act import DONE, REGISTERED, Outcome
from sims.boundary.acts.expectation import NO_EFFECT, Holds, launcher, protocol, system_calls
from sims.boundary.attempt import Attack, Escaped, Failed, Found, NotEnforced, Refusal
from sims.boundary.courier_attacks import hostile_courier
from sims.boundary.hostile_program import ATTACK, outcome_of
from sims.boundary.ledger_attacks import ledger_attacks
from sims.boundary.operator_attacks import operator_attacks
from sims.boundary.planted_code import PLANTS, Plant, careless_environment, content, runs_unprotected
from sims.boundary.planted_files import PLANTED, Planted, goes_through_unprotected, start_on
from sims.boundary.sites import HOSTILE, Site, make_sites, started
from sims.boundary.stage import Stage, set_stage
from sims.boundary.trials import Attacker, attacks_of

_UNCONFINED = "this kernel does not confine a process"
# Seconds for a start; and for which a process stays that its lifeline does not end.
_PATIENCE, _STAYS = 60.0, 1.0


@contextlib.contextmanager
def start_attacks(folder: Path) -> Iterator[list[Attack]]:
    """All attacks on starts, with everything that they need, until the ``with`` ends.

    Args:
        folder: new or empty, and short: sockets lie in it.
    """
    for name in ("code", "files", "hand", "end", "config", "ledger", "typed"):
        (folder / name).mkdir()
    with by_hand_attacks(folder / "hand") as by_hand:
        yield [
            *code_attacks(folder / "code"),
            *file_attacks(folder / "files"),
            *ledger_attacks(folder / "ledger"),
            *operator_attacks(folder / "typed"),
            _configuration_attack(folder / "config"),
            _end_attack(folder / "end"),
            *by_hand,
        ]


# --- Code in the state ----------------------------------------------------------------------------------------------


def code_attacks(folder: Path) -> list[Attack]:
    """Code in every place of the state at once, left there by a confined node; then the node's own start, from a shell
    whose environment leads there."""
    marks = folder / "marks"
    marks.mkdir()
    where = {plant.name: marks / secrets.token_hex(8) for plant in PLANTS}
    begun: list[str] = []

    def start() -> str:
        """Why the node did not start with all that planted; empty if it did. It is started once."""
        if not begun:
            (folder / "sites").mkdir()
            begun.append(_plant_and_start(make_sites(folder / "sites").collective, where))
        return begun[0]

    def confined(plant: Plant) -> Found:
        if not confine.offered():
            return NotEnforced(_UNCONFINED)
        why = start()
        if where[plant.name].exists():
            return Escaped("it ran before anything was confined, or beyond what is")
        return Failed(f"the node did not start: {why}") if why else Refusal("import", "not run")

    def attack(number: int, plant: Plant) -> Attack:
        home = folder / f"control-{number}"
        home.mkdir()
        return Attack(
            f"at the next start: {plant.name}",
            "starts",
            plant.tries,
            launcher("import", "not run"),
            lambda: runs_unprotected(plant, home, marks / f"control-{number}"),
            partial(confined, plant),
        )

    return [attack(number, plant) for number, plant in enumerate(PLANTS)]


def _plant_and_start(site: Site, where: Mapping[str, Path]) -> str:
    with started(site, module=HOSTILE):
        for plant in PLANTS:
            path, data = content(plant, where[plant.name])
            aims = {"path": str(site.node.state / path), "content": base64.b64encode(data).decode()}
            outcome = _ask(site, "plant_file", aims)
            if outcome.evidence != DONE:
                return f"{path} was not planted: {outcome}"
    before = dict(os.environ)
    os.environ |= careless_environment(site.node.state)
    try:
        with started(site):
            return ""
    except RunFailedError as error:
        return str(error)
    finally:
        os.environ.clear()
        os.environ |= before


def _ask(site: Site, act: str, aims: Mapping[str, str]) -> Outcome:
    return outcome_of(site.ask(Frame(ATTACK, fields={**aims, "act": act})))


# --- Links and pipes in the state -----------------------------------------------------------------------------------


def file_attacks(folder: Path) -> list[Attack]:
    """Attacks by links and pipes in place of files: a confined node cannot make either, but an unconfined one, or
    another process of its user, could.
    """
    words = {
        "link": "a link in place of",
        "folder": "a link to a folder in place of",
        "pipe": "a pipe in place of",
        "deep": "folders thousands deep in",
    }
    tries = {
        "pipe": "whoever opens it waits for ever",
        "deep": "whoever empties it gives up, or breaks down",
    }

    def attack(number: int, planted: Planted) -> Attack:
        home = folder / str(number)

        def confined() -> Found:
            home.mkdir()
            site = make_sites(home).individual
            return start_on(site, planted, home / "outside", unconfined=not confine.offered())

        return Attack(
            f"at the next start: {words[planted.kind]} {planted.name}",
            "starts",
            tries.get(planted.kind, "what is written goes elsewhere"),
            protocol("start", *planted.ends),
            lambda: goes_through_unprotected(planted, folder / f"control-{number}"),
            confined,
        )

    return [attack(number, planted) for number, planted in enumerate(PLANTED)]


def _configuration_attack(folder: Path) -> Attack:
    """A configuration that a node could rewrite: it would say that nothing confines the node."""

    def placed(name: str) -> Site:
        (folder / name).mkdir()
        site = make_sites(folder / name).collective
        site.node.state.mkdir(mode=0o700, exist_ok=True)
        content = read(site.config)
        table = content["node"]
        assert isinstance(table, dict)
        # What is written beside the configuration is meant from its folder.
        absolute = {name: str(path) for name, path in site.node if isinstance(path, Path)}
        written = {"node": {**table, **absolute, "unconfined": True}}
        (site.node.state / "config.toml").write_text(tomli_w.dumps(written))
        return site

    def control() -> bool:
        path = placed("control").node.state / "config.toml"
        return node_table(path, read(path), None).unconfined

    def confined() -> Found:
        site = placed("confined")
        arguments = ["--config", str(site.node.state / "config.toml")]
        done = subprocess.run(
            isolated_start.command(HOSTILE, arguments),
            capture_output=True,
            text=True,
            timeout=_PATIENCE,
            check=False,
        )
        if "lies inside node.state" in done.stderr:
            return Refusal("start", "InputError")
        return Failed(f"it ended with {done.returncode}: {done.stderr[-300:]}")

    return Attack(
        "at the next start: a configuration in the state",
        "starts",
        "config.toml in the state says unconfined = true, and the operator starts the node with it",
        protocol("start", "InputError"),
        control,
        confined,
    )


# --- The end --------------------------------------------------------------------------------------------------------


def _end_attack(folder: Path) -> Attack:
    """A node that closes every way out of its process."""

    def stays() -> bool:
        """Whether it is there when SIGTERM has come."""
        (folder / "control").mkdir()
        site = make_sites(folder / "control").collective
        with _by_hand(site, subprocess.DEVNULL, unconfined=True) as process:
            _ask(site, "refuse_to_end", {})
            process.terminate()
            time.sleep(_STAYS)
            return process.poll() is None

    def confined() -> Found:
        (folder / "confined").mkdir()
        site = make_sites(folder / "confined").collective
        with started(site, module=HOSTILE, unconfined=not confine.offered()) as process:
            _ask(site, "refuse_to_end", {})
        code = process.process.poll()
        return Escaped("it goes on") if code is None else Refusal("end", f"signal {-code}")

    return Attack(
        "stay when it is told to end",
        "starts",
        "neither its lifeline nor SIGTERM ends it",
        launcher("end", "signal 9"),
        stays,
        confined,
    )


# --- By hand --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def by_hand_attacks(folder: Path) -> Iterator[list[Attack]]:
    """A node and a courier that are started by hand, so that what they print goes to the operator's terminal."""
    terminal: dict[str, Holds] = {
        "print_by_output": launcher("write", NO_EFFECT),
        "read_by_output": launcher("read", "EBADF"),
    }
    # The warden ends with its node, whatever the node closes: it answers as before.
    warden = {"end_warden": system_calls("memfd_create", "EPERM")}
    with set_stage(folder) as stage, contextlib.ExitStack() as stack:
        found: list[Attack] = []
        for who, make, holds in (
            ("node", _hostile_node, {**terminal, **warden}),
            ("courier", _hostile_courier, terminal),
        ):
            control = stack.enter_context(make(stage, folder / "control", False))
            confined: Attacker | RunFailedError = RunFailedError(_UNCONFINED)
            if confine.offered():
                confined = stack.enter_context(make(stage, folder / "confined", True))
            trials = [
                (replace(trial, name=f"{who} by hand: {trial.name}"), holds[trial.act])
                # It is given up last.
                for trial in sorted(REGISTERED, key=lambda trial: trial.act in warden)
                if trial.act in holds
            ]
            found += attacks_of(stage, trials, "starts", control, confined)
        yield found


def _hostile_courier(stage: Stage, home: Path, confined: bool) -> contextlib.AbstractContextManager[Attacker]:
    return hostile_courier(stage, home, confined=confined, by_hand=True)


@contextlib.contextmanager
def _hostile_node(stage: Stage, home: Path, confined: bool) -> Iterator[Attacker]:
    site = stage.sites.collective if confined else stage.sites.unprotected
    with _by_hand(site, stage.terminal.descriptor, unconfined=not confined) as process:
        yield Attacker(partial(_ask, site), site, site.node.state / "work", lambda: process.poll() is None)


@contextlib.contextmanager
def _by_hand(site: Site, terminal: int, *, unconfined: bool) -> Iterator["subprocess.Popen[bytes]"]:
    """A hostile node that is started without anybody who would end it."""
    arguments = ["--config", str(site.config), *(["--unconfined"] if unconfined else [])]
    process = subprocess.Popen(
        isolated_start.command(HOSTILE, arguments),
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + _PATIENCE
        while not site.node.socket.exists():
            if process.poll() is not None or time.monotonic() > deadline:
                raise RunFailedError(f"the hostile node does not start ({process.poll()})")
            time.sleep(0.05)
        with contextlib.suppress(DisconnectedError):
            site.ask(Frame("status"))
        yield process
    finally:
        process.kill()
        process.wait()
        site.node.socket.unlink(missing_ok=True)
