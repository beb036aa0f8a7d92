"""How commands end: one line on stderr and the right exit code."""

import errno
import os
import signal
import subprocess
import sys
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from protocol.commands import learngene
from protocol.commands.learngene import make
from protocol.commands.terminal import exit_code, make_app, run_app
from protocol.errors import ExpiredError, InputError, RunFailedError, StoppedError

#: The installed command.
PROGRAM = Path(sys.executable).parent / "learngene"


@pytest.fixture(autouse=True)
def _a_node_s_installation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the commands that other packages add."""
    monkeypatch.setattr(learngene, "entry_points", lambda group: ())


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


@pytest.mark.parametrize(
    ("raised", "code"),
    [(KeyboardInterrupt(), 130), (StoppedError("stopped; go on"), 130), (StoppedError("ended", signal.SIGTERM), 143)],
)
def test_an_end_from_outside_is_one_line_that_is_no_error(
    capsys: pytest.CaptureFixture[str], raised: BaseException, code: int
) -> None:
    # As every command runs: the library around it has its own idea of Ctrl-C.
    app = make_app("An application.")

    @app.command("work")
    def work() -> None:
        raise raised

    with pytest.raises(SystemExit) as ended:
        run_app(app, ["work"])
    assert ended.value.code == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err == f"{str(raised) or 'interrupted'}\n"


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
    point = EntryPoint("sims", "no_such_package.commands:COMMANDS", learngene.COMMANDS_GROUP)
    monkeypatch.setattr(learngene, "entry_points", lambda group: [point])
    assert run("run", "cifar100", "--profile", "quick") == 2
    assert "learngene[sim]" in capsys.readouterr().err
    assert run("keygen", "--out", str(tmp_path / "key"), "--key-file", str(tmp_path / "secret")) == 0


def test_the_relay_s_app_is_written_once(tmp_path: Path) -> None:
    out = tmp_path / "app"
    assert run("relay-app", "--out", str(out)) == 0
    written = (out / "pyproject.toml").read_bytes()
    app = tomllib.loads(written.decode())
    assert app["tool"]["flwr"]["app"]["components"] == {
        "serverapp": "protocol.transport.relay:app",
        "clientapp": "protocol.transport.courier:app",
    }
    assert app["project"]["dependencies"] == []
    assert run("relay-app", "--out", str(out)) == 2


@pytest.mark.parametrize(
    ("number", "code"),
    [(errno.EACCES, 2), (errno.ENOENT, 2), (errno.EISDIR, 2), (errno.ENAMETOOLONG, 2), (errno.ENOSPC, 1)],
)
def test_a_file_that_cannot_be_used_is_one_line_with_its_name(
    capsys: pytest.CaptureFixture[str], number: int, code: int
) -> None:
    def use() -> None:
        raise OSError(number, os.strerror(number), "/x/[b]a\nfile")

    assert exit_code(use) == code
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "/x/[b]a" in said
    assert os.strerror(number) in said


@pytest.mark.parametrize("file", [(), (9999,)])
def test_an_error_of_the_system_without_a_file_is_a_defect_of_ours(file: tuple[int, ...]) -> None:
    def use() -> None:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF), *file)

    with pytest.raises(OSError, match="descriptor"):
        exit_code(use)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no file that is always full")
def test_an_output_that_cannot_be_written_is_one_line() -> None:
    for option in ("--version", "--help"):
        with open("/dev/full", "w", encoding="utf-8") as full:
            done = subprocess.run([PROGRAM, option], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
        assert done.returncode == 1
        assert done.stderr.startswith("error: cannot write")
        assert done.stderr.count("\n") == 1


def test_what_is_closed_at_the_start_is_no_place_for_another_file(tmp_path: Path) -> None:
    """Else a line that is meant for standard output goes into the first file that is opened."""
    code = (
        "import os, sys; from protocol.commands.terminal import make_app, run_app; app = make_app('An application.')\n"
        "@app.command('write')\n"
        "def write() -> None:\n"
        f"    file = open({str(tmp_path / 'file')!r}, 'w'); os.write(1, b'line'); file.write(str(file.fileno() > 2))\n"
        "@app.command('other')\n"
        "def other() -> None: ...\n"
        "run_app(app)"
    )
    shell = [*("sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh"), sys.executable, "-c", code, "write"]
    assert subprocess.run(shell, check=False).returncode == 0
    assert (tmp_path / "file").read_text(encoding="utf-8") == "True"
