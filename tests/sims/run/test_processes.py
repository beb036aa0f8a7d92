"""Node processes of a simulation: how their end is told, and that none is left."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from protocol.errors import InputError, LearngeneError, RunFailedError
from sims.run.processes import NodeProcess, NodeProcesses, alive, descendants, end_all, peak_memory

SLEEPER = "import time; time.sleep(60)"


def sleeper(code: str = SLEEPER) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-c", code], start_new_session=True)


def below(pid: int, count: int) -> list[psutil.Process]:
    for _ in range(500):
        if len(found := descendants(pid)) >= count:
            return found
        time.sleep(0.01)
    raise AssertionError(f"process {pid} has no {count} descendants")


def test_a_killed_node_is_named_with_its_signal_and_its_log(tmp_path: Path) -> None:
    with NodeProcesses() as nodes:
        process = sleeper()
        nodes.nodes.append(NodeProcess("collective", tmp_path / "node.log", tmp_path / "node.sock", process))
        nodes.check_alive()
        process.kill()
        process.wait()
        with pytest.raises(RunFailedError) as error:
            nodes.check_alive()
    assert f"the node process of the collective (pid {process.pid}) was killed by signal 9" in str(error.value)
    assert str(tmp_path / "node.log") in str(error.value)


@pytest.mark.parametrize(("code", "kind"), [(2, InputError), (1, RunFailedError)])
def test_a_node_that_was_given_wrong_input_would_end_so_again(
    tmp_path: Path, code: int, kind: type[LearngeneError]
) -> None:
    (tmp_path / "node.log").write_text("error: there is no folder of images; name one\n", encoding="utf-8")
    with NodeProcesses() as nodes:
        process = sleeper(f"raise SystemExit({code})")
        nodes.nodes.append(NodeProcess("collective", tmp_path / "node.log", tmp_path / "node.sock", process))
        process.wait()
        with pytest.raises(LearngeneError, match="there is no folder of images") as error:
            nodes.check_alive()
    assert type(error.value) is kind


def test_the_most_memory_of_a_node_is_what_it_once_had(tmp_path: Path) -> None:
    megabytes = 64
    code = f"x = b'1' * ({megabytes} << 20); del x; open({str(tmp_path / 'done')!r}, 'w').close(); {SLEEPER}"
    with NodeProcesses() as nodes:
        for party, program in (("collective", code), ("individual-1", SLEEPER)):
            nodes.nodes.append(NodeProcess(party, tmp_path / "log", tmp_path / "socket", sleeper(program)))
        while not (tmp_path / "done").exists():
            time.sleep(0.01)
        found = nodes.peak_memory()
    assert found["collective"] > megabytes << 20 > found["individual-1"] > 1 << 20
    assert nodes.peak_memory() == {}  # of processes that have ended


def test_this_process_has_at_most_what_it_once_had() -> None:
    found = peak_memory()
    assert found is not None
    assert found >= 0.9 * psutil.Process().memory_info().rss


def test_a_node_that_cannot_start_says_why(tmp_path: Path) -> None:
    with NodeProcesses() as nodes:
        nodes.start(
            "individual", "individual-1", tmp_path / "none.toml", socket=tmp_path / "s", state=tmp_path / "state"
        )
        with pytest.raises(InputError, match=r"exit code 2 \(error: cannot read the configuration .*none.toml"):
            nodes.wait_until_listening()


LOG = """\
2026-11-20 10:00:00,001 INFO individual-1 starts as process 7: unconfined
2026-11-20 10:00:01,001 ERROR adapt failed: a run ago
"""
ERROR = "2026-11-20 10:00:02,001 ERROR adapt failed: choose lambda at most 3.2"
REFUSAL = "2026-11-20 10:00:02,001 WARNING refused inherit (expired): past its time"
TRACEBACK = """\
2026-11-20 10:00:02,001 ERROR adapt failed
Traceback (most recent call last):
  File "x.py", line 1, in f
    1 / 0
ZeroDivisionError: division by zero"""


@pytest.mark.parametrize(
    ("written", "reason"),
    [
        ("", ""),
        (ERROR, "adapt failed: choose lambda at most 3.2"),
        (REFUSAL, "refused inherit (expired): past its time"),
        (TRACEBACK, "ZeroDivisionError: division by zero"),
        (f"{TRACEBACK}\na line of a library", "ZeroDivisionError: division by zero"),
        (f"{TRACEBACK}\n{ERROR}", "adapt failed: choose lambda at most 3.2"),
        (f"{ERROR}\n2026-11-20 10:00:03,001 WARNING the other side of the socket went away", ERROR[30:]),
    ],
)
def test_the_reason_is_the_last_error_that_this_process_wrote(tmp_path: Path, written: str, reason: str) -> None:
    log = tmp_path / "node.log"
    log.write_text(LOG + written, encoding="utf-8")
    process = sleeper("")
    process.wait()
    assert NodeProcess("individual-1", log, tmp_path / "node.sock", process, len(LOG)).last_error == reason


def reason_in(log: Path) -> str:
    process = sleeper("")
    process.wait()
    return NodeProcess("individual-1", log, log.parent / "node.sock", process).last_error


def test_a_reason_is_short_and_steers_no_terminal(tmp_path: Path) -> None:
    log = tmp_path / "node.log"
    log.write_text(f"{ERROR} \x1b]0;mine\x07\u2028{ERROR} forged {'x' * 10_000}\n", encoding="utf-8")
    reason = reason_in(log)
    assert reason.startswith("adapt failed: choose lambda at most 3.2 \\x1b]0;mine\\x07\\u2028")
    assert len(reason) <= 450


def test_a_log_that_a_node_made_something_else_holds_nobody_up(tmp_path: Path) -> None:
    log = tmp_path / "node.log"
    os.mkfifo(log)
    assert reason_in(log) == ""
    log.unlink()
    # Of a huge one the end is read.
    with log.open("wb") as file:
        file.truncate(2**40)
        file.seek(0, os.SEEK_END)
        file.write(f"\n{ERROR}\n".encode())
    assert reason_in(log) == "adapt failed: choose lambda at most 3.2"


def test_a_node_started_again_is_not_blamed_for_what_it_said_before(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    (state / "node.log").write_text(LOG, encoding="utf-8")
    with NodeProcesses() as nodes:
        node = nodes.start("individual", "individual-1", tmp_path / "none.toml", socket=tmp_path / "s", state=state)
        assert node.process.wait(60) == 2
        assert node.last_error == ""


def test_leaving_ends_nodes_that_ignore_their_lifeline(tmp_path: Path) -> None:
    nodes = NodeProcesses()
    process = sleeper()
    nodes.nodes.append(NodeProcess("collective", tmp_path / "node.log", tmp_path / "node.sock", process))
    nodes.end(grace=0.1)
    assert process.poll() == -signal.SIGKILL
    nodes.end()


def test_descendants_are_found_in_other_sessions_and_ended() -> None:
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {SLEEPER!r}], start_new_session=True)"
    process = sleeper(code)
    try:
        (child,) = below(process.pid, 1)
        assert child in descendants(os.getpid())
        process.kill()
        process.wait()
        assert alive(child)
        end_all([child], grace=0.1)
        assert not alive(child)
    finally:
        process.kill()
        process.wait()
