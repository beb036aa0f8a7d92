"""The warden of a node: it notes what the kernel refused, ends with the node, and keeps the terminal from it."""

import contextlib
import errno
import fcntl
import os
import pty
import select
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from protocol.confinement.warden import refused_calls
from protocol.node import confine

pytestmark = pytest.mark.skipif(not confine.offered(), reason="this kernel does not confine a process")

#: A node that confines itself with a warden, then does ``act``.
NODE = """
    import os, sys
    from pathlib import Path
    from protocol.confinement import landlock, printer, warden
    from protocol.node import reachable_files as rules, confine
    own = Path(sys.argv[1])
    log = os.open(own / "log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    import fcntl
    lock = os.open(own / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    printing = printer.start(None, lambda line: line.replace("\\x1b", "?"))
    given = warden.start(log, None, keeps=lock)
    printing.take_streams()
    rules = rules.program_rules(["protocol"]) | {own: landlock.OWN}
    confine.confine(rules, own, warden=given)
    print("warden", given.pid, flush=True)
"""


def started(own: Path, act: str, **streams: int) -> "subprocess.Popen[str]":
    code = textwrap.dedent(NODE) + textwrap.dedent(act)
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | streams
    return subprocess.Popen([sys.executable, "-c", code, str(own)], text=True, **streams)  # type: ignore[call-overload,no-any-return]


def test_each_refused_call_is_noted_once_by_its_name_and_fails_with_eperm(tmp_path: Path) -> None:
    act = """
        import errno, socket
        for _ in range(3):
            for attempt in (lambda: os.memfd_create("x"), lambda: os.fork(), lambda: socket.socket(socket.AF_INET)):
                try:
                    attempt()
                except OSError as error:
                    print(error.errno == errno.EPERM, flush=True)
    """
    with started(tmp_path, act) as node:
        output, errors = node.communicate(timeout=60)
    assert errors == ""
    assert output.splitlines()[1:] == ["True"] * 9
    log = (tmp_path / "log").read_text()
    # By name and kind; what the guards' own trials were refused before is not noted.
    assert sorted(refused_calls(log)) == ["clone (0x1200011)", "memfd_create", "socket (0x2)"]
    assert len(log.splitlines()) == 3


def test_a_node_that_is_refused_something_all_the_time_neither_stops_nor_fills_its_log(tmp_path: Path) -> None:
    act = """
        import ctypes
        libc = ctypes.CDLL(None)
        for round in range(4):
            for kind in range(500):
                libc.prctl(1000 + kind, 0, 0, 0, 0)
        print("done")
    """
    with started(tmp_path, act) as node:
        output, _ = node.communicate(timeout=60)
    assert output.splitlines()[1:] == ["done"]
    assert 0 < len((tmp_path / "log").read_text().splitlines()) < 500


def test_a_node_has_no_child_but_its_warden_and_its_printer(tmp_path: Path) -> None:
    with started(tmp_path, "import time; time.sleep(60)") as node:
        warden = first_number(node)
        children = psutil.Process(node.pid).children
        assert until(lambda: len(children()) == 2)
        assert warden in [child.pid for child in children()]
        node.kill()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_warden_ends_with_its_node(tmp_path: Path, number: signal.Signals) -> None:
    with started(tmp_path, "import time; time.sleep(60)") as node:
        pid = first_number(node)
        assert Path(f"/proc/{pid}").exists()
        # It holds nothing of the node's but its log, its lock and the way to it.
        held = {os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir()}
        assert str(tmp_path / "log") in held
        assert {one for one in held if one.startswith("/")} <= {
            str(tmp_path / "log"),
            str(tmp_path / "lock"),
            "/dev/null",
        }
        node.send_signal(number)
        node.wait(10)
    assert until(lambda: not running(pid))


