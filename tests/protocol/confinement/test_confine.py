"""Confinement: what a confined process can still do and what not, beside one that is not confined."""

import json
import os
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Sequence
from pathlib import Path

import pytest

from protocol.confinement import guards
from protocol.confinement.guards import GUARDS
from protocol.errors import InputError
from protocol.node import confine, reachable_files
from protocol.node.configuration import NodeTable
from tests import corner
from tests.protocol.parties import ROOT, RUN

confined_only = pytest.mark.skipif(not confine.offered(), reason="this kernel does not confine a process")


def table(folder: Path, **changes: object) -> NodeTable:
    for name in ("data", "state", "site"):
        (folder / name).mkdir(exist_ok=True)
    given: dict[str, object] = {
        "role": "individual",
        "party": "individual-1",
        "data": folder / "data",
        "state": folder / "state",
        "socket": folder / "site" / "node.sock",
        "secret": folder / "site" / "socket.secret",
        "key": folder / "site" / "signing.key",
        "encryption_key": folder / "site" / "encryption.key",
        "trust": folder / "site" / "trust.json",
        "root": ROOT.public_hex,
        "run_id": RUN,
        "device": "cpu",
    }
    return NodeTable.model_validate(given | changes)


def run(folder: Path, code: str, *, confined: bool, read_only: Sequence[Path] = ()) -> dict[str, str]:
    """Run ``code`` in a process of its own: ``attempt(name, function)`` notes "done" or the error's name.

    Args:
        read_only: folders that nobody can write there.
    """
    node = table(folder)
    program = f"""
        import json, os, sys
        from pathlib import Path
        from protocol.confinement import guards
        from protocol.node import reachable_files as rules, confine
        from tests.protocol.confinement.test_confine import table
        folder = Path({str(folder)!r})
        outcomes = {{}}
        def attempt(name, function):
            try:
                function()
                outcomes[name] = "done"
            except OSError as error:
                outcomes[name] = type(error).__name__
        node = table(folder)
        import socket
        one, other = socket.socketpair()
        confine.apply(node, ["protocol"], unconfined={not confined})
    """
    text = textwrap.dedent(program) + textwrap.dedent(code) + "\nprint(json.dumps(outcomes))\n"
    # These tests' own modules load numpy, whose library would start threads.
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", text]
    if read_only:
        command = corner.in_corner(command, read_only=read_only)
    done = subprocess.run(command, env=one_thread, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert node.state.is_dir()
    outcomes: dict[str, str] = json.loads(done.stdout)
    return outcomes


@confined_only
@pytest.mark.skipif(bool(corner.refused()), reason=corner.refused())
def test_a_node_is_confined_where_the_temporary_folder_is_read_only() -> None:
    """As in a container whose root is: that nothing can be written there is no sign of confinement, nor of none."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        write = 'attempt("write to /dev/shm", lambda: (folder.parent / "new").write_bytes(b"x"))'
        # It would not start if a guard did not hold.
        confined = run(Path(folder), write, confined=True, read_only=[Path("/tmp"), Path("/var/tmp")])
        assert confined == {"write to /dev/shm": "PermissionError"}


FILES = """
    attempt("read own data", lambda: (folder / "data" / "image").read_bytes())
    attempt("write own state", lambda: (folder / "state" / "new").write_bytes(b"x"))
    attempt("replace in own state", lambda: os.replace(folder / "state" / "new", folder / "state" / "old"))
    attempt("remove from own state", lambda: (folder / "state" / "old").unlink())
    attempt("write own data", lambda: (folder / "data" / "new").write_bytes(b"x"))
    attempt("read another's file", lambda: (folder / "other" / "secret").read_bytes())
    attempt("write another's file", lambda: (folder / "other" / "secret").write_bytes(b"x"))
    attempt("cut another's file", lambda: os.truncate(folder / "other" / "secret", 0))
    attempt("list another's folder", lambda: os.listdir(folder / "other"))
    attempt("link it here", lambda: os.link(folder / "other" / "secret", folder / "state" / "link"))
    attempt("follow a link to it", lambda: (folder / "state" / "symbolic").read_bytes())
"""


@confined_only
def test_a_confined_process_reads_its_data_writes_its_state_and_reaches_no_other_file(tmp_path: Path) -> None:
    for confined in (False, True):
        folder = tmp_path / str(confined)
        (folder / "other").mkdir(parents=True)
        (folder / "other" / "secret").write_text("secret")
        table(folder)
        (folder / "data" / "image").write_text("image")
        (folder / "state" / "symbolic").symlink_to(folder / "other" / "secret")
        outcomes = run(folder, FILES, confined=confined)
        if not confined:
            # The control: the same tries, and nothing stops them.
            assert set(outcomes.values()) == {"done"}, outcomes
            continue
        allowed = ("read own data", "write own state", "replace in own state", "remove from own state")
        assert {name for name, outcome in outcomes.items() if outcome == "done"} == set(allowed)
        assert {outcomes[name] for name in outcomes if name not in allowed} == {"PermissionError"}, outcomes
        assert (folder / "other" / "secret").read_text() == "secret"


def test_an_unconfined_process_claims_nothing() -> None:
    found = guards.not_confined()
    assert not found.enforced
    assert [guard.name for guard in found.guards] == list(GUARDS)
    assert not any(guard.enforced for guard in found.guards)
    assert found.line.startswith("unconfined")


def test_looking_at_an_unconfined_process_finds_no_guard() -> None:
    """The control of every guard's probe: where nothing is enforced, it says so."""
    code = "from protocol.confinement import guards; print([g.name for g in guards.look().guards if g.enforced])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


@confined_only
def test_a_confined_node_makes_no_child_and_starts_no_program(tmp_path: Path) -> None:
    code = """
        import subprocess
        attempt("fork", lambda: os.fork() or os._exit(0))
        attempt("spawn", lambda: os.posix_spawn("/bin/true", ["true"], {}))
        attempt("program", lambda: subprocess.run(["/bin/true"], check=True))
        attempt("in place", lambda: os.execv("/no-such-program", ["none"]))
        import threading
        thread = threading.Thread(target=lambda: outcomes.update(thread="done"))
        thread.start()
        thread.join()
    """
    refused = dict.fromkeys(("fork", "spawn", "program", "in place"), "PermissionError")
    assert run(tmp_path, code, confined=True) == {**refused, "thread": "done"}
    # The control: what fails there fails because there is no such program.
    done = dict.fromkeys(refused, "done") | {"in place": "FileNotFoundError", "thread": "done"}
    assert run(tmp_path, code, confined=False) == done


@confined_only
def test_a_confined_node_sees_nothing_of_other_processes_and_of_the_network(tmp_path: Path) -> None:
    code = """
        import fcntl, socket
        for path in ("self/net/unix", "self/net/dev", "self/mountinfo", "1/stat", "stat", "loadavg", "self/mounts"):
            attempt(path, lambda: Path("/proc", path).read_bytes())
        attempt("processes", lambda: os.listdir("/proc"))
        attempt("groups", lambda: os.listdir("/sys/fs"))
        attempt("interfaces", lambda: os.listdir("/sys/class/net"))
        allowed = {}
        for path in ("cpuinfo", "meminfo", "self/status", "self/maps"):
            allowed[path] = bool(Path("/proc", path).read_bytes())
        outcomes["allowed"] = allowed
    """
    seen = run(tmp_path, code, confined=True)
    assert set(seen.pop("allowed").values()) == {True}  # type: ignore[attr-defined]
    assert set(seen.values()) == {"PermissionError"}, seen
    control = run(tmp_path, code, confined=False)
    control.pop("allowed")
    assert set(control.values()) == {"done"}, control


@confined_only
def test_temporary_files_lie_in_the_processs_own_state(tmp_path: Path) -> None:
    code = """
        import tempfile
        outcomes["folder"] = tempfile.gettempdir()
        with tempfile.TemporaryFile() as file:
            file.write(b"x")
    """
    assert run(tmp_path, code, confined=True)["folder"] == str(tmp_path / "state" / "temporary")
    assert os.stat(tmp_path / "state" / "temporary").st_mode & 0o777 == 0o700


def test_data_inside_the_state_and_state_inside_the_data_are_refused(tmp_path: Path) -> None:
    (tmp_path / "state" / "data").mkdir(parents=True)
    with pytest.raises(InputError, match=r"lies inside node\.state"):
        reachable_files.check_apart(table(tmp_path, data=tmp_path / "state" / "data"))
    (tmp_path / "data" / "state").mkdir(parents=True)
    with pytest.raises(InputError, match=r"lies inside node\.data"):
        reachable_files.check_apart(table(tmp_path, state=tmp_path / "data" / "state"))
    # A link does not hide it.
    (tmp_path / "elsewhere").symlink_to(tmp_path / "data" / "state")
    with pytest.raises(InputError, match=r"lies inside node\.data"):
        reachable_files.check_apart(table(tmp_path, state=tmp_path / "elsewhere"))
    reachable_files.check_apart(table(tmp_path))


def test_the_trust_stores_folder_holds_no_folder_but_the_nodes_own(tmp_path: Path) -> None:
    # As ``init`` lays them out: beside the state, the socket, and a link.
    together = {"trust": tmp_path / "trust.json"}
    (tmp_path / "link").symlink_to("/usr")
    with pytest.raises(InputError, match=r"site.*folder of its own") as refused:
        reachable_files.check_apart(table(tmp_path, **together, socket=tmp_path / "node.sock"))
    assert str(tmp_path / "site") in str(refused.value)
    node = table(tmp_path, **together)
    reachable_files.check_apart(node)
    (tmp_path / "other-party").mkdir()
    with pytest.raises(InputError, match=r"other-party as well"):
        reachable_files.check_apart(node)


@pytest.mark.parametrize("name", ["policy", "trust", "secret", "key", "encryption_key", "key_file"])
def test_what_a_node_starts_with_lies_where_it_cannot_write(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=rf"node\.{name} .* lies inside node\.state"):
        reachable_files.check_apart(table(tmp_path, **{name: tmp_path / "state" / "file"}))
    reachable_files.check_apart(table(tmp_path, **{name: tmp_path / "site" / "file"}))


def test_a_configuration_that_the_node_could_write_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"configuration .* lies inside node\.state"):
        reachable_files.check_apart(table(tmp_path), tmp_path / "state" / "config.toml")
    reachable_files.check_apart(table(tmp_path), tmp_path / "site" / "config.toml")


