"""A whole deployment on loopback: SuperLink and SuperNodes with TLS and node keys, two node processes, one round; and
a search for plaintext in everything that the relay and the couriers held meanwhile."""

import contextlib
import ipaddress
import json
import os
import re
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
import pytest
import tomli_w
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from protocol.commands.init_command import initialise
from protocol.digest import digest_of
from protocol.exchange import content_keys, verification
from protocol.exchange.collective_ledger import CollectiveLedger
from protocol.exchange.individual_ledger import IndividualLedger, State
from protocol.keys.encryption_key import EncryptionKey
from protocol.keys.key_file import Unlock
from protocol.keys.signing_key import SigningKey
from protocol.learngene.architecture import Form
from protocol.messages import envelope, payloads, sealing
from protocol.node import confine
from protocol.trust.trust_file import read_trust
from sims.data.images import draw_stand_in
from sims.data.world_plan import WorldPlan
from sims.data.worlds import make_world
from sims.run.processes import alive, descendants, end_all
from tests.relay_search import (
    SURELY_FOUND,
    Pieces,
    Watch,
    encodings,
    holding,
    memory_can_be_read,
    search_files,
    search_process,
)
from tests.sims.run.listening import Listener, Listening

RUN_ID = "5a" * 16
FORMS: tuple[Form, ...] = ("condensed", "paper")  # what the relay asks for where nothing else is said
PROGRAMS = Path(sys.executable).parent
COLLECTIVE = {"width": 0.0625, "tasks": 2, "epochs": 0.2, "condense_epochs": 0.2, "condense_budget": "own"}
INDIVIDUAL = {"methods": ["condensed", "paper"], "epochs": 1}


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds what is left behind in /proc"),
]


@dataclass
class Finished:
    """A round that is over, and what was found on the relay's side while it went on.

    Attributes:
        relay: folder of everything on the relay's side and of the couriers.
        log: of the run, as `flwr log` showed it; ``status``: what `flwr list` said at the end.
        memory: whether other processes' memory could be read.
        listening: what listened meanwhile, and the command of its process.
    """

    sites: Mapping[str, Path]
    relay: Path
    log: str
    status: str
    carried: "Carried"
    watch: Watch
    memory: bool
    listening: Mapping[Listener, str]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    root = tmp_path_factory.mktemp("deployment")
    small_world(root / "world")
    sites = pinned_sites(root)
    carried, memory = Carried(sites["collective"] / "state", signing_key(sites["collective"])), memory_can_be_read()
    with Listening() as listening, deployment(root / "relay", sites) as (flwr, relay):
        run("learngene", "relay-app", "--out", str(root / "app"))
        with Watch(relay if memory else {}, root / "relay", carried.pieces) as watch:
            submitted = json.loads(flwr("run", str(root / "app"), "site", "--format", "json"))
            log = flwr("log", submitted["run-id"], "site", "--stream")
        listed = json.loads(flwr("list", "--run-id", submitted["run-id"], "site", "--format", "json"))
    return Finished(sites, root / "relay", log, listed["runs"][0]["status"], carried, watch, memory, listening.found)


def test_one_round_through_a_deployment(finished: Finished) -> None:
    assert finished.status == "finished:completed", finished.log
    assert "the round is complete" in finished.log
    sites = finished.sites
    collective = CollectiveLedger(sites["collective"] / "state")
    individual = IndividualLedger(sites["individual"] / "state")
    for form in FORMS:
        release = collective.latest(RUN_ID, form)
        assert release is not None
        assert len(collective.receipts(release.digest)) == 1
        assert individual.state(RUN_ID, form) in (State.COMMITTED, State.ACKED)
        inherited = individual.latest(RUN_ID, form)
        assert inherited is not None
        assert individual.load(inherited).release.form == form
    metrics = json.loads((sites["individual"] / "state" / "metrics.json").read_text())
    assert set(metrics["methods"]) == set(INDIVIDUAL["methods"])

    # What one side says that it sent is what the other says that it received.
    crossings = {role: audit_lines(folder) for role, folder in sites.items()}
    for here, there in (("collective", "individual"), ("individual", "collective")):
        sent = [(line["kind"], line["digest"]) for line in crossings[here] if line["direction"] == "out"]
        received = [(line["kind"], line["digest"]) for line in crossings[there] if line["direction"] == "in"]
        assert sent == received
        assert sent


