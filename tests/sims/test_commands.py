"""The commands that the simulations add to ``learngene``: the same names where the simulations are missing."""

import subprocess
import sys
from collections.abc import Callable
from importlib.machinery import PathFinder
from importlib.metadata import EntryPoint, metadata

import click
import pytest
import typer.main

from collective_node.cli import app as collective_app
from individual_node.cli import app as individual_app
from protocol.commands import learngene
from protocol.commands.lazy_group import EXTRA_OF, LazyCommand
from protocol.commands.terminal import exit_code
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


def test_without_the_extra_every_command_is_listed_with_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As after ``pip install learngene``: the package is there, Ray and what draws are not."""
    monkeypatch.setattr(PathFinder, "find_spec", lacking(PathFinder.find_spec, "sim"))
    app = typer.main.get_command(learngene.make())
    assert exit_code(lambda: app.main(["--help"], standalone_mode=False)) == 0
    listed = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.startswith("  ")}
    for entry in COMMANDS:
        assert ("learngene[sim]" in listed[entry.name]) == bool(entry.needs)
        if entry.needs:
            assert exit_code(lambda name=entry.name: app.main([name], standalone_mode=False)) == 2
            assert "pip install 'learngene[sim]'" in capsys.readouterr().err


def test_a_part_of_a_command_that_lacks_an_extra_says_what_to_install(capsys: pytest.CaptureFixture[str]) -> None:
    def load(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    for module, extra in EXTRA_OF.items():
        assert exit_code(lambda module=module: load(f"{module}.inner")) == 2
        assert f"learngene[{extra}]" in capsys.readouterr().err
    # What no extra brings is a fault of ours.
    with pytest.raises(ModuleNotFoundError):
        exit_code(lambda: load("sims.no_such_module"))


def test_the_extras_are_those_of_the_project() -> None:
    extras = set(metadata("learngene").get_all("Provides-Extra") or [])
    assert set(EXTRA_OF.values()) <= extras
    programs = (learngene.make(), collective_app, individual_app)
    for app in programs:
        group = typer.main.get_command(app)
        assert isinstance(group, click.Group)
        for command in group.commands.values():
            if isinstance(command, LazyCommand):
                assert {EXTRA_OF[module] for module in command.entry.needs} <= {command.entry.extra}


def lacking(find_spec: Callable[..., object], extra: str) -> Callable[..., object]:
    """A finder of modules for which those of an extra are not installed."""

    def find(name: str, *arguments: object) -> object:
        return None if EXTRA_OF.get(name.partition(".")[0]) == extra else find_spec(name, *arguments)

    return find


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