@confined_only
@pytest.mark.parametrize(("profile", "threads"), [("NODE", 1), ("NODE", 2), ("COURIER", 1), ("COURIER", 2)])
def test_a_node_with_a_second_thread_is_not_confined(tmp_path: Path, profile: str, threads: int) -> None:
    """That thread would stay outside. Refused before anything is changed. A courier's others end when it becomes its
    program."""
    (tmp_path / "temporary").write_text("kept")
    code = f"""
        import os, threading
        from pathlib import Path
        from protocol.confinement import guards, landlock
        from protocol.node import reachable_files as rules, confine
        from protocol.errors import RunFailedError
        over = threading.Event()
        for _ in range({threads} - 1):
            threading.Thread(target=over.wait).start()
        own = Path({str(tmp_path)!r})
        rules = rules.program_rules(["protocol"]) | {{own: landlock.OWN}}
        try:
            print(confine.confine(rules, own, guards.{profile}).enforced)
        except RunFailedError as error:
            print(error, os.listdir("/") != [])
        over.set()
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    if threads == 1 or profile == "COURIER":
        assert done.stdout == "True\n"
        # What stood in the way of its folder, a plain file, is gone.
        assert (tmp_path / "temporary").is_dir()
    else:
        assert "second thread" in done.stdout
        assert done.stdout.endswith("True\n")
        assert (tmp_path / "temporary").read_text() == "kept"


@confined_only
@pytest.mark.parametrize("made", ["file", "link", "folder"])
def test_whatever_stands_where_its_temporary_folder_belongs_makes_way(tmp_path: Path, made: str) -> None:
    table(tmp_path)
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").write_text("kept")
    for name in ("temporary", "cache"):
        path = tmp_path / "state" / name
        if made == "file":
            path.write_text("x")
        elif made == "link":
            path.symlink_to(tmp_path / "kept")
        else:
            path.mkdir()
            (path / "old").write_text("x")
    run(tmp_path, "", confined=True)
    for name in ("temporary", "cache"):
        path = tmp_path / "state" / name
        assert path.is_dir()
        assert not path.is_symlink()
        assert not list(path.iterdir())
    assert (tmp_path / "kept" / "file").read_text() == "kept"


@confined_only
def test_a_message_that_could_carry_a_descriptor_is_neither_sent_nor_taken(tmp_path: Path) -> None:
    code = """
        attempt("send bytes", lambda: other.sendall(b"xy"))
        attempt("take bytes", lambda: one.recv(1))
        attempt("take a message", lambda: one.recvmsg(1, 64))
        attempt("send a descriptor", lambda: socket.send_fds(other, [b"x"], [0]))
    """
    assert set(run(tmp_path, code, confined=False).values()) == {"done"}
    assert run(tmp_path, code, confined=True) == {
        "send bytes": "done",
        "take bytes": "done",
        "take a message": "PermissionError",
        "send a descriptor": "PermissionError",
    }