def test_the_warden_is_confined_and_no_process_of_its_node_can_signal_it(tmp_path: Path) -> None:
    act = """
        try:
            os.kill(given.pid, 9)
        except PermissionError:
            print("refused", flush=True)
        import time
        time.sleep(60)
    """
    with started(tmp_path, act) as node:
        pid = first_number(node)
        assert node.stdout is not None
        assert node.stdout.readline() == "refused\n"
        fields = dict(
            line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line
        )
        node.kill()
    assert fields["Seccomp"] == "2"
    assert fields["NoNewPrivs"] == "1"
    assert {fields[name] for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {"0" * 16}


def test_a_node_on_a_terminal_holds_none_and_what_it_prints_arrives_harmless(tmp_path: Path) -> None:
    act = """
        print([os.isatty(number) for number in (0, 1, 2)], os.read(0, 10), flush=True)
        print("\\x1b]0;title\\x07", file=sys.stderr, flush=True)
    """
    master, terminal = pty.openpty()
    try:
        with started(tmp_path, act, stdin=terminal, stdout=terminal, stderr=terminal) as node:
            os.close(terminal)
            os.write(master, b"typed\n")
            node.wait(60)
            shown = b""
            # Without an open end on the other side, reading fails once everything is read.
            with contextlib.suppress(OSError):
                while b"title" not in shown and select.select([master], [], [], 10)[0]:
                    shown += os.read(master, 4096)
    finally:
        os.close(master)
    assert b"[False, False, False] b''" in shown
    assert b"?]0;title" in shown
    assert b"\x1b" not in shown


def test_a_node_that_prints_into_a_connection_gets_nothing_from_there(tmp_path: Path) -> None:
    act = """
        import socket, stat
        print(stat.S_ISFIFO(os.fstat(1).st_mode), stat.S_ISFIFO(os.fstat(2).st_mode), flush=True)
        try:
            os.read(1, 100)
        except OSError as error:
            print(error.strerror, flush=True)
    """
    near, far = socket.socketpair()
    with started(tmp_path, act, stdout=near.fileno(), stderr=near.fileno()) as node, far:
        near.close()
        assert node.wait(60) == 0
        said = far.makefile().read()
    assert said.splitlines()[1:] == ["True True", os.strerror(errno.EBADF)]


def test_a_file_that_a_node_prints_into_with_others_is_only_appended_to(tmp_path: Path) -> None:
    act = """
        import fcntl
        for number in (1, 2):
            try:
                os.ftruncate(number, 0)
            except OSError as error:
                print("refused", flush=True)
            # Without O_APPEND the next line would stand where this descriptor stands.
            fcntl.fcntl(number, fcntl.F_SETFL, os.O_NONBLOCK)
        try:
            os.pwrite(1, b"over", 0)
        except OSError as error:
            print("refused", flush=True)
        print("error", file=sys.stderr, flush=True)
    """
    both, lines = tmp_path / "both.log", ["another program's line", "warden", "refused", "refused", "refused", "error"]
    both.write_text(lines[0] + "\n")
    with both.open("a") as file, started(tmp_path, act, stdout=file.fileno(), stderr=file.fileno()) as node:
        assert node.wait(60) == 0
        pid = int(next(line.split()[1] for line in both.read_text().splitlines() if line.startswith("warden")))
        assert until(lambda: not running(pid))
        file.write("another's last line\n")
    found = both.read_text().splitlines()
    assert found[0] == lines[0]
    assert [line.split()[0] for line in found[1:-1]] == lines[1:]
    assert found[-1] == "another's last line"


def free(lock: int) -> bool:
    """Whether nobody else holds a lock; then this process does."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def test_a_node_frees_neither_its_warden_nor_its_lock_nor_the_way_to_it(tmp_path: Path) -> None:
    act = """
        import ctypes, errno
        os.closerange(3, 64)
        # A filter of its own would keep calls from the warden.
        libc = ctypes.CDLL(None, use_errno=True)
        from protocol.confinement import system_calls
        refused = libc.syscall(system_calls.number("seccomp"), 1, 0, ctypes.create_string_buffer(16)) < 0
        print(refused and ctypes.get_errno() == errno.EPERM, flush=True)
        try:
            os.memfd_create("x")
        except OSError as error:
            print(error.errno == errno.EPERM, flush=True)
        import time
        time.sleep(60)
    """
    lock = os.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    with started(tmp_path, act) as node:
        pid = first_number(node)
        assert node.stdout is not None
        assert [node.stdout.readline(), node.stdout.readline()] == ["True\n"] * 2
        assert running(pid)
        with pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        node.kill()
        node.wait(10)
        assert until(lambda: not running(pid))
        assert until(lambda: free(lock))
    os.close(lock)


def first_number(node: "subprocess.Popen[str]") -> int:
    assert node.stdout is not None
    return int(node.stdout.readline().split()[1])


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def until(look: Callable[[], bool]) -> bool:
    for _ in range(200):
        if look():
            return True
        time.sleep(0.05)
    return False
