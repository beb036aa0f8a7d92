"""A start that is refused because of what it is given: it leaves everything as it was."""

import errno
import fcntl
import json
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from protocol.exchange.collective_ledger import CollectiveLedger
from protocol.exchange.individual_ledger import IndividualLedger
from protocol.files import state_files
from protocol.keys.key_file import Unlock, make_key_file
from protocol.keys.signing_key import SigningKey
from protocol.node import confine
from protocol.trust.role import Role
from protocol.trust.trust_file import write_trust
from protocol.trust.trust_store import TrustStore
from tests.protocol.made_node import PARTNER, ROOT, empty_store, make_node, other_role, tree

ROOT_FOLDER = Path(__file__).parents[3]

#: Starts the nodes of several configurations, one after the other, each of which is to be refused: codes and lines.
STARTS = f"""
    import contextlib, io, json, sys
    sys.path.insert(0, {str(ROOT_FOLDER)!r})
    from pathlib import Path
    from protocol.node.launcher import launch
    from protocol.commands.terminal import exit_code
    said = []
    for config in sys.argv[1:]:
        line = io.StringIO()
        names = "protocol.node.configuration:NodeConfiguration", "tests.protocol.fake_program:make"
        with contextlib.redirect_stderr(line):
            code = exit_code(lambda: launch(Path(config), None, *names))
        said.append([code, line.getvalue()])
    print(json.dumps(said))
"""


def store_of(home: Path, store: TrustStore, root: SigningKey = ROOT) -> None:
    (home / "trust.json").unlink()
    write_trust(home / "trust.json", store, root)


def changed(before: str, after: str) -> Callable[[Path, Role], None]:
    def change(home: Path, _: Role) -> None:
        text = (home / "config.toml").read_text()
        assert text.count(before) == 1
        (home / "config.toml").write_text(text.replace(before, after))

    return change


def without_the_collective(home: Path, role: Role) -> None:
    own = SigningKey.load(home / "signing.key", Unlock.key_file(home / "key.secret")).public_hex
    given = (PARTNER.public_hex, "partner") if role == "collective" else (own, "individual-1")
    store_of(home, empty_store().with_key(given[0], "individual", given[1]))


def of_another_root(home: Path, role: Role) -> None:
    root = SigningKey.from_seed(b"x" * 32)
    store_of(home, empty_store(root).with_key(PARTNER.public_hex, other_role(role), "partner"), root)


def another_key_file(home: Path, _: Role) -> None:
    (home / "key.secret").unlink()
    make_key_file(home / "key.secret")


def a_link(home: Path, _: Role) -> None:
    (home / "signing.key").rename(home / "elsewhere.key")
    (home / "signing.key").symlink_to("elsewhere.key")


#: What is wrong, how it comes about, and how the start ends.
FAULTS: dict[str, tuple[Callable[[Path, Role], object], int]] = {
    "no trust store": (lambda home, _: (home / "trust.json").unlink(), 2),
    "an empty trust store": (lambda home, _: store_of(home, empty_store()), 2),
    "a trust store without the collective": (without_the_collective, 2),
    "a trust store of another root": (of_another_root, 1),
    "a trust store of no form": (lambda home, _: (home / "trust.json").write_text("{}"), 1),
    "a trust store that is a folder": (changed('trust = "trust.json"', 'trust = "."'), 2),
    "no signing key": (lambda home, _: (home / "signing.key").unlink(), 2),
    "a signing key that others read": (lambda home, _: (home / "signing.key").chmod(0o640), 2),
    "a signing key that is a link": (a_link, 2),
    "a signing key of no form": (lambda home, _: (home / "signing.key").write_bytes(b"key"), 2),
    "a key file that others read": (lambda home, _: (home / "key.secret").chmod(0o604), 2),
    "a key file that is too short": (lambda home, _: (home / "key.secret").write_bytes(b"key"), 2),
    "a key file of other keys": (another_key_file, 2),
    "no passphrase": (changed('key_file = "key.secret"', 'key_file = "none"'), 2),
    "a socket secret that others read": (lambda home, _: (home / "socket.secret").chmod(0o644), 2),
    "no policy": (changed('policy = "none"', 'policy = "policy.toml"'), 2),
    "something else in the socket's place": (lambda home, _: (home / "node.sock").write_text("mine"), 2),
    "the state within the images": (changed('state = "state"', 'state = "../data/state"'), 2),
}


