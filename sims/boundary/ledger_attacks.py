"""Attacks with a journal beside a node's ledger that names another file: SQLite deletes a file that is named in this
way.

The operator's commands open the ledger unconfined, beside a node that writes there too and may have been taken over.
"""

import contextlib
import os
import sqlite3
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from protocol.errors import StorageFailedError
from protocol.exchange.individual_ledger import IndividualLedger
from sims.boundary.acts.expectation import protocol
from sims.boundary.attempt import Attack, Escaped, Failed, Found, Refusal

# Of SQLite's file format: what begins and ends a journal, and the page that holds its superior's name.
_MAGIC = bytes.fromhex("d9d505f920a163d7")
_PAGE, _SECTOR, _LOCK_BYTE = 4096, 512, 0x40000000
# Seconds after which a race that is not won ends; a control wins its race in time.
_RACE, _CONTROLS_RACE = 4.0, 30.0
#: Program that puts the journal there and removes it again, without end.
_SWAP = """
import os, sys, time
away, there = sys.argv[1:]
content = open(away, "rb").read()
while True:
    for names in ((away, there), (there, away)):
        try:
            os.rename(*names)
        except OSError:
            open(away, "wb").write(content)
        began = time.perf_counter()
        while time.perf_counter() - began < 0.0003:
            pass
"""


def journal(superior: Path) -> bytes:
    """One that has nothing to play back but the name of its superior journal."""
    name = os.fsencode(superior)
    head = (_MAGIC + struct.pack(">5I", 0, 0, 1, _SECTOR, _PAGE)).ljust(_SECTOR, b"\0")
    return head + struct.pack(">I", _LOCK_BYTE // _PAGE + 1) + name + struct.pack(">2I", len(name), sum(name)) + _MAGIC


def ledger_attacks(folder: Path) -> list[Attack]:
    """With the journal there before the ledger is opened, and put there meanwhile. ``folder``: of its own."""
    expected = protocol("open the ledger", "StorageFailedError")

    def attack(name: str, tries: str, made: Callable[[Path, Callable[[Path], object]], Found]) -> Attack:
        place = name.replace(" ", "-")
        return Attack(
            f"at a command of the operator's: {name}",
            "starts",
            tries,
            expected,
            lambda: isinstance(made(folder / f"control-{place}", _naively), Escaped),
            lambda: made(folder / place, _by_ledger),
        )

    return [
        attack("a journal beside the ledger", "it names a file of the operator's, which SQLite then deletes", _planted),
        attack("a journal that comes and goes", "it is not there when it is looked for", _raced),
    ]


def _naively(state: Path) -> None:
    """Open it as a program that only checks first."""
    if (state / "ledger.db-journal").exists():
        raise StorageFailedError("there is a journal")
    _by_sqlite(state)


def _by_sqlite(state: Path) -> None:
    with contextlib.closing(sqlite3.connect(state / "ledger.db")) as database:
        database.execute("SELECT count(*) FROM sqlite_master").fetchall()


def _by_ledger(state: Path) -> None:
    IndividualLedger(state).close()


def _set_up(folder: Path) -> tuple[Path, Path]:
    """A state with a ledger, and a file that is none of the node's."""
    state, file = folder / "state", folder / "the-operators"
    state.mkdir(mode=0o700, parents=True)
    _by_ledger(state)
    file.write_text("the operator's")
    return state, file


def _planted(folder: Path, use: Callable[[Path], object]) -> Found:
    state, file = _set_up(folder)
    (state / "ledger.db-journal").write_bytes(journal(file))
    # The control does not check first.
    return _used(state, file, _by_sqlite if use is _naively else use)


def _used(state: Path, file: Path, use: Callable[[Path], object]) -> Found:
    try:
        use(state)
    except (StorageFailedError, sqlite3.Error) as error:
        end: Found = Refusal("open the ledger", type(error).__name__, str(error))
    else:
        end = Failed("it was opened, and what was planted did nothing")
    return end if file.exists() else Escaped("the file is gone")


def _raced(folder: Path, use: Callable[[Path], object]) -> Found:
    state, file = _set_up(folder)
    (state / "away").write_bytes(journal(file))
    command = [sys.executable, "-I", "-c", _SWAP, str(state / "away"), str(state / "ledger.db-journal")]
    with subprocess.Popen(command) as swapping:
        try:
            ends: list[Found] = []
            deadline = time.monotonic() + (_CONTROLS_RACE if use is _naively else _RACE)
            while time.monotonic() < deadline:
                ends.append(_used(state, file, use))
                if isinstance(ends[-1], Escaped):
                    return ends[-1]
        finally:
            swapping.kill()
    refused = [end for end in ends if isinstance(end, Refusal)]
    # Both sides of the race were seen: it was there when it was looked for, and it was not.
    if not refused or all("put there" in end.detail for end in refused):
        return Failed(f"no race was run: {len(refused)} of {len(ends)} were refused")
    return refused[0]
