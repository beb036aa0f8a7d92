"""Paths that exist on a Unix machine and that nobody thinks of: every command takes them, or refuses them in one line.

Hostile names are walked through every command in ``test_names_on_the_terminal``; here it is the path itself that cannot
be opened, or that no text can hold.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from collective_node.cli import app as collective_app
from individual_node.cli import app as individual_app
from individual_node.image_folder import class_folders
from protocol.commands.learngene import make
from protocol.errors import InputError
from tests.protocol.parties import ROOT
from tests.two_folders import Done, run


def not_utf_8(folder: Path) -> Path:
    return folder / os.fsdecode(b"caf\xe9 \xff")


def too_long(folder: Path) -> Path:
    return folder / ("x" * 300)


def too_deep(folder: Path) -> Path:
    return folder.joinpath(*["y" * 200] * 30)


def below_a_file(folder: Path) -> Path:
    (folder / "file").write_text("")
    return folder / "file" / "x"


def in_a_circle(folder: Path) -> Path:
    (folder / "circle").symlink_to(folder / "circle")
    return folder / "circle" / "x"


def closed(folder: Path) -> Path:
    (folder / "closed").mkdir(mode=0)
    return folder / "closed" / "x"


def in_markup(folder: Path) -> Path:
    """What Rich would read as a style, and fail at."""
    return folder / "paper [final] a[" / "b] [red]x" / "run"


KINDS = (not_utf_8, too_long, too_deep, below_a_file, in_a_circle, closed, in_markup)


def learngene(*arguments: object) -> Done:
    return run(make(), *arguments)


def of_collective(*arguments: object) -> Done:
    return run(collective_app, *arguments)


def of_individual(*arguments: object) -> Done:
    return run(individual_app, *arguments)


#: Every command that takes a path from its user, given one that is not there. The stand-in is never drawn: each is
#: refused before that, or only says what it would do.
COMMANDS: Mapping[str, Callable[[Path], Done]] = {
    "run --out": lambda path: learngene("run", "cifar100", "--stand-in", "--dry-run", "--out", path),
    "run --data": lambda path: learngene("run", "cifar100", "--dry-run", "--data", path),
    "run --cache": lambda path: learngene("run", "cifar100", "--stand-in", "--dry-run", "--cache", path),
    "results": lambda path: learngene("results", path),
    "report": lambda path: learngene("report", path),
    "privacy": lambda path: learngene("privacy", path),
    "leakage": lambda path: learngene("leakage", path),
    "world make": lambda path: learngene("world", "make", "cifar100", "--data", path, "--out", "nowhere/at/all"),
    "inspect": lambda path: learngene("inspect", path),
    "verify": lambda path: learngene("verify", path, "--config", path),
    "audit show": lambda path: learngene("audit", "show", path),
    "audit verify": lambda path: learngene("audit", "verify", path),
    "trust show": lambda path: learngene("trust", "show", "--trust", path),
    "trust init": lambda path: learngene("trust", "init", "--root-key", path, "--out", path),
    "trust renew": lambda path: learngene("trust", "renew", "--root-key", path, "--trust", path),
    "keygen": lambda path: learngene("keygen", "--out", path / "root.key"),
    "relay-app": lambda path: learngene("relay-app", "--out", path),
    "courier": lambda path: learngene("courier", "--home", path, "--config", path, "--", "flower-supernode"),
    "collective init": lambda path: of_collective("init", "--out", path, "--data", path, "--root", ROOT.public_hex),
    "collective releases": lambda path: of_collective("releases", "--config", path),
    "individual init": lambda path: of_individual(
        *("init", "--out", path, "--data", path, "--root", ROOT.public_hex, "--party", "i-1")
    ),
    "request": lambda path: of_individual("request", "--config", path, "--out", path),
    "bundle": lambda path: of_individual("bundle", "--config", path, "--out", path),
    "adapt": lambda path: of_individual("adapt", "--bundle", path, "--data", path, "--out", path),
    "predict": lambda path: of_individual("predict", path, path),
    "export": lambda path: of_individual("export", path, "--onnx", path),
}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_path_of_any_kind_is_taken_or_refused_in_one_line(
    command: str, kind: Callable[[Path], Path], tmp_path: Path
) -> None:
    done = COMMANDS[command](kind(tmp_path))
    assert "Traceback" not in done.out + done.err
    if done.code:
        assert done.code in (1, 2), done
        assert done.err.startswith("error: "), done
        assert done.err.count("\n") == 1, done
    if kind is in_markup and str(tmp_path) in done.err:
        assert "paper [final] a[/b] [red]x" in done.err, done


def test_names_of_classes_in_any_script_are_taken_and_one_that_is_no_text_is_refused_by_its_bytes(
    tmp_path: Path,
) -> None:
    """A model names its classes in JSON."""
    names = ("می\u200cخواهم", "\U0001f468\u200d\U0001f469", "paper [final]", "a b'c\"d")
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.png").touch()
    assert set(class_folders(tmp_path)) == set(names)
    (tmp_path / os.fsdecode(b"caf\xe9")).mkdir()
    with pytest.raises(InputError, match=r"caf\\udce9"):
        class_folders(tmp_path)


@pytest.mark.parametrize("program", ["learngene", "collective-node", "individual-node"])
def test_without_a_home_and_an_entry_in_passwd_commands_say_their_help(program: str) -> None:
    command = Path(sys.executable).parent / program
    done = subprocess.run([command, "--help"], env={}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
