"""A hostile name walks through every command: nothing of it reaches the terminal raw, and it can be told from others.

Each command is listed with how it is walked, or why it prints no name; a new command fails until it is, too.
"""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image

from collective_node.annotation.unknown_set import cycle_folder
from collective_node.cli import app as collective_app
from individual_node.cli import app as individual_app
from protocol.commands.learngene import make
from protocol.commands.progress_bar import progress_bar
from protocol.output import add_row, console, print_table, say, table
from protocol.visible_text import visible_name
from sims.results.collection import collect
from tests.all_commands import commands
from tests.individual_node.test_user_commands import Node, inherited
from tests.sims.made_run import make_run
from tests.two_folders import Done, run

#: OSC with BEL, CSI, C1's CSI, an override, a line that would be one of its own, markup, and an escape spelled out.
CANARY = "\x1b]0;mine\x07\x1b[31m\x9b1m\u202egnp\n[red]x[b]\\x1b"
SHOWN = visible_name(CANARY)
#: Names that nobody must touch: Persian with its joiner, a family, a flag with its selector, a composed letter.
PLAIN = ("می‌خواهم", "👨‍👩‍👧‍👦", "🏳️‍🌈", "grün", "ශ්‍රී")

_STEERS = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def faults(text: str) -> list[str]:
    """What of the canary came through raw: what steers a terminal, and its second line as a line of its own."""
    return [*_STEERS.findall(text), *re.findall(r"^\[red\].*", text, re.MULTILINE)]


def test_the_control_a_raw_print_lets_it_through() -> None:
    assert len(faults(f"no such file: {CANARY}\n")) >= 6
    assert faults(SHOWN) == []
    assert "[red]x[b]\\\\x1b" in SHOWN, "markup stays, and an escape that is spelled out differs from one that is not"


# ---------------------------------------------------------------------------------------------------- what is walked


