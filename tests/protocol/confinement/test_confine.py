"""Confinement: what a confined process can still do and what not, beside one that is not confined."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from protocol.confinement import confine, seccomp
from protocol.confinement.confine import GUARDS
from protocol.errors import InputError
from protocol.node_configuration import NodeTable
from tests.protocol.parties import ROOT, RUN

confined_only = pytest.mark.skipif(not confine.offered(), reason="this kernel does not confine a process")


def table(folder: Path, **changes: object) -> NodeTable:
    for name in ("data", "state", "site"):
        (folder / name).mkdir(exist_ok=True)
    given: dict[str, object] = {
        "party": "individual-1",
        "data": folder / "data",
        "state": folder / "state",
        "socket": folder / "site" / "node.sock",
        "secret": folder / "site" / "socket.secret",
        "key": folder / "site" / "signing.key",
        "trust": folder / "site" / "trust.json",
        "root": ROOT.public_hex,
        "run_id": RUN,
        "device": "cpu",
    }
    return NodeTable.model_validate(given | changes)


def run(folder: Path, code: str, *, confined: bool) -> dict[str, str]:
    """Run ``code`` in a process of its own: ``attempt(name, function)`` notes "done" or the error's name."""
    node = table(folder)
    program = f"""
        import json, os, sys
        from pathlib import Path
        from protocol.confinement import confine
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
        confine.apply(node, ["protocol"], unconfined={not confined})
    """
    text = textwrap.dedent(program) + textwrap.dedent(code) + "\nprint(json.dumps(outcomes))\n"
    # These tests' own modules load numpy, whose library would start threads.
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", text]
    done = subprocess.run(command, env=one_thread, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert node.state.is_dir()
    outcomes: dict[str, str] = json.loads(done.stdout)
    return outcomes


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
        # A link into another folder fails as one between two file systems does.
        assert outcomes.pop("link it here") == "OSError"
        assert {outcomes[name] for name in outcomes if name not in allowed} == {"PermissionError"}, outcomes
        assert (folder / "other" / "secret").read_text() == "secret"


def test_an_unconfined_process_claims_nothing() -> None:
    found = confine.not_confined()
    assert not found.enforced
    assert [guard.name for guard in found.guards] == list(GUARDS)
    assert not any(guard.enforced for guard in found.guards)
    assert found.line.startswith("unconfined")


def test_looking_at_an_unconfined_process_finds_no_guard() -> None:
    """The control of every guard's probe: where nothing is enforced, it says so."""
    code = "from protocol.confinement import confine; print([g.name for g in confine.look().guards if g.enforced])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


@confined_only
def test_a_child_and_a_started_program_inherit_everything(tmp_path: Path) -> None:
    inner = f"""
import os
from protocol.confinement import confine
print([guard.name for guard in confine.look().guards if not guard.enforced])
try:
    os.kill({os.getpid()}, 0)
except PermissionError:
    print("no signal to an outsider")
"""
    code = f"""
        import subprocess
        done = subprocess.run([sys.executable, "-c", {inner!r}], capture_output=True, text=True)
        outcomes["child"] = done.stdout + done.stderr
    """
    # Its own children are inside with it, so that it may send them signals.
    assert run(tmp_path, code, confined=True)["child"] == "['signals']\nno signal to an outsider\n"


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
        confine.check_apart(table(tmp_path, data=tmp_path / "state" / "data"))
    (tmp_path / "data" / "state").mkdir(parents=True)
    with pytest.raises(InputError, match=r"lies inside node\.data"):
        confine.check_apart(table(tmp_path, state=tmp_path / "data" / "state"))
    # A link does not hide it.
    (tmp_path / "elsewhere").symlink_to(tmp_path / "data" / "state")
    with pytest.raises(InputError, match=r"lies inside node\.data"):
        confine.check_apart(table(tmp_path, state=tmp_path / "elsewhere"))
    confine.check_apart(table(tmp_path))


def test_the_trust_stores_folder_holds_no_folder_but_the_nodes_own(tmp_path: Path) -> None:
    # As ``init`` lays them out: beside the state, the socket, and a link.
    together = {"trust": tmp_path / "trust.json"}
    (tmp_path / "link").symlink_to("/usr")
    with pytest.raises(InputError, match=r"site.*folder of its own") as refused:
        confine.check_apart(table(tmp_path, **together, socket=tmp_path / "node.sock"))
    assert str(tmp_path / "site") in str(refused.value)
    node = table(tmp_path, **together)
    confine.check_apart(node)
    (tmp_path / "other-party").mkdir()
    with pytest.raises(InputError, match=r"other-party as well"):
        confine.check_apart(node)
    # In the state, nothing is read that is not the node's already.
    (tmp_path / "state" / "work").mkdir()
    confine.check_apart(table(tmp_path, trust=tmp_path / "state" / "trust.json"))


def test_a_policy_that_the_node_could_write_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"node\.policy .* lies inside node\.state"):
        confine.check_apart(table(tmp_path, policy=tmp_path / "state" / "policy.toml"))
    confine.check_apart(table(tmp_path, policy=tmp_path / "site" / "policy.toml"))


