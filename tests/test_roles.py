"""A configuration of the other role: every command that takes one refuses it, and makes and changes nothing."""

import os
import subprocess
import sys
from pathlib import Path

import click
import pytest
import typer

import collective_node.cli
import individual_node.cli
import protocol.commands.learngene
from protocol.trust.role import Role
from tests.all_commands import commands
from tests.protocol.made_node import make_node, other_role, tree
from tests.two_folders import Done, run

#: Every application that takes a node's configuration, and whose. A courier carries for a node of either role.
APPS: dict[str, tuple[typer.Typer, Role]] = {
    "collective-node": (collective_node.cli.app, "collective"),
    "individual-node": (individual_node.cli.app, "individual"),
    "learngene": (protocol.commands.learngene.make(), "individual"),
}
OF_EITHER_ROLE = {("learngene", "courier")}


def takes_configuration(command: click.Command) -> bool:
    return any("--config" in parameter.opts for parameter in command.params)


COMMANDS = [
    (name, words, command)
    for name, (app, _) in APPS.items()
    for words, command in commands(typer.main.get_command(app))
    if takes_configuration(command) and (name, *words) not in OF_EITHER_ROLE
]


def given(command: click.Command, folder: Path) -> list[str]:
    """Something for all that a command must be told besides; no file is there, so that nothing else can come first."""
    words: list[str] = []
    for parameter in command.params:
        if not parameter.required or "--config" in parameter.opts:
            continue
        value = str(folder / parameter.name) if isinstance(parameter.type, click.Path) else "1"  # type: ignore[operator]
        words += [parameter.opts[0], value] if isinstance(parameter, click.Option) else [value]
    return words


def call(name: str, words: tuple[str, ...], arguments: list[str]) -> Done:
    """Run a command; one that becomes another process in a process of its own."""
    if words != ("start",):
        return run(APPS[name][0], *words, *arguments)
    command = [sys.executable, "-m", name.replace("-", "_"), *words, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, start_new_session=True, check=False)
    return Done(done.returncode, done.stdout, done.stderr)


def test_the_commands_that_run_and_examine_a_node_are_among_them() -> None:
    found = {(name, *words) for name, words, _ in COMMANDS}
    assert {(name, word) for name in ("collective-node", "individual-node") for word in ("start", "doctor")} <= found
    assert ("learngene", "verify") in found


@pytest.mark.parametrize(
    ("name", "words", "command"), COMMANDS, ids=[" ".join((name, *words)) for name, words, _ in COMMANDS]
)
@pytest.mark.parametrize("ran_before", [False, True])
def test_the_other_roles_configuration_is_refused_and_nothing_is_made_or_changed(
    tmp_path: Path, name: str, words: tuple[str, ...], command: click.Command, ran_before: bool
) -> None:
    home, data, elsewhere = tmp_path / "node", tmp_path / "data", tmp_path / "elsewhere"
    for folder in (data, elsewhere):
        folder.mkdir()
    other = other_role(APPS[name][1])
    make_node(home, other, data)
    if ran_before:
        (home / "state").mkdir(mode=0o700)
        (home / "state" / "node.log").write_text("as it was\n")
    config, before = home / "config.toml", tree(tmp_path)
    done = call(name, words, ["--config", str(config), *given(command, elsewhere)])
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1), done
    assert str(config) in done.err
    assert f"{other}-node" in done.err
    assert tree(tmp_path) == before


@pytest.mark.parametrize("role", ["collective", "individual"])
def test_a_configuration_that_does_not_say_its_role_is_refused_with_what_to_add(tmp_path: Path, role: Role) -> None:
    (tmp_path / "data").mkdir()
    make_node(tmp_path / "node", role, tmp_path / "data")
    config = tmp_path / "node" / "config.toml"
    text = config.read_text()
    assert text.count(f'\nrole = "{role}"\n') == 1
    config.write_text(text.replace(f'\nrole = "{role}"\n', "\n"))
    before = tree(tmp_path)
    done = call(f"{role}-node", ("start",), ["--config", str(config)])
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1), done
    assert f'role = "{role}"' in done.err
    assert str(config) in done.err
    assert tree(tmp_path) == before


def test_the_tree_shows_what_a_wrong_command_would_leave(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("one")
    before = tree(tmp_path)
    os.chmod(tmp_path / "file", 0o600)
    assert tree(tmp_path) != before
    (tmp_path / "file").chmod(0o644)
    (tmp_path / "folder").mkdir()
    assert tree(tmp_path) != before
