"""A command's help needs none of the libraries that its work needs."""

import json
import subprocess
import sys
from importlib.util import find_spec

import click
import pytest
import typer

from individual_node.cli import app as individual_app
from protocol.commands.learngene import make
from protocol.pictures.formats import NAMES
from sims.bench.start_timing import PROGRAMS
from tests.all_commands import commands

HEAVY = ("torch", "torchvision", "sklearn", "scipy", "matplotlib", "ray", "flwr", "grpc", "onnxruntime")
#: Loads every command of a program, as its help does, and says which of the libraries are there then.
LOAD = """
import json, sys
import typer
from tests.all_commands import commands
from sims.bench import start_timing
module, heavy = sys.argv[1], sys.argv[2:]
_, make = start_timing.PROGRAMS[module]
found = {}
for words, _ in commands(typer.main.get_command(make())):
    found[" ".join(words)] = [name for name in heavy if name in sys.modules]
print(json.dumps(found))
"""


@pytest.mark.parametrize("program", PROGRAMS)
def test_no_help_loads_what_only_the_work_needs(program: str) -> None:
    assert all(find_spec(name) for name in ("torch", "sklearn", "scipy", "matplotlib", "ray", "flwr"))
    done = subprocess.run(
        [sys.executable, "-c", LOAD, program, *HEAVY], capture_output=True, text=True, timeout=120, check=True
    )
    found = json.loads(done.stdout)
    assert len(found) > 5
    assert {words: loaded for words, loaded in found.items() if loaded} == {}


@pytest.mark.parametrize(
    ("app", "words"),
    [(make(), "run"), (make(), "world make"), (individual_app, "adapt"), (individual_app, "predict")],
)
def test_the_help_of_what_reads_pictures_says_the_formats(app: typer.Typer, words: str) -> None:
    found = {" ".join(name): command for name, command in commands(typer.main.get_command(app))}
    said = " ".join(found[words].get_help(click.Context(found[words])).split())
    assert NAMES in said
