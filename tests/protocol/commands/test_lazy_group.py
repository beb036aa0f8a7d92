"""Commands that are loaded when they are called: listing loads none, and each is what its entry says."""

import subprocess
import sys

import click
import pytest
import typer.main

from protocol.commands.lazy_group import CommandEntry, LazyCommand
from protocol.commands.learngene import make
from protocol.commands.terminal import exit_code, make_app


def entries() -> dict[str, click.Command]:
    group = typer.main.get_command(make())
    assert isinstance(group, click.Group)
    return dict(group.commands)


def run(entry: CommandEntry, *arguments: str) -> int:
    app = make_app("A program.", commands=(entry,))
    return exit_code(lambda: typer.main.get_command(app).main(list(arguments), standalone_mode=False))


@pytest.mark.parametrize("name", sorted(entries()))
def test_an_entry_is_the_command_of_its_name(name: str) -> None:
    entry = entries()[name]
    assert isinstance(entry, LazyCommand)
    assert entry.loaded.name == name
    assert entry.get_short_help_str()


def test_the_list_of_commands_loads_none_of_them() -> None:
    code = (
        "import sys; from protocol.commands import learngene; sys.argv = ['learngene', '--help']\n"
        "try: learngene.main()\n"
        "except SystemExit: pass\n"
        "found = {'numpy', 'torch', 'rich', 'pydantic', 'flwr', 'cryptography'} & set(sys.modules)\n"
        "sys.exit(str(sorted(found)) if found else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert all(f"  {name} " in done.stdout for name in entries())


def test_a_command_whose_extra_is_missing_says_what_to_install(capsys: pytest.CaptureFixture[str]) -> None:
    entry = CommandEntry("fly", "no_such_module:register", "Fly.", needs=("sys", "no_such_module"), extra="wings")
    assert run(entry, "fly", "--far") == 2
    said = capsys.readouterr().err
    assert "no_such_module" in said
    assert "learngene[wings]" in said
    assert run(entry, "--help") == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.strip().startswith("fly ")]
    assert "learngene[wings]" in line


def test_of_two_commands_with_one_name_the_first_counts() -> None:
    """As where an installed package names one as ours is named."""
    first = CommandEntry("keygen", "protocol.commands.key_commands:register", "Ours.")
    second = CommandEntry("keygen", "no_such_module:register", "Another's.")
    app = make_app("A program.", commands=(first, second))
    group = typer.main.get_command(app)
    assert isinstance(group, click.Group)
    assert [command.get_short_help_str() for command in group.commands.values()] == ["Ours."]
