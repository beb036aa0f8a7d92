"""How commands end: one line on stderr and the right exit code."""

import os
import stat
import subprocess
import sys
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Literal

import pytest

from protocol import cli
from protocol.cli import make
from protocol.errors import ExpiredError, InputError, RunFailedError
from protocol.node_commands import initialise, node_app
from protocol.node_configuration import NodeConfiguration, load
from protocol.terminal import exit_code, run_app
from protocol.trust import TrustStore


@pytest.fixture(autouse=True)
def _a_node_s_installation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the commands that other packages add."""
    monkeypatch.setattr(cli, "entry_points", lambda group: ())


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        run_app(make(), list(arguments))
    assert isinstance(ended.value.code, int)
    return ended.value.code


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InputError("no such\nfolder"), 2),
        (RunFailedError("it failed"), 1),
        (ExpiredError("too old"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_an_error_is_one_line_and_a_code(capsys: pytest.CaptureFixture[str], error: BaseException, code: int) -> None:
    def command() -> None:
        raise error

    assert exit_code(command) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1


def test_a_defect_of_ours_is_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError):
        exit_code(lambda: 1 / 0)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--nonsense"],
        ["nonsense"],
        ["keygen"],
        ["keygen", "--out"],
        ["trust", "add", "--trust", "x"],
        ["trust", "nonsense"],
    ],
)
def test_wrong_usage_is_one_line_and_code_2(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    assert run(*arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert "--help" in err


@pytest.mark.parametrize("arguments", [["--help"], [], ["--version"], ["keygen", "--help"], ["trust", "--help"]])
def test_help_and_version_succeed(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    assert run(*arguments) == 0
    out, err = capsys.readouterr()
    assert out
    assert err == ""


def test_help_shows_its_brackets_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("trust", "add", "--help") == 0
    out = capsys.readouterr().out
    assert "[required]" in out
    assert "\\" not in out


def test_missing_simulations_are_explained(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    point = EntryPoint("sims", "no_such_package.cli:register", cli.COMMANDS_GROUP)
    monkeypatch.setattr(cli, "entry_points", lambda group: [point])
    assert run("run", "cifar100", "--profile", "quick") == 2
    assert "learngene[sim]" in capsys.readouterr().err
    assert run("keygen", "--out", str(tmp_path / "key")) == 0


def test_keys_are_made_pinned_and_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key, trust = tmp_path / "signing.key", tmp_path / "trust.json"
    assert run("keygen", "--out", str(key)) == 0
    lines = dict(
        line.split(None, 1)[::-1] for line in capsys.readouterr().out.replace("public key", "public").splitlines()
    )
    values = {name: value for value, name in lines.items()}
    add = ["trust", "add", "--trust", str(trust), "--public", values["public"], "--party", "collective"]
    assert run(*add, "--role", "collective") == 0
    assert values["fingerprint"] in capsys.readouterr().out
    assert TrustStore.load(trust).only("collective").party == "collective"
    assert run("trust", "show", "--trust", str(trust)) == 0
    assert values["fingerprint"] in capsys.readouterr().out
    # A second time, another role, and a key that exists: refused, and nothing changes.
    before = trust.read_bytes(), key.read_bytes()
    assert run(*add, "--role", "collective") == 2
    assert run(*add, "--role", "king") == 2
    assert run("keygen", "--out", str(key)) == 2
    assert (trust.read_bytes(), key.read_bytes()) == before


def test_the_relay_s_app_is_written_once(tmp_path: Path) -> None:
    out = tmp_path / "app"
    assert run("relay-app", "--out", str(out)) == 0
    written = (out / "pyproject.toml").read_bytes()
    app = tomllib.loads(written.decode())
    assert app["tool"]["flwr"]["app"]["components"] == {
        "serverapp": "protocol.relay:app",
        "clientapp": "protocol.courier:app",
    }
    assert app["project"]["dependencies"] == []
    assert run("relay-app", "--out", str(out)) == 2


def test_init_makes_a_node_that_others_cannot_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    app = node_app("individual", "protocol.node_configuration:NodeConfiguration", "nowhere:make")
    out = tmp_path / "node"
    arguments = ["init", "--out", str(out), "--data", str(tmp_path), "--party", "individual-9", "--run-id", "ab" * 16]
    with pytest.raises(SystemExit) as ended:
        run_app(app, arguments)
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    configuration = load(out / "config.toml", NodeConfiguration).node
    assert (configuration.party, configuration.run_id, configuration.data) == ("individual-9", "ab" * 16, tmp_path)
    assert not configuration.unconfined
    assert stat.S_IMODE(out.stat().st_mode) == 0o700
    for file in (configuration.key, configuration.secret):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    from protocol.keys import SigningKey

    assert SigningKey.load(configuration.key).public_hex in printed
    before = configuration.key.read_bytes()
    with pytest.raises(InputError, match="exists already"):
        initialise(out, role="individual", data=tmp_path, party="individual-9")
    assert configuration.key.read_bytes() == before


@pytest.mark.parametrize(
    ("party", "run_id"),
    [("Ada Lovelace", ""), ("", ""), ("../x", ""), ("individual-1", "xyz"), ("individual-1", "AB" * 16)],
)
def test_init_refuses_wrong_names(tmp_path: Path, party: str, run_id: str) -> None:
    with pytest.raises(InputError):
        initialise(tmp_path / "node", role="individual", data=tmp_path, party=party, run_id=run_id)
    assert not (tmp_path / "node").exists()


@pytest.mark.parametrize("role", ["collective", "individual"])
def test_a_node_without_its_configuration_is_one_line_and_code_2(role: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", f"{role}_node", "start", "--config", str(tmp_path / "none.toml")]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ}, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "none.toml" in done.stderr


@pytest.mark.parametrize("role", ["collective", "individual"])
@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("[node]", "[node", "not a TOML file"),
        ("[node]", "[node]\nsead = 1", "node.sead"),
        ('device = "auto"', 'device = "abacus"', "node.device"),
        ('data = "', 'data = "/no/such/folder', "there is no folder /no/such/folder"),
        ('key = "signing.key"', 'key = "none.key"', "none.key"),
        ("unconfined = false", "unconfined = true\n[ROLE]\nnonsense = 1", "ROLE.nonsense"),
    ],
)
def test_a_node_with_a_wrong_configuration_is_one_line_and_code_2(
    role: Literal["collective", "individual"], before: str, after: str, said: str, tmp_path: Path
) -> None:
    node = tmp_path / "node"
    initialise(node, role=role, data=tmp_path, party=f"{role}-1")
    text = (node / "config.toml").read_text(encoding="utf-8").replace("unconfined = false", "unconfined = true")
    before = before.replace("unconfined = false", "unconfined = true")
    assert text.count(before) == 1
    (node / "config.toml").write_text(text.replace(before, after.replace("ROLE", role)), encoding="utf-8")
    command = [sys.executable, "-m", f"{role}_node", "start", "--config", str(node / "config.toml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert said.replace("ROLE", role) in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (node / "node.sock").exists()