@confined_only
@pytest.mark.parametrize(("profile", "threads"), [("NODE", 1), ("NODE", 2), ("COURIER", 1), ("COURIER", 2)])
def test_a_node_with_a_second_thread_is_not_confined(tmp_path: Path, profile: str, threads: int) -> None:
    """That thread would stay outside. Refused before anything is changed. A courier's others end when it becomes its
    program."""
    (tmp_path / "temporary").write_text("kept")
    code = f"""
        import os, threading
        from pathlib import Path
        from protocol.confinement import confine, landlock
        from protocol.errors import RunFailedError
        over = threading.Event()
        for _ in range({threads} - 1):
            threading.Thread(target=over.wait).start()
        own = Path({str(tmp_path)!r})
        rules = confine.program_rules(["protocol"]) | {{own: landlock.OWN}}
        try:
            print(confine.confine(rules, own, confine.{profile}).enforced)
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
        import socket
        one, other = socket.socketpair()
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


class Machine:
    """The kernel's machine for filter programs, as its documentation describes it: an independent reading of them."""

    def __init__(self, program: bytes) -> None:
        self.instructions = [
            (int.from_bytes(program[i : i + 2], "little"), program[i + 2], program[i + 3],
             int.from_bytes(program[i + 4 : i + 8], "little"))
            for i in range(0, len(program), 8)
        ]  # fmt: skip

    def verdict(self, architecture: int, number: int, *arguments: int) -> int:
        values = [*arguments, *([0] * (6 - len(arguments)))]
        data = number.to_bytes(4, "little") + architecture.to_bytes(4, "little") + bytes(8)
        data += b"".join(value.to_bytes(8, "little") for value in values)
        accumulator, at = 0, 0
        while True:
            code, if_true, if_false, value = self.instructions[at]
            at += 1
            if code == 0x20:
                accumulator = int.from_bytes(data[value : value + 4], "little")
            elif code == 0x54:
                accumulator &= value
            elif code == 0x06:
                return value
            else:
                holds = {0x15: accumulator == value, 0x35: accumulator >= value, 0x45: bool(accumulator & value)}[code]
                at += if_true if holds else if_false


ALLOW, EPERM, ENOSYS, EOPNOTSUPP, DONE_NOTHING = 0x7FFF0000, 0x00050001, 0x00050026, 0x0005005F, 0x00050000


