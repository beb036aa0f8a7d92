"""No command writes over anything: an option that names a new file or folder refuses one that exists, before all work.

Each output option of every command is listed with what else the command needs; a new one fails until it is, too.
"""

import re
from pathlib import Path

import pytest
import typer

from collective_node.cli import app as collective_app
from individual_node.cli import app as individual_app
from protocol.commands.learngene import make
from tests.all_commands import commands
from tests.protocol.parties import ROOT
from tests.two_folders import refused, run

PROGRAMS = {"learngene": make(), "collective-node": collective_app, "individual-node": individual_app}

#: By program, command and option: the command's other arguments. `x` is never there: the output is looked at first.
OUTPUTS: dict[tuple[str, str, str], str] = {
    ("learngene", "keygen", "--out"): "",
    ("learngene", "trust init", "--out"): "--root-key x",
    ("learngene", "relay-app", "--out"): "",
    ("learngene", "world make", "--out"): "cifar100 --stand-in",
    ("learngene", "boundary", "--json"): "",
    ("learngene", "leakage", "--json"): "x",
    ("learngene", "bench bundle", "--json"): "",
    ("learngene", "bench bundle", "--figure"): "",
    ("learngene", "bench round", "--json"): "",
    ("learngene", "bench start", "--json"): "",
    ("learngene", "bench train", "--json"): "",
    ("learngene", "bench adapt", "--json"): "",
    ("learngene", "bench fisher", "--json"): "",
    ("learngene", "bench scale", "--json"): "",
    ("collective-node", "init", "--out"): f"--data . --root {ROOT.public_hex}",
    ("collective-node", "grant", "--out"): "--config x --request x",
    ("individual-node", "init", "--out"): f"--data . --root {ROOT.public_hex}",
    ("individual-node", "request", "--out"): "--config x --form condensed",
    ("individual-node", "inherit", "--receipt"): "--config x x",
    ("individual-node", "bundle", "--out"): "--config x --form condensed",
    ("individual-node", "adapt", "--out"): "--bundle x --config x --data x",
    ("individual-node", "predict", "--json"): "x x",
    ("individual-node", "export", "--onnx"): "x",
}
#: The words of the help by which an output option is known.
SAYS = re.compile("to write|to make|new file|new world|to this|to draw|holds the runs|Folder for")
#: Folders that may exist: what the command makes in them has new names, or is its own.
INTO = {("learngene", "run", "--out"), ("learngene", "leakage", "--out")}


def test_every_option_that_names_an_output_is_listed() -> None:
    found = set()
    for program, app in PROGRAMS.items():
        for words, command in commands(typer.main.get_command(app)):
            for option in command.params:
                is_path = option.type.name in ("path", "file", "directory") or option.metavar == "PATH"
                says = getattr(option, "help", None) or ""
                if is_path and SAYS.search(says):
                    found.add((program, " ".join(words), option.opts[0]))
    assert found == {*OUTPUTS, *INTO}


@pytest.mark.parametrize("output", OUTPUTS, ids=" ".join)
def test_what_an_output_option_names_is_never_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: tuple[str, str, str]
) -> None:
    monkeypatch.chdir(tmp_path)
    program, command, option = output
    precious = tmp_path / "precious"
    precious.write_bytes(b"precious")
    done = run(PROGRAMS[program], *command.split(), *OUTPUTS[output].split(), option, precious)
    refused(done, "precious")
    assert precious.read_bytes() == b"precious"
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]


@pytest.mark.parametrize("output", [*OUTPUTS, *sorted(INTO)], ids=" ".join)
def test_an_empty_path_is_not_taken_for_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: tuple[str, str, str]
) -> None:
    """As a shell gives a variable that has no value."""
    monkeypatch.chdir(tmp_path)
    program, command, option = output
    more = {"run": "cifar100 --stand-in --dry-run", "leakage": "x"}.get(command, OUTPUTS.get(output, ""))
    refused(run(PROGRAMS[program], *command.split(), *more.split(), option, ""), "empty")
    assert list(tmp_path.iterdir()) == []


def test_an_empty_path_of_what_is_read_is_refused_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    refused(run(PROGRAMS["learngene"], "run", "folder", "--data", "", "--dry-run"), "empty")
    refused(run(PROGRAMS["learngene"], "world", "make", "folder", "--data", "", "--out", "w"), "empty")
    refused(run(individual_app, "predict", "", "0.png"), "empty")
    # A variable of the environment that is empty is none, as everywhere.
    monkeypatch.setenv("LEARNGENE_DATA", "")
    assert run(PROGRAMS["learngene"], "run", "cifar100", "--stand-in", "--dry-run").code == 0


def test_nothing_is_written_into_a_folder_of_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model there would be a class the next time, and a list of names a picture."""
    (tmp_path / "pictures" / "ant").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "pictures")
    monkeypatch.chdir(tmp_path)
    for out in ("pictures/model", "link/model", "pictures/ant/model"):
        refused(run(individual_app, "adapt", "--bundle", "x", "--config", "x", "--data", "pictures", "--out", out), out)
        refused(run(individual_app, "predict", "model", "pictures", "--json", out), out)


def test_no_command_writes_over_a_picture_that_it_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with a shell's wildcard behind ``--json``, whose first name is taken for the option's."""
    monkeypatch.chdir(tmp_path)
    for name in ("0.png", "1.png"):
        (tmp_path / name).write_bytes(name.encode())
    refused(run(individual_app, "predict", "model", "--json", "0.png", "1.png"), "0.png", "not overwritten")
    assert (tmp_path / "0.png").read_bytes() == b"0.png"