def test_nodes_and_couriers_were_confined(finished: Finished) -> None:
    if not confine.offered():
        pytest.skip("this kernel does not confine a process")
    for role, folder in finished.sites.items():
        assert re.search(r"starts as process \d+ of user \d+: confined ", (folder / "state" / "node.log").read_text())
        assert re.search(r"process \d+ of user \d+: confined ", (finished.relay / f"{role}-supernode.log").read_text())


#: All that listens at a relay and its sites: a word of the command, the kind of socket, where.
MEANT = {
    ("flower-superlink", "tcp", "loopback"),  # behind the reverse proxy
    ("flower-supernode", "tcp", "loopback"),  # its own processes of the courier fetch their work there
    ("collective_node", "unix", "collective"),
    ("individual_node", "unix", "individual"),
}


def test_nothing_listens_in_a_deployment_but_what_is_meant_to(finished: Finished) -> None:
    found = set()
    for listener, command in finished.listening.items():
        words = [word for word, kind, _ in MEANT if word in command and kind == listener.kind]
        place = listener.address
        if listener.kind == "unix":
            place = Path(place).parent.relative_to(finished.relay.parent).as_posix()
        found.add((words[0] if words else command, listener.kind, "loopback" if listener.on_loopback else place))
    assert found == MEANT


def test_what_is_searched_for_is_what_the_individual_opens(finished: Finished) -> None:
    """The other tests are worth nothing if they search for anything else."""
    folder = finished.sites["individual"]
    key = EncryptionKey.load(folder / "encryption.key", Unlock.key_file(folder / "key.secret"))
    ledger = IndividualLedger(folder / "state")
    assert set(finished.carried.plaintexts) == set(FORMS)
    for form in FORMS:
        inherited = ledger.latest(RUN_ID, form)
        assert inherited is not None
        sealed = ledger.load(inherited)
        assert verification.decrypt(sealed, key) == finished.carried.plaintexts[form]
        assert len(verification.open_sealed(sealed, key).learngene.tensors) > 10


def test_the_relays_database_logs_and_temporary_files_hold_no_plaintext(finished: Finished) -> None:
    """Searched again and again during the round, with the database's side files, and once after it."""
    found = finished.watch.in_files
    # The relay did carry the learngenes, and its database did hold them: so this search finds what is there.
    in_database = [names["sealed"] for name, names in found.items() if name.startswith("superlink.db")]
    assert any("ciphertext" in piece for pieces in in_database for piece in pieces)
    assert any("release" in piece for pieces in in_database for piece in pieces)
    assert {name: names["plaintext"] for name, names in found.items() if names["plaintext"]} == {}


def test_the_relays_and_the_couriers_memory_holds_no_plaintext(finished: Finished) -> None:
    """SuperLink, SuperExec and ServerApp; SuperNodes, and the couriers that they start for each message: of those,
    which live for a second or two, the ones that were there when the search came by."""
    if not finished.memory:
        pytest.skip("the memory of other processes cannot be read here, so it was not searched")
    found = finished.watch.in_memory
    lasting = {
        *(f"superlink: {program}" for program in ("flower-superlink", "flower-superexec", "flwr-serverapp")),
        *(f"{role}-supernode: flower-supernode" for role in finished.sites),
    }
    assert lasting <= found.keys()
    assert any(place.endswith("flwr-clientapp") for place in found)
    # The learngenes passed through these, and were found there as they travelled.
    for place in lasting - {"superlink: flower-superexec"}:
        assert found[place]["sealed"]
    assert {place: names["plaintext"] for place, names in found.items() if names["plaintext"]} == {}


