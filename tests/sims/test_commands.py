"""The commands that the simulations add to ``learngene``: the same names where the simulations are missing."""

import subprocess
import sys
from importlib.metadata import EntryPoint

import click
import pytest
import typer.main

from protocol.commands import learngene
from sims.commands import COMMANDS


class Missing(EntryPoint):
    """The entry point of a package that is not installed."""

    def load(self) -> object:
        raise ModuleNotFoundError("No module named 'sims'", name="sims")


def test_an_installation_without_the_simulations_knows_the_names_of_all_their_commands(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    missing = Missing("sims", "sims.commands:COMMANDS", learngene.COMMANDS_GROUP)
    monkeypatch.setattr(learngene, "entry_points", lambda group: [missing])
    group = typer.main.get_command(learngene.make())
    assert isinstance(group, click.Group)
    added = set(group.commands) - {entry.name for entry in learngene.COMMANDS}
    assert added == {entry.name for entry in COMMANDS}


def test_help_of_a_run_loads_neither_torch_nor_what_draws() -> None:
    code = (
        "import sys; from protocol.commands import learngene; sys.argv = ['learngene', 'run', '--help']\n"
        "try: learngene.main()\n"
        "except SystemExit: pass\n"
        "found = {'torch', 'matplotlib', 'flwr', 'ray'} & set(sys.modules)\n"
        "sys.exit(str(sorted(found)) if found else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert "--profile" in done.stdout
