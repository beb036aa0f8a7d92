"""Node processes of a simulation: how their end is told, and that none is left."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from protocol.errors import RunFailedError
from sims.processes import NodeProcess, NodeProcesses, Process, alive, descendants, end_all

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
SLEEPER = "import time; time.sleep(60)"


def sleeper(code: str = SLEEPER) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-c", code], start_new_session=True)


def below(pid: int, count: int) -> list[Process]:
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
    assert "--resume" in str(error.value)


def test_a_node_that_cannot_start_says_why(tmp_path: Path) -> None:
    with NodeProcesses() as nodes:
        nodes.start(
            "individual", "individual-1", tmp_path / "none.toml", socket=tmp_path / "s", state=tmp_path / "state"
        )
        with pytest.raises(RunFailedError, match=r"exit code 2 \(error: cannot read the configuration .*none.toml"):
            nodes.wait_until_listening()


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


def test_another_process_of_the_same_number_is_not_taken_for_it() -> None:
    process = sleeper()
    try:
        (own,) = [found for found in descendants(os.getpid()) if found.pid == process.pid]
        stranger = Process(own.pid, own.started + 1)
        assert alive(own)
        assert not alive(stranger)
        end_all([stranger], grace=0.1)
        assert alive(own)
    finally:
        process.kill()
        process.wait()
    assert not alive(own)
