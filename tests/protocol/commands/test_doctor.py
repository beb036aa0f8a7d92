"""``doctor``: it finds what is wrong and what is not enforced, claims what was tried alone, and changes nothing."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from protocol.commands.doctor_findings import Finding, starts
from protocol.commands.doctor_machine import examine_machine
from protocol.commands.doctor_node import examine_node
from protocol.commands.init_command import initialise
from protocol.confinement import guards
from protocol.files.private_folders import private_folder
from protocol.keys.party_keys import NodeKeys
from protocol.node import confine
from protocol.transport.frame import Frame
from protocol.transport.simulation_paths import is_simulated, simulation_paths
from protocol.trust.role import Role
from protocol.trust.trust_file import write_trust
from protocol.trust.trust_store import TrustStore
from tests.protocol.made_node import PARTNER, other_role
from tests.protocol.node.test_server import Started
from tests.protocol.parties import NOW, ROOT, STRANGER

MODEL = "protocol.node.configuration:NodeConfiguration"
#: Said of every machine and every user, and no fault of a node's.
CIRCUMSTANCES = {"users", "clock", "GPU"}

confined_only = pytest.mark.skipif(not confine.offered(), reason="this kernel does not confine a process")


@dataclass
class Node:
    """A node that would start: its folder, its keys, and the store that pins them."""

    folder: Path
    data: Path
    keys: NodeKeys
    trust: TrustStore

    @property
    def config(self) -> Path:
        return self.folder / "config.toml"

    def write_trust(self, store: TrustStore) -> None:
        write_trust(self.folder / "trust.json", store, ROOT)

    def set(self, before: str, after: str) -> None:
        text = self.config.read_text()
        assert text.count(before) == 1
        self.config.write_text(text.replace(before, after))

    def examine(self, now: int = NOW) -> dict[str, Finding]:
        findings = examine_node(self.config, "individual", MODEL, gpu=False, now=now)
        found = {finding.subject: finding for finding in findings}
        assert len(found) == len(findings)
        for finding in findings:
            assert (finding.verdict == "ok") or finding.advice, finding
            assert not (finding.stops and finding.verdict == "ok")
        return found


@pytest.fixture
def node(tmp_path: Path) -> Node:
    data = tmp_path / "data"
    data.mkdir(mode=0o700)
    keys = initialise(tmp_path / "node", role="individual", data=data, party="individual-1", root=ROOT.public_hex)
    store = TrustStore(root=ROOT.public_hex, expires_at=NOW + 40 * 86_400)
    store = store.with_key(keys.signing.public_hex, "individual", "individual-1")
    store = store.with_key(PARTNER.public_hex, "collective", "collective")
    made = Node(tmp_path / "node", data, keys, store)
    made.write_trust(store)
    made.set('device = "auto"', 'device = "cpu"')
    return made


def snapshot(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    return {
        str(path.relative_to(folder)): (
            path.lstat().st_mode,
            path.lstat().st_uid,
            path.read_bytes() if path.is_file() else b"",
        )
        for path in sorted(folder.rglob("*"))
    }


@confined_only
@pytest.mark.parametrize("ran", [False, True])
def test_a_node_that_would_start_starts(node: Node, ran: bool) -> None:
    if ran:
        # At work while it is looked at: its temporary files stay.
        started = Started(node.folder, unconfined=False, prelude="import tests.protocol.fake_program")
        started.wait_until_listening()
        started.ask(Frame("echo"))
        (node.folder / "state" / "temporary" / "in-use").write_text("x")
    before = snapshot(node.folder)
    found = node.examine()
    assert snapshot(node.folder) == before
    assert {name for name, finding in found.items() if finding.verdict != "ok"} <= CIRCUMSTANCES
    assert starts(found.values())
    assert set(guards.GUARDS) <= found.keys()
    assert ("works there now" in found["folders"].found) == ran
    assert "40 days left" in found["trust"].found
    assert node.keys.signing.fingerprint in found["keys"].found
    if ran:
        assert started.end()[0] == 0


def shared_key_file(node: Node) -> None:
    (node.folder / "key.secret").chmod(0o644)


def world_readable_key(node: Node) -> None:
    (node.folder / "signing.key").chmod(0o644)


def open_secret(node: Node) -> None:
    (node.folder / "socket.secret").chmod(0o644)


def no_trust(node: Node) -> None:
    (node.folder / "trust.json").unlink()


def other_root(node: Node) -> None:
    node.set(ROOT.public_hex, STRANGER.public_hex)


def revoked(node: Node) -> None:
    node.write_trust(node.trust.without_key(node.keys.signing.keyid, "compromised"))


def without_a_collective(node: Node) -> None:
    node.write_trust(node.trust.without_key(PARTNER.keyid, "retired"))


def not_pinned(node: Node) -> None:
    node.write_trust(TrustStore(root=ROOT.public_hex, expires_at=NOW + 86_400))


def no_data(node: Node) -> None:
    node.data.rmdir()


def state_in_data(node: Node) -> None:
    node.set('state = "state"', f'state = "{node.data}/state"')


def open_state(node: Node) -> None:
    (node.folder / "state").mkdir()
    (node.folder / "state").chmod(0o755)


def open_policy(node: Node) -> None:
    (node.folder / "policy.toml").write_text("")
    (node.folder / "policy.toml").chmod(0o666)
    node.set('policy = "none"', 'policy = "policy.toml"')


def unknown_policy(node: Node) -> None:
    (node.folder / "policy.toml").write_text("colour = 1")
    node.set('policy = "none"', 'policy = "policy.toml"')


def long_socket(node: Node) -> None:
    node.set('socket = "node.sock"', f'socket = "{"s" * 120}"')


def open_socket_folder(node: Node) -> None:
    (node.folder / "door").mkdir()
    (node.folder / "door").chmod(0o755)
    node.set('socket = "node.sock"', 'socket = "door/node.sock"')


def unknown_setting(node: Node) -> None:
    node.set("seed = 0", "seed = 0\nsead = 0")


def unknown_user(node: Node) -> None:
    node.set('user = "none"', 'user = "no-such-user"')


def unknown_group(node: Node) -> None:
    node.set('user = "none"', 'user = "none"\n#')
    node.set('socket_group = "none"', 'socket_group = "no-such-group"')
    node.set('socket = "node.sock"', 'socket = "door/node.sock"')
    node.set('secret = "socket.secret"', 'secret = "door/socket.secret"')


def keys_beside_the_door(node: Node) -> None:
    node.set('socket_group = "none"', 'socket_group = "64700"')


@pytest.mark.parametrize(
    ("spoil", "subject", "said"),
    [
        (shared_key_file, "keys", "chmod 600"),
        (world_readable_key, "keys", "chmod 600"),
        (open_secret, "socket", "chmod 600"),
        (no_trust, "trust", "there is no trust store"),
        (other_root, "trust", "root"),
        (revoked, "trust", "revoked"),
        (not_pinned, "trust", "not pinned"),
        (without_a_collective, "trust", "exactly one key of a collective"),
        (no_data, "folders", "there is no folder"),
        (state_in_data, "folders", "lies inside node.data"),
        (open_state, "folders", "chmod 700"),
        (open_policy, "policy", "chmod 644"),
        (unknown_policy, "policy", "colour"),
        (long_socket, "socket", "107"),
        (open_socket_folder, "socket", "chmod 700"),
        (unknown_setting, "configuration", "node.sead"),
        (unknown_user, "configuration", "no user no-such-user"),
        (unknown_group, "configuration", "no group no-such-group"),
        (keys_beside_the_door, "configuration", "give socket and secret a folder of their own"),
    ],
)
def test_what_is_wrong_is_named_and_keeps_it_from_starting(
    node: Node, spoil: Callable[[Node], None], subject: str, said: str
) -> None:
    spoil(node)
    found = node.examine()
    assert not starts(found.values())
    assert found[subject].verdict == "wrong"
    assert found[subject].stops
    assert said in f"{found[subject].found}; {found[subject].advice}"
    wrong = {name for name, finding in found.items() if finding.stops}
    # Where a key cannot be read, neither can what it is pinned as.
    assert wrong <= {subject, "trust", "confinement", *guards.GUARDS}


def test_a_trust_store_past_its_time(node: Node) -> None:
    assert node.examine(NOW + 40 * 86_400)["trust"].verdict == "ok"
    found = node.examine(NOW + 40 * 86_400 + 1)
    assert (found["trust"].verdict, starts(found.values())) == ("wrong", False)


@confined_only
def test_an_unconfined_node_would_start_and_nothing_is_claimed(node: Node) -> None:
    node.set("unconfined = false", "unconfined = true")
    found = node.examine()
    assert {found[name].verdict for name in guards.GUARDS} == {"not enforced"}
    assert starts(found.values())


def test_data_that_others_may_enter_is_said(node: Node) -> None:
    node.data.chmod(0o755)
    found = node.examine()
    assert (found["data"].verdict, found["data"].stops) == ("not enforced", False)
    assert f"chmod 700 {node.data}" in found["data"].advice


def test_who_the_courier_is_is_not_claimed(node: Node) -> None:
    found = node.examine()["users"]
    assert found.verdict == "not enforced"
    assert found.found.startswith("as configured")
    for name in ("node.sock", "socket.secret"):
        node.set(f'"{name}"', f'"door/{name}"')
    (node.folder / "door").mkdir()
    (node.folder / "socket.secret").rename(node.folder / "door" / "socket.secret")
    node.set('socket_group = "none"', f'socket_group = "{os.getgid()}"')
    found = node.examine()["users"]
    assert found.found.startswith("as configured")
    assert "was not looked at" in found.found


def test_the_node_of_a_simulated_run_is_known_and_nothing_is_advised_that_nobody_can_do(
    node: Node, tmp_path: Path
) -> None:
    assert is_simulated(simulation_paths(4936565259025986886, 1)[0])
    folder = tmp_path / "learngene-0" / "1"
    path, secret = folder / "1.sock", folder / "1.secret"
    private_folder(private_folder(path.parent.parent) / path.parent.name)
    shutil.copy(node.folder / "socket.secret", secret)
    node.set('"node.sock"', f'"{path}"')
    node.set('"socket.secret"', f'"{secret}"')
    # While the run goes on.
    found = node.examine()
    assert found["socket"].verdict == "ok"
    assert "node.user" not in found["users"].advice
    # Its end takes the folder away.
    shutil.rmtree(path.parent)
    found = node.examine()
    assert not starts(found.values())
    assert "run" in found["socket"].found
    assert "learngene run" in found["socket"].advice
    # The control: a node of its own whose secret is gone.
    node.set(f'"{path}"', '"node.sock"')
    found = node.examine()
    assert found["socket"].stops
    assert "learngene run" not in found["socket"].advice
    assert "node.user" in found["users"].advice


def test_settings_that_the_node_could_write_are_said(node: Node) -> None:
    assert node.examine()["folders"].verdict == "ok"
    node.set('state = "state"', 'state = "."')
    found = node.examine()["folders"]
    assert (found.verdict, found.stops) == ("wrong", True)
    assert str(node.config) in found.found


def test_no_key_and_no_secret_is_printed(node: Node) -> None:
    said = str(node.examine())
    for name in ("socket.secret", "signing.key", "encryption.key"):
        assert (node.folder / name).read_text().strip() not in said
    assert (node.folder / "key.secret").read_bytes().hex() not in said


def doctor(prelude: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    text = f"{prelude}\nimport sys\nfrom protocol.commands.learngene import main\nsys.argv[0] = 'learngene'\nmain()\n"
    command = [sys.executable, "-c", text, "doctor", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


OLD_KERNEL = "from protocol.confinement import guards, landlock\nlandlock.abi = lambda: 0"
#: What confinement should have done was not done, and everything else goes on as if it had been.
PRETENDED = (
    "from protocol.confinement import guards, landlock, seccomp\n"
    "landlock.restrict = seccomp.restrict = seccomp.restrict_noting = lambda *given, **more: None"
)


@pytest.mark.parametrize("prelude", [OLD_KERNEL, PRETENDED])
def test_nothing_is_claimed_that_was_not_seen_to_hold(prelude: str) -> None:
    done = doctor(prelude, "--json")
    assert done.returncode == 1
    said = json.loads(done.stdout)
    assert said["starts"] is False
    verdicts = {finding["subject"]: finding["verdict"] for finding in said["findings"]}
    assert verdicts["node: files"] == verdicts["courier: files"] == "not enforced"
    # The filter alone still stops a node's signals; where there is no filter either, nothing does.
    assert verdicts["courier: signals"] == "not enforced"
    assert verdicts["kernel" if prelude == OLD_KERNEL else "node: signals"] == "not enforced"
    shown = doctor(prelude)
    assert shown.returncode == 1
    assert "a node would not start" in shown.stdout


@confined_only
def test_a_machine_that_confines_says_so_of_every_guard() -> None:
    done = doctor("", "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    verdicts = {finding["subject"]: finding["verdict"] for finding in said["findings"]}
    wanted = {f"node: {name}" for name in guards.GUARDS} | {f"courier: {name}" for name in guards.COURIER.guards}
    assert {verdicts[name] for name in wanted} == {"ok"}
    assert "courier: network" not in verdicts


def test_looking_at_a_machine_leaves_nothing_of_it_confined() -> None:
    """What is tried is tried in children: this process still reads what they could not."""
    examine_machine(gpu=False)
    assert os.listdir("/")
    assert Path("/etc/passwd").read_bytes()


@pytest.mark.parametrize("role", ["collective", "individual"])
def test_the_command_of_a_node(tmp_path: Path, role: Role) -> None:
    (tmp_path / "data").mkdir(mode=0o700)
    out = tmp_path / "node"
    options = ["--out", str(out), "--data", str(tmp_path / "data"), "--party", f"{role}-1", "--root", ROOT.public_hex]
    program = [sys.executable, "-m", f"{role}_node"]
    made = subprocess.run([*program, "init", *options], check=True, capture_output=True, text=True)
    # Its folder of images is none of a world's, and that is said by the first command that can.
    assert made.stderr.startswith("warning: ")
    assert str(tmp_path / "data") in made.stderr
    command = [*program, "doctor", "--config", str(out / "config.toml"), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    said = json.loads(done.stdout)
    # Nobody has pinned its key yet.
    wrong = [finding["subject"] for finding in said["findings"] if finding["verdict"] == "wrong"]
    assert (done.returncode, said["starts"], wrong) == (1, False, ["trust", "images"])
    public = json.loads((out / "signing.key").read_text())["public"]
    store = TrustStore(root=ROOT.public_hex, expires_at=int(time.time()) + 86_400)
    store = store.with_key(public, role, "a").with_key(PARTNER.public_hex, other_role(role), "b")
    write_trust(out / "trust.json", store, ROOT)
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert json.loads(done.stdout)["starts"] is confine.offered()
    assert done.returncode == (0 if confine.offered() else 1)