@pytest.mark.skipif(not confine.offered(), reason="this kernel does not confine a process")
@pytest.mark.parametrize("role", ["collective", "individual"])
@pytest.mark.parametrize("ran_before", [False, True])
def test_a_refused_start_leaves_everything_as_it_was(tmp_path: Path, role: Role, ran_before: bool) -> None:
    configurations = []
    for number, (break_it, _) in enumerate(FAULTS.values()):
        home, data = tmp_path / str(number) / "node", tmp_path / str(number) / "data"
        data.mkdir(parents=True)
        make_node(home, role, data)
        if ran_before:
            (home / "state").mkdir(mode=0o700)
            (home / "state" / "node.log").write_text("as it was\n")
        break_it(home, role)
        configurations.append(str(home / "config.toml"))
    before = tree(tmp_path)
    command = [sys.executable, "-c", textwrap.dedent(STARTS), *configurations]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, start_new_session=True, check=False)
    assert done.returncode == 0, done.stderr
    found = dict(zip(FAULTS, json.loads(done.stdout), strict=True))
    assert {name: code for name, (code, _) in found.items()} == {name: code for name, (_, code) in FAULTS.items()}, (
        found
    )
    assert {name for name, (_, line) in found.items() if line.count("\n") != 1} == set(), found
    after = tree(tmp_path)
    assert {name for name in {*before, *after} if before.get(name) != after.get(name)} == set()


@pytest.mark.skipif(not confine.offered(), reason="this kernel does not confine a process")
def test_that_another_node_runs_is_said_before_a_passphrase_is_asked_for(tmp_path: Path) -> None:
    """Its keys need a passphrase that nobody gives here: without the other node, that is what is said."""
    home, data = tmp_path / "node", tmp_path / "data"
    data.mkdir()
    make_node(home, "individual", data)
    changed('key_file = "key.secret"', 'key_file = "none"')(home, "individual")
    (home / "state").mkdir(mode=0o700)
    command = [sys.executable, "-c", textwrap.dedent(STARTS), str(home / "config.toml")]

    def start() -> list[object]:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, start_new_session=True, check=True)
        (said,) = json.loads(done.stdout)
        return [said[0], "another node" in said[1]]

    with state_files.held(home / "state"):
        assert start() == [1, True]
    assert start() == [2, False]


@pytest.mark.skipif(not confine.offered(), reason="this kernel does not confine a process")
@pytest.mark.parametrize("role", ["collective", "individual"])
def test_a_state_with_the_other_roles_ledger_is_named_and_kept(tmp_path: Path, role: Role) -> None:
    """It is opened by a confined node only, whose socket is there by then: that goes, the ledger stays."""
    home, data = tmp_path / "node", tmp_path / "data"
    data.mkdir()
    make_node(home, role, data)
    text = (home / "config.toml").read_text()
    (home / "config.toml").write_text(text.replace('device = "auto"', 'device = "cpu"'))
    state = home / "state"
    state.mkdir(mode=0o700)
    (IndividualLedger if role == "collective" else CollectiveLedger)(state).close()
    before = tree(state)
    command = [sys.executable, "-m", f"{role}_node", "start", "--config", str(home / "config.toml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, start_new_session=True, check=False)
    assert done.returncode == 1
    other = "an individual" if role == "collective" else "a collective"
    assert f"is the ledger of {other}" in done.stderr
    assert done.stderr.count("\n") == 1
    # The warden has let go of the lock when it has done its last work.
    descriptor = os.open(state, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    os.close(descriptor)
    assert not (home / "node.sock").exists()
    after = tree(state)
    assert {name: after[name] for name in before} == before


def small_disks_offered() -> bool:
    """Whether a process here can have a small disk of its own, for itself alone."""
    if shutil.which("unshare") is None:
        return False
    command = ["unshare", "--map-root-user", "--mount", "mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", "/mnt"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(not confine.offered(), reason="this kernel does not confine a process")
@pytest.mark.skipif(not small_disks_offered(), reason="this machine gives no process a disk of its own")
@pytest.mark.parametrize("command", ["start", "doctor"])
def test_a_full_disk_is_one_line(tmp_path: Path, command: str) -> None:
    home, data = tmp_path / "node", tmp_path / "data"
    data.mkdir()
    make_node(home, "individual", data)
    (home / "state").mkdir(mode=0o700)
    fill = f"mount -t tmpfs -o size=16k,mode=700 tmpfs {home}/state; dd if=/dev/zero of={home}/state/fill bs=4k"
    run = f"{sys.executable} -m individual_node {command} --config {home}/config.toml"
    given = ["unshare", "--map-root-user", "--mount", "sh", "-c", f"({fill}) 2> {os.devnull}; {run}"]
    done = subprocess.run(given, capture_output=True, text=True, timeout=240, start_new_session=True, check=False)
    assert done.returncode == 1, done
    said = done.stderr if command == "start" else done.stdout
    assert os.strerror(errno.ENOSPC) in said
    assert "Traceback" not in done.stdout + done.stderr
    if command == "start":
        assert done.stderr.count("\n") == 1
