"""``learngene courier``: the command line that it becomes, and what it refuses before it becomes anything."""

import contextlib
import os
import pty
import re
import select
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from flwr.common.config import parse_config_args

from protocol.commands.courier_commands import Door, environment, with_door
from protocol.commands.init_command import initialise
from protocol.commands.learngene import make
from protocol.commands.terminal import run_app
from protocol.errors import InputError
from protocol.node import confine
from protocol.transport.local_socket import make_secret
from tests.protocol.parties import ROOT


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line with which the command ends."""
    with pytest.raises(SystemExit) as ended:
        run_app(make(), ["courier", *arguments])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    return said


@pytest.fixture
def node(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    initialise(tmp_path / "node", role="collective", data=tmp_path / "data", party="collective", root=ROOT.public_hex)
    return tmp_path / "node"


@pytest.mark.skipif(not confine.offered(), reason="this kernel does not confine a process")
def test_a_courier_shows_colours_and_nothing_that_hides_a_line_or_stays(node: Path, tmp_path: Path) -> None:
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(node / "node.sock"))
    make_secret(node / "secret")
    said = ["\x1b[1;32mgreen", "\x1b[8mhidden", "\x1b]0;title\x07", "\x1b[38;5;196mred\x1b[0m"]
    command = ["courier", "--home", str(tmp_path / "courier"), "--config", str(node / "config.toml"), "--", "python"]
    master, terminal = pty.openpty()
    done = subprocess.run(
        [sys.executable, "-m", "protocol.commands.learngene", *command, "-c", f"print({chr(10).join(said)!r})"],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        timeout=120,
        check=False,
    )
    os.close(terminal)
    shown = b""
    with contextlib.suppress(OSError):
        while select.select([master], [], [], 10)[0] and (read := os.read(master, 4096)):
            shown += read
    os.close(master)
    listening.close()
    assert done.returncode == 0, shown
    assert b"\x1b[1;32mgreen\x1b[0m" in shown
    assert b"hidden" in shown
    assert b"title" in shown
    assert set(re.findall(rb"\x1b[^m]*m?", shown)) <= {b"\x1b[1;32m", b"\x1b[0m"}


@pytest.mark.parametrize("name", ["node", "a folder", "ключ", "a=b"])
def test_flower_reads_the_way_to_the_node_as_it_was_given(name: str) -> None:
    door = Door(Path("/s") / name / "node.sock", Path("/s") / name / "secret", ())
    command = with_door(["flower-supernode", "--insecure"], door)
    assert command[:-1] == ["flower-supernode", "--insecure", "--node-config"]
    assert parse_config_args(command[-1:]) == {"socket": str(door.socket), "secret": str(door.secret)}


def test_only_a_supernode_is_told_the_way_to_the_node() -> None:
    door = Door(Path("/n/node.sock"), Path("/n/secret"), ())
    assert with_door(["flower-superexec", "--insecure"], door) == ["flower-superexec", "--insecure"]
    assert with_door(["/usr/bin/flower-supernode"], door)[-2] == "--node-config"


@pytest.mark.parametrize("given", [["--node-config", "x=1"], ["--node-config=x=1"]])
def test_a_second_way_to_the_node_is_refused(given: list[str]) -> None:
    with pytest.raises(InputError, match="leave --node-config out"):
        with_door(["flower-supernode", *given], Door(Path("/n/node.sock"), Path("/n/secret"), ()))


@pytest.mark.parametrize("name", ['a"b', "a\\b", "a\nb", "a'b"])
def test_a_path_that_flower_would_read_otherwise_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="Flower takes no path"):
        with_door(["flower-supernode"], Door(Path(f"/{name}/node.sock"), Path("/n/secret"), ()))


def test_its_programs_find_their_folders_in_its_home(tmp_path: Path) -> None:
    made = environment(tmp_path, {"PATH": "/bin", "HOME": "/root", "FLWR_HOME": "/root/.flwr", "LANG": "C"})
    assert (made["HOME"], made["FLWR_HOME"], made["LANG"]) == (str(tmp_path), str(tmp_path / "flwr"), "C")
    assert made["PATH"] == f"{Path(sys.executable).parent}{os.pathsep}/bin"
    assert made["FLWR_TELEMETRY_ENABLED"] == "0"
    # Whoever wants to report may.
    assert environment(tmp_path, {"FLWR_TELEMETRY_ENABLED": "1"})["FLWR_TELEMETRY_ENABLED"] == "1"


def test_what_a_shell_knows_stays_behind(tmp_path: Path) -> None:
    kept = {
        "TZ": "UTC",
        "LC_ALL": "C",
        "https_proxy": "http://proxy",
        "SSL_CERT_FILE": "/ca",
        "FLWR_LOG_LEVEL": "DEBUG",
    }
    # Confinement sets these before, in the courier's home.
    kept |= {"TMPDIR": str(tmp_path / "temporary"), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    left = {"AWS_SECRET_ACCESS_KEY": "x", "SSH_AUTH_SOCK": "/s", "DOCKER_HOST": "unix:///d", "LD_PRELOAD": "/evil.so"}
    made = environment(tmp_path, kept | left)
    assert kept.items() <= made.items()
    assert not left.keys() & made.keys()


def test_what_is_missing_or_too_much(node: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home, config, program = (
        ["--home", str(tmp_path / "home")],
        ["--config", str(node / "config.toml")],
        "flower-supernode",
    )
    socket = ["--socket", str(node / "node.sock")]
    assert "either --config, or" in refused(capsys, *home, "--", program)
    assert "either --config, or" in refused(capsys, *home, *socket, "--", program)
    assert "either --config, or" in refused(capsys, *home, *config, *socket, "--", program)
    assert "no program flower-nothing" in refused(capsys, *home, *config, "--", "flower-nothing")
    assert "none.toml" in refused(capsys, *home, "--config", "none.toml", "--", program)
    assert "no user no-such" in refused(capsys, *home, *config, "--user", "no-such", "--", program)
    (node / "socket.secret").chmod(0o644)
    assert "chmod 600" in refused(capsys, *home, *config, "--", program)
    (node / "socket.secret").unlink()
    assert "cannot read the socket secret" in refused(capsys, *home, *config, "--", program)


def test_folders_inside_each_other(node: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, program = ["--config", str(node / "config.toml")], ("--", "flower-supernode")
    for home in (node / "courier", tmp_path / "data" / "courier"):
        assert "lies in the node's folder" in refused(capsys, "--home", str(home), *config, *program)
    # The other way round, it would read the node's files: a home above them, and what a program needs.
    tmp_path.chmod(0o700)
    assert f"{node} lies in {tmp_path}" in refused(capsys, "--home", str(tmp_path), *config, *program)
    home = ["--home", str(tmp_path / "home")]
    for place in (sys.prefix, sys.base_prefix, "/usr", str(Path(confine.__file__).parent)):
        within = f"{place}/site"
        assert f"folder {within} lies in " in refused(capsys, *home, *config, "--apart", within, *program)
    # A link hides nothing.
    (tmp_path / "link").symlink_to(sys.prefix)
    assert "lies in " in refused(capsys, *home, *config, "--apart", str(tmp_path / "link" / "site"), *program)


def test_where_the_kernel_confines_nothing_it_does_not_start(tmp_path: Path) -> None:
    make_secret(tmp_path / "secret")
    text = (
        "import sys\nfrom protocol.confinement import landlock\nlandlock.abi = lambda: 0\n"
        "from protocol.commands.learngene import main\nsys.argv[0] = 'learngene'\nmain()\n"
    )
    options = ["--home", str(tmp_path / "home"), "--socket", str(tmp_path / "site" / "s"), "--secret"]
    command = [sys.executable, "-c", text, "courier", *options, str(tmp_path / "secret")]
    for accepted, code, said in ((["--unconfined"], 0, "unconfined: not enforced"), ([], 1, "pass --unconfined")):
        done = subprocess.run(
            [*command, *accepted, "--", "python", "-c", "print('started')"], capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stdout) == (code, "started\n" if accepted else "")
        assert said in done.stderr
        assert done.stderr.count("\n") == 1