@pytest.mark.parametrize(("machine", "column", "architecture"), [("x86_64", 0, 0xC000003E), ("aarch64", 1, 0xC00000B7)])
def test_the_filter_refuses_what_it_names_and_nothing_else(machine: str, column: int, architecture: int) -> None:
    filters = Machine(seccomp.filter_program(machine))
    refused = seccomp.NETWORK | seccomp.CHANGES_OF_METADATA | seccomp.FORBIDDEN
    verdicts = {numbers[column]: EPERM for numbers in refused.values()}
    verdicts |= {numbers[column]: EOPNOTSUPP for numbers in seccomp.ATTRIBUTES.values()}
    if machine == "x86_64":
        older = seccomp.X86_FORBIDDEN | seccomp.X86_CHANGES_OF_METADATA
        verdicts |= dict.fromkeys(older.values(), EPERM)
    special = {"x86_64": {41, 53, 56, 435}, "aarch64": {198, 199, 220, 435}}[machine]
    for number in range(600):
        if number in special:
            continue
        assert filters.verdict(architecture, number) == verdicts.get(number, ALLOW), number
    # For itself (0) and for another process.
    for numbers in seccomp.FOR_ITSELF.values():
        assert [filters.verdict(architecture, numbers[column], pid) for pid in (0, 1)] == [ALLOW, EPERM]
    ioctl = {"x86_64": 16, "aarch64": 29}[machine]
    assert {filters.verdict(architecture, ioctl, 0, request) for request in seccomp.IOCTLS} == {EPERM}
    # The kernel takes the low 32 bits of a request too; a terminal's size may be asked for.
    assert filters.verdict(architecture, ioctl, 0, 0x5412 | 1 << 32) == EPERM
    assert filters.verdict(architecture, ioctl, 0, 0x5413) == ALLOW
    make, pair, clone, clone3 = {"x86_64": (41, 53, 56, 435), "aarch64": (198, 199, 220, 435)}[machine]
    assert filters.verdict(architecture, clone3) == ENOSYS
    assert filters.verdict(architecture, clone, 0x11) == ALLOW
    assert filters.verdict(architecture, clone, 0x11 | 0x10000000) == EPERM
    for call in (make, pair):
        assert filters.verdict(architecture, call, 1, 1 | 0x80000) == ALLOW
        assert filters.verdict(architecture, call, 1, 2) == EPERM
        assert {filters.verdict(architecture, call, family, 1) for family in (2, 10, 16, 17, 40)} == {EPERM}
        # The kernel takes the low 32 bits as the family; a high half must not hide it.
        assert filters.verdict(architecture, call, 2 | 1 << 32, 1) == EPERM
    # A program for another architecture is killed, x32's numbers do not exist.
    assert filters.verdict(0x40000003, 3) == 0x80000000
    if machine == "x86_64":
        assert filters.verdict(architecture, 42 | 0x40000000) == ENOSYS


@pytest.mark.parametrize(("machine", "column", "architecture"), [("x86_64", 0, 0xC000003E), ("aarch64", 1, 0xC00000B7)])
def test_a_couriers_filter_differs_in_the_network_and_in_changes_of_metadata_alone(
    machine: str, column: int, architecture: int
) -> None:
    ours = Machine(seccomp.filter_program(machine))
    couriers = Machine(seccomp.filter_program(machine, network=True))
    opened = {numbers[column] for numbers in seccomp.NETWORK.values()}
    unchanged = {numbers[column] for numbers in seccomp.CHANGES_OF_METADATA.values()}
    unchanged |= set(seccomp.X86_CHANGES_OF_METADATA.values()) if machine == "x86_64" else set()
    opened |= {"x86_64": {41, 53}, "aarch64": {198, 199}}[machine]  # socket, socketpair
    for number in range(600):
        # Arguments that the node's filter refuses: a TCP socket, a new user's namespace.
        given = (0x10000000,) if number == {"x86_64": 56, "aarch64": 220}[machine] else (2, 1)
        verdict = couriers.verdict(architecture, number, *given)
        if number in opened:
            assert (verdict, ours.verdict(architecture, number, *given)) == (ALLOW, EPERM), number
        elif number in unchanged:
            assert verdict == DONE_NOTHING, number
        else:
            assert verdict == ours.verdict(architecture, number, *given), number


def test_names_and_numbers_agree_with_the_kernels_headers() -> None:
    header = Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")
    if not header.exists():
        pytest.skip("the kernel's headers for x86-64 are not installed")
    numbers = {
        words[1].removeprefix("__NR_"): int(words[2])
        for words in map(str.split, header.read_text().splitlines())
        if len(words) == 3 and words[1].startswith("__NR_")
    }
    tables = (seccomp.NETWORK, seccomp.CHANGES_OF_METADATA, seccomp.ATTRIBUTES, seccomp.FORBIDDEN, seccomp.FOR_ITSELF)
    ours = {name: numbers[0] for table in tables for name, numbers in table.items()}
    ours |= seccomp.X86_FORBIDDEN | seccomp.X86_CHANGES_OF_METADATA
    known = {name: number for name, number in ours.items() if name in numbers}
    assert len(known) > 30
    assert known == {name: numbers[name] for name in known}
