"""Passphrases: asked for on the terminal alone, unseen, twice where they are new."""

import contextlib
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from protocol.errors import InputError
from protocol.keys import passphrase
from protocol.keys.key_file import Unlock, make_key_file
from protocol.keys.passphrase import ask_new, unlock_with

GOOD = "five words make a passphrase"


def at_terminal(code: str, *answers: str) -> tuple[int, str]:
    """Run Python with a terminal of its own, type an answer to every question; the exit code and what was shown."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [sys.executable, "-c", code])
    shown, left = "", list(answers)
    with os.fdopen(terminal, "r+b", buffering=0) as file:
        # Linux ends a terminal that nobody holds any more with an error.
        with contextlib.suppress(OSError):
            while part := file.read(1000):
                shown += part.decode()
                if left and shown.endswith(": "):
                    file.write(left.pop(0).encode() + b"\n")
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), shown


def test_a_passphrase_is_asked_for_and_never_shown() -> None:
    code = "from protocol.keys.passphrase import *; print(unlock_with(None, purpose='individual-1').secret.hex())"
    ended, shown = at_terminal(code, GOOD)
    assert ended == 0
    assert "Passphrase of individual-1: " in shown
    assert GOOD.encode().hex() in shown
    assert GOOD not in shown


def test_a_new_passphrase_is_asked_for_twice() -> None:
    code = "from protocol.keys.passphrase import *; print(ask_new('root.key').secret.hex())"
    ended, shown = at_terminal(code, GOOD, GOOD)
    assert ended == 0
    assert shown.count(": ") == 2
    assert GOOD.encode().hex() in shown
    assert GOOD not in shown


def test_without_a_terminal_no_input_takes_its_place() -> None:
    code = "from protocol.keys.passphrase import *; unlock_with(None, purpose='individual-1')"
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=f"{GOOD}\n",
        capture_output=True,
        text=True,
        start_new_session=True,
        env={**os.environ, "PASSPHRASE": GOOD},
        check=False,
    )
    assert done.returncode == 1
    assert "on a terminal, and here is none; use a key file instead" in done.stderr


def test_a_key_file_leaves_nothing_to_ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_key_file(tmp_path / "key.secret")
    monkeypatch.setattr(passphrase, "_ask", None)
    assert unlock_with(tmp_path / "key.secret", purpose="x") == Unlock.key_file(tmp_path / "key.secret")


@pytest.mark.parametrize(
    ("typed", "said"),
    [([""], "0 characters"), (["elevenlongx"], "11 characters"), ([GOOD, GOOD + " "], "differ")],
)
def test_a_new_passphrase_that_will_not_do_is_refused(
    monkeypatch: pytest.MonkeyPatch, typed: list[str], said: str
) -> None:
    answers = list(typed)
    monkeypatch.setattr(passphrase, "_ask", lambda prompt: answers.pop(0))
    with pytest.raises(InputError, match=said):
        ask_new("root.key")
    answers = ["twelveletter", "twelveletter"]
    assert ask_new("root.key") == Unlock.passphrase("twelveletter")


def test_the_end_of_the_input_is_an_interruption(monkeypatch: pytest.MonkeyPatch) -> None:
    def end(prompt: str) -> str:
        raise EOFError

    monkeypatch.setattr("getpass.getpass", end)
    monkeypatch.setattr("os.open", lambda *_: os.dup(0))
    with pytest.raises(KeyboardInterrupt):
        unlock_with(None, purpose="x")
