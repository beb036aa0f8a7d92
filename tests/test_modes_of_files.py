"""What commands make belongs to its maker, under a umask that leaves everything open to everybody."""

import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image

from collective_node.annotation.unknown_set import cycle_folder, store
from collective_node.cli import app as collective_app
from individual_node.cli import app as individual_app
from protocol.commands.learngene import make
from protocol.commands.terminal import run_app
from protocol.files.atomic import make_folder
from protocol.node.events import Events
from protocol.transport.local_socket import listen
from sims.results.collection import collect
from tests.collective_node.made_unknown_set import unknown_set
from tests.individual_node.test_user_commands import inherited
from tests.sims.made_run import make_run

_OTHERS_WRITE = 0o022
_OTHERS = 0o077


@pytest.fixture
def open_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def typed(app: typer.Typer, *arguments: object) -> None:
    """Run a command without what ``run_app`` does to the umask: each mode is its maker's own choice."""
    command = typer.main.get_command(app)
    assert command.main([str(argument) for argument in arguments], standalone_mode=False) in (None, 0)


def modes(folder: Path) -> dict[str, int]:
    """The mode of everything below a folder, and its own."""
    found = [folder, *folder.rglob("*")]
    return {
        str(path.relative_to(folder)): stat.S_IMODE(path.lstat().st_mode) for path in found if not path.is_symlink()
    }


def test_the_control_a_plain_file_is_open_to_all(tmp_path: Path, open_umask: None) -> None:
    (tmp_path / "plain").write_text("x")
    (tmp_path / "a" / "b").mkdir(parents=True, mode=0o700)
    assert modes(tmp_path)["plain"] == 0o666
    assert modes(tmp_path)["a"] == 0o777


def test_what_the_protocol_s_commands_write(tmp_path: Path, open_umask: None) -> None:
    learngene, out = make(), tmp_path / "made"
    out.mkdir(mode=0o755)
    key, opens, trust = out / "root.key", out / "root.secret", out / "trust.json"
    typed(learngene, "keygen", "--out", key, "--key-file", opens)
    typed(learngene, "trust", "init", "--root-key", key, "--key-file", opens, "--out", trust)
    typed(learngene, "relay-app", "--out", out / "further" / "app")
    typed(learngene, "bench", "bundle", "--megabytes", 0.01, "--repeats", 1, "--audiences", 1,
          "--json", out / "bench.json", "--figure", out / "bench.png")  # fmt: skip
    for app, more in ((collective_app, ()), (individual_app, ("--party", "individual-1"))):
        typed(app, "init", "--out", out / f"node-{len(more)}", "--data", out, "--root", "11" * 32, *more)
    found = modes(out)
    assert {name: oct(mode) for name, mode in found.items() if mode & _OTHERS_WRITE} == {}
    private = [name for name in found if name.endswith((".key", ".secret", "config.toml"))]
    assert len(private) >= 9
    assert {name: oct(found[name]) for name in private if found[name] & _OTHERS} == {}


def test_what_an_exchange_and_a_model_leave(tmp_path: Path, open_umask: None) -> None:
    # What the tests' own helpers make by hand is not looked at.
    site = inherited(tmp_path / "site", int(time.time()))
    pictures, out = tmp_path / "pictures", tmp_path / "made"
    out.mkdir(mode=0o755)
    for label in ("red", "blue"):
        (pictures / label).mkdir(parents=True)
        for number in range(2):
            pixels = np.random.default_rng([len(label), number]).integers(0, 255, (9, 9, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(pictures / label / f"{number}.png")
    typed(individual_app, "request", "--config", site.config, "--out", out / "request", "--fresh")
    typed(individual_app, "adapt", "--bundle", site.bundles["condensed"], "--config", site.config,
          "--data", pictures, "--out", out / "model", "--folds", 0)  # fmt: skip
    typed(individual_app, "predict", out / "model", pictures / "red", "--json", out / "named.json")
    typed(individual_app, "bundle", "--config", site.config, "--out", out / "again.learngene")
    typed(individual_app, "export", out / "model", "--onnx", out / "model.onnx")
    typed(
        collective_app, "grant", "--config", site.folders.collective, "--request", out / "request", "--out", out / "b"
    )
    found = modes(out)
    assert {name: oct(mode) for name, mode in found.items() if mode & _OTHERS_WRITE} == {}
    assert {name: oct(mode) for name, mode in found.items() if name.startswith("model/") and mode & _OTHERS} == {}
    for config in (site.config, site.folders.collective):
        state = site.folders.node(config).state
        kept = modes(state)
        assert any("ledger" in name for name in kept)
        assert {name: oct(mode) for name, mode in kept.items() if mode & _OTHERS} == {}


def test_what_a_run_s_commands_write(tmp_path: Path, open_umask: None) -> None:
    run = make_run(tmp_path / "runs" / "below")
    before = {path: path.lstat().st_mtime_ns for path in run.rglob("*")}
    collect(run)
    typed(make(), "report", run)
    Events(run / "events.jsonl").append("run", 1, 1, "x")
    written = [path for path in run.rglob("*") if path.is_file() and path not in before]
    assert {"results.json", "report.html", "accuracy.png", "events.jsonl"} <= {path.name for path in written}
    assert {path.name: oct(path.stat().st_mode) for path in written if path.stat().st_mode & _OTHERS_WRITE} == {}
    assert modes(tmp_path / "runs")["."] & _OTHERS == 0
    assert modes(tmp_path / "runs" / "below")["."] & _OTHERS == 0
    assert modes(run)["lock"] & _OTHERS == 0
    assert modes(run)["events.jsonl"] & _OTHERS == 0


def test_what_a_node_s_parts_write(tmp_path: Path, open_umask: None) -> None:
    folder = cycle_folder(tmp_path / "state", 1)
    store(folder, unknown_set())
    listen(tmp_path / "doors" / "below" / "node.sock").close()
    make_folder(tmp_path / "x" / "y" / "z")
    found = modes(tmp_path)
    del found["."]
    assert {name: oct(mode) for name, mode in found.items() if mode & _OTHERS} == {}


def test_a_command_leaves_nothing_open_to_others_writing_whatever_a_library_does(
    tmp_path: Path, open_umask: None
) -> None:
    app = typer.Typer()

    @app.command()
    def careless() -> None:
        (tmp_path / "made").write_text("x")

    with pytest.raises(SystemExit):
        run_app(app, [])
    assert stat.S_IMODE((tmp_path / "made").stat().st_mode) == 0o644
