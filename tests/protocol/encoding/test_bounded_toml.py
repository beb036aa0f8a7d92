"""TOML of a stranger's is read within limits, or refused with one line; and nothing of ours reads it elsewhere."""

import ast
import os
from pathlib import Path

import pytest
import tomli_w

import protocol
from individual_node.cli import app
from protocol.encoding import bounded_toml
from protocol.errors import InputError
from protocol.node.configuration import read
from protocol.trust.policy_file import load_policy
from tests.two_folders import refused, run

GOOD = {"node": {"party": "collective", "address": "127.0.0.1", "many": [[1.5, 2.5], [3.5]]}, "own": {"x": {"y": "z"}}}

#: What was a traceback, or held a command up for a minute, when tomllib read it alone; and what refuses it now.
HOSTILE = {
    "brackets": ("a = " + "[" * 60_000, "nested deeper"),
    "inline tables": ("a = " + "{a=" * 20_000, "nested deeper"),
    "a dotted key": ("a" + ".a" * 20_000 + " = 1\n", "more dots"),
    "quoted parts": ('a."="' + ".a" * 20_000 + " = 1\n", "more dots"),
    "a table's name": ("[" + "a." * 1_000 + "a]\n" + "b=1\n", "more dots"),
    "a table of tables": (" \t[[" + "a." * 1_000 + "a]]\n", "more dots"),
    "an integer": ("a = " + "1" * 5_000, "too long"),
    "bytes": ("a = '" + "x" * 70_000 + "'\n", "more than|at most"),
    "a few levels": ("a = " + "[" * 30 + "]" * 30 + "\n", "nested deeper"),
    "half a character": ("a = '\udcff'\n", "no UTF-8 text"),
    "no TOML": ("a = = 1\n", "line 1"),
}
hostile = pytest.mark.parametrize("name", HOSTILE)


def content(name: str) -> bytes:
    return HOSTILE[name][0].encode("utf-8", "surrogateescape")


def test_what_fits_is_read() -> None:
    assert bounded_toml.parse(tomli_w.dumps(GOOD).encode()) == GOOD
    assert bounded_toml.parse(b"") == {}
    # As deep as a file may be.
    found: object = bounded_toml.parse(b"[" + b"a." * 12 + b"a]\nb=1\n" + b"# ... \n" * 500)
    for _ in range(13):
        assert isinstance(found, dict)
        found = found["a"]
    assert found == {"b": 1}


@hostile
def test_attack_what_does_not_fit_is_one_line(name: str) -> None:
    with pytest.raises(ValueError, match=HOSTILE[name][1]) as error:
        bounded_toml.parse(content(name))
    assert "\n" not in str(error.value)


@hostile
def test_attack_every_reader_of_a_file(tmp_path: Path, name: str) -> None:
    path = tmp_path / "x.toml"
    path.write_bytes(content(name))
    path.chmod(0o600)
    for reader in (read, lambda given: load_policy(given, "individual")):
        with pytest.raises(InputError, match=r"x\.toml") as error:
            reader(path)
        assert "\n" not in str(error.value)


def test_a_configuration_is_a_regular_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="not a file"):
        read(tmp_path / "pipe")


@pytest.mark.parametrize("name", ["brackets", "an integer"])
def test_a_setting_of_a_command_line(tmp_path: Path, name: str) -> None:
    value = HOSTILE[name][0].removeprefix("a = ")
    arguments = ["--bundle", tmp_path / "b", "--config", tmp_path / "c", "--data", tmp_path, "--out", tmp_path / "m"]
    refused(run(app, "adapt", *arguments, "--set", f"epochs={value}"))


def test_nothing_else_reads_toml() -> None:
    """Every module of ours that names tomllib; the attack shows with its control what Python's own reader does."""
    packages = Path(protocol.__file__).parent.parent
    found = set()
    for package in ("protocol", "individual_node", "collective_node", "sims"):
        for path in (packages / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                if {"tomllib", "tomli", "tomlkit"} & set(names):
                    found.add(path.relative_to(packages).as_posix())
    assert found == {"protocol/encoding/bounded_toml.py", "sims/boundary/operator_attacks.py"}