def test_plaintext_of_these_learngenes_would_be_found(finished: Finished, tmp_path: Path) -> None:
    """A little from fifty places of each, in each encoding, in a file; from one place in another process's memory."""
    pieces = finished.carried.pieces()["plaintext"]
    for plaintext in finished.carried.plaintexts.values():
        for encoding, text in encodings(plaintext).items():
            parts = [text[start:][:SURELY_FOUND] for start in range(0, len(text) - SURELY_FOUND, len(text) // 50)]
            # A Fisher diagonal holds zeros here and there: those stand everywhere.
            parts = [part for part in parts if len(set(part)) > 8]
            assert len(parts) > 40
            for part in parts:
                (tmp_path / "planted").write_bytes(b"!" + part)
                found = search_files(tmp_path, pieces)
                assert any(name.endswith(f"({encoding})") for name in found["planted"])
            if finished.memory:
                with holding(parts[len(parts) // 2]) as pid:
                    assert search_process(pid, pieces)


@dataclass
class Carried:
    """What the relay carries, read from the collective's own state: what must be found there and what must not.

    Attributes:
        plaintexts: of every release that was published, by its form.
    """

    state: Path
    key: SigningKey
    plaintexts: dict[str, bytes] = field(default_factory=dict)
    _pieces: dict[str, Pieces] = field(default_factory=dict)

    def pieces(self) -> dict[str, Pieces]:
        """To be searched for; nothing before something is published."""
        found = dict(self._published())
        if found.keys() != self.plaintexts.keys():
            sealed: dict[str, bytes] = {}
            for form, (release, key, data) in found.items():
                self.plaintexts[form] = sealing.decrypt(key, data)
                sealed |= {f"{form}, release": release, f"{form}, ciphertext": data}
            as_it_is = Pieces(sealed, lambda piece: {"raw": piece})
            self._pieces = {"plaintext": Pieces(self.plaintexts), "sealed": as_it_is}
        return self._pieces

    def _published(self) -> Iterator[tuple[str, tuple[bytes, bytes, bytes]]]:
        # Only read: the node is at work on it.
        with contextlib.suppress(sqlite3.OperationalError, FileNotFoundError):
            database = sqlite3.connect(f"file:{self.state / 'ledger.db'}?mode=ro", uri=True)
            with contextlib.closing(database):
                rows = database.execute("SELECT form, envelope, closed_key FROM releases").fetchall()
            for form, data, closed in rows:
                release = payloads.decode(payloads.Release, envelope.parse(data).payload)
                key = content_keys.reopen(self.key, closed, digest_of(data))
                yield form, (data, key, (self.state / "releases" / f"{release.ciphertext.sha256}.blob").read_bytes())


def signing_key(home: Path) -> SigningKey:
    """Of a node whose folder ``init`` made."""
    return SigningKey.load(home / "signing.key", Unlock.key_file(home / "key.secret"))


def small_world(folder: Path) -> None:
    """A world of a few drawn images of every class."""
    source = draw_stand_in("a test", train_per_class=110, test_per_class=20)
    make_world(source, source.division, WorldPlan(target_tasks={10: 1}), 0, folder)


def pinned_sites(root: Path) -> dict[str, Path]:
    """Both nodes' folders, and in them the trust store that the keeper of a root key made of their public keys."""
    keeper, trust = ["--root-key", str(root / "root.key"), "--key-file", str(root / "root.secret")], root / "trust.json"
    run("learngene", "keygen", "--out", str(root / "root.key"), "--key-file", str(root / "root.secret"))
    run("learngene", "trust", "init", *keeper, "--out", str(trust))
    public = read_trust(trust, root=None).root
    sites: dict[str, Path] = {}
    for role, party in (("collective", "collective"), ("individual", "individual-1")):
        sites[role], key = site(root, role, party, public)
        pin = ["--role", role, "--party", party, "--public", key.public_hex, "--fingerprint", key.fingerprint]
        run("learngene", "trust", "add", *keeper, "--trust", str(trust), *pin)
    for folder in sites.values():
        shutil.copy(trust, folder / "trust.json")
    return sites


def site(root: Path, role: str, party: str, public: str) -> tuple[Path, SigningKey]:
    """A node's folder as `init` makes it, with the tables that keep its training short; and its signing key.
    ``public``: the root key that it pins."""
    folder = root / role
    keys = initialise(
        folder,
        role="collective" if role == "collective" else "individual",
        data=root / "world" / party,
        party=party,
        root=public,
        run_id=RUN_ID,
    )
    file = folder / "config.toml"
    text = file.read_text().replace("threads = 0", "threads = 1").replace('device = "auto"', 'device = "cpu"')
    table: Mapping[str, object] = COLLECTIVE if role == "collective" else INDIVIDUAL
    file.write_text(text + "\n" + tomli_w.dumps({role: table}))
    return folder, keys.signing


@contextlib.contextmanager
def deployment(root: Path, sites: Mapping[str, Path]) -> Iterator[tuple[Callable[..., str], dict[str, int]]]:
    """Everything that runs. At the end nothing of it is left.

    Yields:
        `flwr` against the SuperLink, and the process numbers of the relay's side, whose files all lie in ``root``.
    """
    root.mkdir()
    authority = certificates(root)
    link, *ports = free_ports(3)
    common = {
        **os.environ,
        "PATH": f"{PROGRAMS}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
    }
    environment = {
        **common,
        "FLWR_HOME": str(root / "flwr"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2",
        "TMPDIR": str(root / "tmp"),
    }
    (root / "flwr").mkdir()
    (root / "tmp").mkdir()
    connection = {"address": f"127.0.0.1:{link}", "root-certificates": str(authority)}
    (root / "flwr" / "config.toml").write_text(tomli_w.dumps({"superlink": {"default": "site", "site": connection}}))
    # On an older kernel everything but the confinement is still tested.
    accepted = () if confine.offered() else ("--unconfined",)
    started: dict[str, subprocess.Popen[bytes]] = {}
    seen: set[psutil.Process] = set()

    def start(name: str, folder: Path, environment: Mapping[str, str], *command: str) -> None:
        with (folder / f"{name}.log").open("wb") as log:
            started[name] = subprocess.Popen(
                [str(PROGRAMS / command[0]), *command[1:]],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=folder,
                start_new_session=True,
            )

    def flwr(*arguments: str) -> str:
        done = subprocess.run(
            [str(PROGRAMS / "flwr"), *arguments],
            env=environment,
            capture_output=True,
            text=True,
            timeout=150,
            check=False,
        )
        places = (root, *sites.values())
        paths = [path for folder in places for path in folder.glob("*.log")]
        logs = "".join(f"\n--- {path.name}\n{path.read_text()[-3000:]}" for path in paths)
        assert done.returncode == 0, done.stderr + done.stdout + logs
        if arguments[0] == "log":
            return done.stdout + logs
        return done.stdout[done.stdout.find("{") : done.stdout.rfind("}") + 1]

    try:
        start(
            "superlink",
            root,
            environment,
            "flower-superlink",
            *("--ssl-ca-certfile", str(authority), "--ssl-certfile", str(root / "server.pem")),
            *("--ssl-keyfile", str(root / "server.key"), "--enable-supernode-auth", "--isolation", "subprocess"),
            *("--database", str(root / "superlink.db"), "--host", "127.0.0.1", "--port", str(link)),
            "--disable-runtime-dependency-installation",
        )
        for role, folder in sites.items():
            command = (f"{role}-node", "start", "--config", str(folder / "config.toml"), *accepted)
            start(f"{role}-node", folder, common, *command)
        wait_for_port(link)
        for (role, folder), port in zip(sites.items(), ports, strict=True):
            key = node_key(root, role)
            flwr("supernode", "register", str(key.with_suffix(".pub")), "site", "--format", "json")
            start(
                f"{role}-supernode",
                root,
                environment,
                *("learngene", "courier", "--home", str(root / f"{role}-courier")),
                *("--config", str(folder / "config.toml"), *accepted, "--", "flower-supernode"),
                *("--superlink", f"127.0.0.1:{link}", "--root-certificates", str(authority)),
                *("--auth-supernode-private-key", str(key), "--host", "127.0.0.1", "--port", str(port)),
            )
        yield flwr, {name: process.pid for name, process in started.items() if not name.endswith("-node")}
    finally:
        for process in started.values():
            seen.update(descendants(process.pid))
            process.terminate()
        for process in started.values():
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        end_all(seen)
        assert not [process for process in seen if alive(process)]


def run(*command: str) -> None:
    subprocess.run([str(PROGRAMS / command[0]), *command[1:]], check=True, stdout=subprocess.DEVNULL)


def certificates(root: Path) -> Path:
    """An authority of our own (``ca.pem``) and the SuperLink's certificate (``server.pem``, ``server.key``)."""
    now = datetime.now(UTC)
    authority_key, server_key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    authority_name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test authority")])

    def builder(name: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(authority_name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(days=1))
        )

    authority = (
        builder(authority_name, authority_key)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(authority_key, hashes.SHA256())
    )
    local = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1")), x509.DNSName("localhost")])
    server = (
        builder(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")]), server_key)
        .add_extension(local, critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    (root / "ca.pem").write_bytes(authority.public_bytes(serialization.Encoding.PEM))
    (root / "server.pem").write_bytes(server.public_bytes(serialization.Encoding.PEM))
    (root / "server.key").write_bytes(
        server_key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return root / "ca.pem"


def node_key(root: Path, role: str) -> Path:
    """A SuperNode's key as `ssh-keygen -t ecdsa -b 384` makes it; Flower's, and none of the project's."""
    key, path = ec.generate_private_key(ec.SECP384R1()), root / f"{role}-supernode"
    path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption())
    )
    path.chmod(0o600)
    path.with_suffix(".pub").write_bytes(
        key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    )
    return path


def free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def wait_for_port(port: int, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1.0):
            return
        time.sleep(0.1)
    raise AssertionError(f"nothing listens on port {port}")


def audit_lines(folder: Path) -> list[dict[str, object]]:
    lines = (folder / "state" / "crossings.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]