@dataclass(frozen=True)
class Stage:
    """A folder whose every name is hostile, and what stands in it."""

    folder: Path
    node: Node
    model: Path
    pictures: Path
    run: Path

    def path(self, ending: str = "") -> Path:
        """A hostile name of nothing that is there."""
        return self.folder / f"{CANARY}{os.urandom(2).hex()}{ending}"


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Stage:
    folder = tmp_path_factory.mktemp("stage")
    node = inherited(folder / "site", int(time.time()))
    pictures = folder / "pictures"
    for number, name in enumerate(PLAIN[:2]):
        (pictures / name).mkdir(parents=True)
        for seed in range(3):
            pixels = np.random.default_rng([number, seed]).integers(0, 255, (12, 12, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(pictures / name / f"{CANARY}{seed}.png")
        shutil.copy(pictures / name / f"{CANARY}0.png", pictures / name / f"{CANARY}copy.png")
    model = folder / "model"
    adapted = run(individual_app, "adapt", "--bundle", node.bundles["condensed"], *node.by_trust,
                  "--data", pictures, "--out", model, "--folds", 0)  # fmt: skip
    assert adapted.code == 0, adapted
    opened = make_run(folder / "runs")
    collect(opened)
    return Stage(folder, node, model, pictures, opened)


Walk = Callable[[Stage], Done]


def learngene(*arguments: object) -> Done:
    return run(make(), *arguments)


def collective(*arguments: object) -> Done:
    return run(collective_app, *arguments)


def individual(*arguments: object) -> Done:
    return run(individual_app, *arguments)


def apart(module: str) -> Callable[..., Done]:
    """A program in a process of its own: a node that starts refuses the other party's imports from then on."""

    def run_apart(*arguments: object) -> Done:
        command = [sys.executable, "-m", module, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        return Done(done.returncode, done.stdout, done.stderr)

    return run_apart


def trusted(command: str, *more: object) -> Walk:
    """A command on a trust store, by a root key, of a hostile name."""
    return lambda stage: learngene("trust", command, "--root-key", stage.path(), "--trust", stage.path(), *more)


def bench(part: str) -> Walk:
    """A part of the benchmark whose results would go where something is already."""

    def walk(stage: Stage) -> Done:
        taken = stage.path()
        taken.write_text("taken")
        return learngene("bench", part, "--json", taken)

    return walk


def with_config(which: Callable[..., Done], command: str, *more: object) -> Walk:
    """A node's command on a configuration file of a hostile name, whose content is hostile as well."""

    def walk(stage: Stage) -> Done:
        config = stage.path(".toml")
        config.write_text(f"[node]\n{json.dumps(CANARY.replace(chr(0x9B), ''))} = 1\n", encoding="utf-8")
        filled = [stage.path() if word is PATH else word for word in more]
        return which(command, "--config", config, *filled)

    return walk


#: Stands for a hostile path that is not there.
PATH = object()


def keygen(stage: Stage) -> Done:
    return learngene("keygen", "--out", stage.path(), "--key-file", stage.path())


def bundle_of_hostile_name(stage: Stage) -> Path:
    return Path(shutil.copy(stage.node.bundles["condensed"], stage.path(".learngene")))


def results_of_hostile_content(stage: Stage) -> Done:
    """Free texts in somebody's results: the notice, a sentence of a node, a class."""
    run_folder = Path(shutil.copytree(stage.run, stage.path()))
    path = run_folder / "results.json"
    found = json.loads(path.read_bytes())
    found["dataset"]["notice"] = CANARY
    found["collective"]["open_world"]["comparisons"][0]["stopped"] = CANARY
    path.write_text(json.dumps(found), encoding="utf-8")
    return learngene("results", run_folder)


def predict(stage: Stage) -> Done:
    return individual("predict", stage.model, stage.pictures / PLAIN[0])


def adapt(stage: Stage) -> Done:
    """The picture that is there twice is named."""
    return individual("adapt", "--bundle", stage.node.bundles["condensed"], *stage.node.by_trust,
                      "--data", stage.pictures, "--out", stage.path(), "--folds", 0)  # fmt: skip


def annotate(stage: Stage) -> Done:
    """What a node put into its state in place of a set of unknown images."""
    state = stage.node.folders.node(stage.node.folders.collective).state
    folder = cycle_folder(state, 1)
    folder.mkdir(parents=True)
    (folder / "description.json").write_text(json.dumps({CANARY: CANARY}))
    (folder / "labels.jsonl").write_text(f'{{"id": "{os.urandom(8).hex()}", "verdict": {json.dumps(CANARY)}}}\n')
    try:
        return with_config(collective, "annotate", "--no-browser")(stage)
    finally:
        shutil.rmtree(folder)


#: How each command is walked. A text: why it prints no name from elsewhere.
WALKS: dict[str, Walk | str] = {
    "learngene keygen": keygen,
    "learngene inspect": lambda stage: learngene("inspect", Path(shutil.copy(__file__, stage.path()))),
    "learngene verify": lambda stage: learngene(
        "verify", bundle_of_hostile_name(stage), "--config", stage.node.folders.individual
    ),
    "learngene courier": lambda stage: learngene(
        *("courier", "--home", stage.path(), "--socket", stage.path(), "--secret", stage.path()),
        *("--", "flower-supernode"),
    ),
    "learngene doctor": "it speaks of this kernel and this machine's devices, and reads no file of a party",
    "learngene relay-app": lambda stage: learngene("relay-app", "--out", stage.path()),
    "learngene run": lambda stage: learngene(
        "run", "cifar100", "--stand-in", "--dry-run", "--out", stage.path(), "--profile", "smoke"
    ),
    "learngene results": results_of_hostile_content,
    "learngene report": lambda stage: learngene("report", Path(shutil.copytree(stage.run, stage.path()))),
    "learngene privacy": lambda stage: learngene("privacy", stage.path()),
    "learngene boundary": lambda stage: learngene("boundary", "--only", CANARY),
    "learngene leakage": lambda stage: learngene("leakage", stage.path()),
    "learngene trust init": lambda stage: learngene("trust", "init", "--root-key", stage.path(), "--out", stage.path()),
    "learngene trust add": trusted("add", "--role", "individual", "--party", CANARY, "--public", "00" * 32),
    "learngene trust revoke": trusted("revoke", CANARY, "--reason", CANARY),
    "learngene trust rotate": trusted("rotate", "--party", "x", "--role", CANARY, "--public", "00"),
    "learngene trust renew": trusted("renew"),
    "learngene trust show": lambda stage: learngene("trust", "show", "--trust", stage.path()),
    "learngene audit show": lambda stage: learngene("audit", "show", stage.path()),
    "learngene audit verify": lambda stage: learngene("audit", "verify", stage.path()),
    **{
        f"learngene bench {part}": bench(part)
        for part in ("bundle", "train", "fisher", "adapt", "round", "scale", "start")
    },
    "learngene world make": lambda stage: learngene("world", "make", "folder", "--data", stage.path(), "--out", "x"),
    "collective-node start": with_config(apart("collective_node"), "start"),
    "collective-node doctor": with_config(collective, "doctor"),
    "collective-node init": lambda stage: collective(
        "init", "--out", stage.path(), "--data", stage.folder, "--root", stage.node.folders.root
    ),
    "collective-node clock": with_config(collective, "clock"),
    "collective-node grant": with_config(collective, "grant", "--request", PATH, "--out", PATH),
    "collective-node receipt": with_config(collective, "receipt", PATH),
    "collective-node releases": with_config(collective, "releases"),
    "collective-node withdraw": with_config(collective, "withdraw", CANARY),
    "collective-node annotate": annotate,
    "individual-node start": with_config(apart("individual_node"), "start"),
    "individual-node doctor": with_config(individual, "doctor"),
    "individual-node init": lambda stage: individual(
        *("init", "--out", stage.path(), "--data", stage.folder, "--root", stage.node.folders.root, "--party", "i-1")
    ),
    "individual-node clock": with_config(individual, "clock"),
    "individual-node request": with_config(individual, "request", "--out", PATH),
    "individual-node inherit": lambda stage: individual(
        "inherit", "--config", stage.node.folders.individual, stage.path(), "--receipt", stage.path()
    ),
    "individual-node bundle": with_config(individual, "bundle", "--out", PATH),
    "individual-node adapt": adapt,
    "individual-node predict": predict,
    "individual-node export": lambda stage: individual("export", stage.path(), "--onnx", stage.path()),
}


def every_command() -> Iterator[str]:
    """Every command of every program, as it is typed."""
    programs: dict[str, typer.Typer] = {
        "learngene": make(),
        "collective-node": collective_app,
        "individual-node": individual_app,
    }
    for name, app in programs.items():
        yield from (" ".join(words) for words, _ in commands(typer.main.get_command(app), name))


def test_every_command_is_listed() -> None:
    assert set(every_command()) == set(WALKS)


@pytest.mark.parametrize("command", [name for name, walk in WALKS.items() if callable(walk)])
def test_a_hostile_name_is_shown_and_steers_nothing(stage: Stage, command: str) -> None:
    walk = WALKS[command]
    assert callable(walk)
    done = walk(stage)
    text = done.out + done.err
    assert faults(text) == []
    # It was there to be seen: else the walk shows nothing.
    assert re.search(r"\\+x1b\]0;mine", text), done
    assert "Traceback" not in text
    if done.code and not command.endswith(" doctor"):
        assert done.err.startswith("error: "), done
        assert done.err.count("\n") == 1


@pytest.mark.parametrize("command", [name for name, walk in WALKS.items() if callable(walk)])
def test_its_help_is_safe_too(command: str) -> None:
    program, *words = command.split()
    app = {"learngene": make, "collective-node": lambda: collective_app, "individual-node": lambda: individual_app}
    assert faults(run(app[program](), *words, "--help").out) == []


def test_names_of_people_s_own_languages_come_out_unchanged(stage: Stage) -> None:
    predicted = predict(stage)
    assert predicted.code == 0
    assert PLAIN[0] in predicted.out
    assert PLAIN[1] in predicted.out
    assert "\\u200c" not in predicted.out
    assert "\\u200d" not in predicted.out


# --------------------------------------------------------------------------------------------------- the one gate


def test_what_prints_is_the_gate(capsys: pytest.CaptureFixture[str]) -> None:
    say(f"a line with {CANARY}")
    shown = table("name", title=f"title {CANARY}")
    add_row(shown, CANARY)
    print_table(shown)
    out = capsys.readouterr().out
    assert faults(out) == []
    assert out.count("\\x1b]0;mine") == 3
    assert out.count("[red]x[b]") == 3


@pytest.mark.parametrize("terminal", [False, True])
def test_what_rich_draws_passes_the_gate(terminal: bool) -> None:
    """Also what nobody made plain before: a bare string, a bar's text."""
    stream = StringIO()
    drawn = console(file=stream, width=300)
    drawn._force_terminal = terminal
    drawn.print(CANARY)
    drawn.print(f"[bold]{CANARY}[/bold] :smile:")
    drawn.rule(CANARY)
    own = re.sub(r"\x1b\[[0-9;]*m", "", stream.getvalue())
    assert not set(_STEERS.findall(own)), own
    assert "[bold]" in own
    assert ":smile:" in own
    assert "\\x1b]0;mine" in own


def test_a_bar_s_text_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar() as observe:
        observe(1, 2, CANARY)
    assert faults(capsys.readouterr().err) == []


#: Programs of their own, which speak to the program that started them, and not to a terminal.
_MACHINES = {
    "sims/bench/memory.py",
    "sims/boundary/acts/__main__.py",
    "sims/boundary/hostile_app.py",
    "sims/boundary/recording_relay.py",
    "sims/boundary/search.py",
    "protocol/confinement/warden.py",
}
#: The gate itself.
_GATES = {"protocol/output.py", "protocol/commands/terminal.py"}
_PRINTERS = {"print", "typer.echo", "typer.secho", "click.echo", "click.secho", "rich.print", "Console"}
_WRITES = re.compile(
    r"(sys\.)?(stdout|stderr)\.(write|writelines|buffer\.write)$|.*\.Console$|Prompt\.ask$|.*\.confirm$"
)


def test_nothing_else_writes_to_the_terminal() -> None:
    root = Path(__file__).parent.parent
    found = []
    for package in ("protocol", "collective_node", "individual_node", "sims"):
        for path in sorted((root / package).rglob("*.py")):
            name = str(path.relative_to(root))
            if name in _MACHINES | _GATES:
                continue
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call):
                    called = ast.unparse(node.func)
                    if called in _PRINTERS or _WRITES.match(called):
                        found.append(f"{name}:{node.lineno} {called}")
                    if called.endswith("TextColumn") and "markup=False" not in ast.unparse(node):
                        found.append(f"{name}:{node.lineno} {called} reads markup")
    assert found == []
