"""A whole deployment on loopback: SuperLink and SuperNodes with TLS and node keys, two node processes, one round."""

import contextlib
import ipaddress
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import tomli_w
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from protocol.architecture import Form
from protocol.ledger import CollectiveLedger, IndividualLedger, State
from protocol.node_commands import initialise
from protocol.trust import TrustStore
from sims.images import draw_stand_in
from sims.processes import Process, alive, descendants, end_all
from sims.worlds import WorldPlan, make_world

RUN_ID = "5a" * 16
PROGRAMS = Path(sys.executable).parent
COLLECTIVE = {"width": 0.0625, "tasks": 2, "epochs": 0.2, "condense_epochs": 0.2}
INDIVIDUAL = {"methods": ["condensed", "paper"], "epochs": 1}


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds what is left behind in /proc")
def test_one_round_through_a_deployment(tmp_path: Path) -> None:
    small_world(tmp_path / "world")
    sites = {role: site(tmp_path, role) for role in ("collective", "individual")}
    public = {role: TrustStore.load(folder / "trust.json").keys[0] for role, folder in sites.items()}
    for role, folder in sites.items():
        other = "individual" if role == "collective" else "collective"
        # A fresh trust store holds its owner's key alone; the owner tells it to the other party.
        key = public[other]
        pin = ["trust", "add", "--trust", str(folder / "trust.json"), "--public", key.public]
        run("learngene", *pin, "--role", key.role, "--party", key.party)
    with deployment(tmp_path, sites) as flwr:
        run("learngene", "relay-app", "--out", str(tmp_path / "app"))
        submitted = json.loads(flwr("run", str(tmp_path / "app"), "site", "--format", "json"))
        log = flwr("log", submitted["run-id"], "site", "--stream")
        listed = json.loads(flwr("list", "--run-id", submitted["run-id"], "site", "--format", "json"))
        assert listed["runs"][0]["status"] == "finished:completed", log
        assert "the round is complete" in log

    collective = CollectiveLedger(sites["collective"] / "state")
    individual = IndividualLedger(sites["individual"] / "state")
    forms: tuple[Form, ...] = ("condensed", "paper")  # what the relay asks for where nothing else is said
    for form in forms:
        release = collective.latest(RUN_ID, form)
        assert release is not None
        assert len(collective.receipts(release.digest)) == 1
        assert individual.state(RUN_ID, form) in (State.COMMITTED, State.ACKED)
        inherited = individual.latest(RUN_ID, form)
        assert inherited is not None
        assert individual.load(inherited).learngene.architecture.form == form
    metrics = json.loads((sites["individual"] / "state" / "metrics.json").read_text())
    assert set(metrics["methods"]) == set(INDIVIDUAL["methods"])

    # What one side says that it sent is what the other says that it received.
    crossings = {role: audit_lines(folder) for role, folder in sites.items()}
    for here, there in (("collective", "individual"), ("individual", "collective")):
        sent = [(line["kind"], line["digest"]) for line in crossings[here] if line["direction"] == "out"]
        received = [(line["kind"], line["digest"]) for line in crossings[there] if line["direction"] == "in"]
        assert sent == received
        assert sent


def small_world(folder: Path) -> None:
    """A world of a few drawn images of every class."""
    source = draw_stand_in("a test", train_per_class=110, test_per_class=20)
    make_world(source, source.division, WorldPlan(target_tasks={10: 1}), 0, folder)


def site(root: Path, role: str) -> Path:
    """A node's folder as `init` makes it, with the tables that keep its training short."""
    folder, party = root / role, "collective" if role == "collective" else "individual-1"
    initialise(
        folder,
        role="collective" if role == "collective" else "individual",
        data=root / "world" / party,
        party=party,
        run_id=RUN_ID,
    )
    file = folder / "config.toml"
    text = file.read_text().replace("threads = 0", "threads = 1").replace('device = "auto"', 'device = "cpu"')
    table: Mapping[str, object] = COLLECTIVE if role == "collective" else INDIVIDUAL
    file.write_text(text + "\n" + tomli_w.dumps({role: table}))
    return folder


@contextlib.contextmanager
def deployment(root: Path, sites: Mapping[str, Path]) -> Iterator[Callable[..., str]]:
    """Everything that runs; yields `flwr` against the SuperLink. At the end nothing of it is left."""
    authority = certificates(root)
    link, *ports = free_ports(3)
    environment = {
        **os.environ,
        "PATH": f"{PROGRAMS}{os.pathsep}{os.environ['PATH']}",
        "FLWR_HOME": str(root / "flwr"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2",
        "OMP_NUM_THREADS": "1",
    }
    (root / "flwr").mkdir()
    connection = {"address": f"127.0.0.1:{link}", "root-certificates": str(authority)}
    (root / "flwr" / "config.toml").write_text(tomli_w.dumps({"superlink": {"default": "site", "site": connection}}))
    started: list[subprocess.Popen[bytes]] = []
    seen: set[Process] = set()

    def start(name: str, *command: str) -> None:
        with (root / f"{name}.log").open("wb") as log:
            started.append(
                subprocess.Popen(
                    [str(PROGRAMS / command[0]), *command[1:]],
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    cwd=root,
                    start_new_session=True,
                )
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
        logs = "".join(f"\n--- {path.name}\n{path.read_text()[-3000:]}" for path in root.glob("*.log"))
        assert done.returncode == 0, done.stderr + done.stdout + logs
        if arguments[0] == "log":
            return done.stdout + logs
        return done.stdout[done.stdout.find("{") : done.stdout.rfind("}") + 1]

    try:
        start(
            "superlink",
            "flower-superlink",
            *("--ssl-ca-certfile", str(authority), "--ssl-certfile", str(root / "server.pem")),
            *("--ssl-keyfile", str(root / "server.key"), "--enable-supernode-auth", "--isolation", "subprocess"),
            *("--database", str(root / "superlink.db"), "--host", "127.0.0.1", "--port", str(link)),
            "--disable-runtime-dependency-installation",
        )
        for role, folder in sites.items():
            start(f"{role}-node", f"{role}-node", "start", "--config", str(folder / "config.toml"), "--unconfined")
        wait_for_port(link)
        for (role, folder), port in zip(sites.items(), ports, strict=True):
            key = node_key(root, role)
            flwr("supernode", "register", str(key.with_suffix(".pub")), "site", "--format", "json")
            door = f'socket="{folder / "node.sock"}" secret="{folder / "socket.secret"}"'
            start(
                f"{role}-supernode",
                "flower-supernode",
                *("--superlink", f"127.0.0.1:{link}", "--root-certificates", str(authority)),
                *("--auth-supernode-private-key", str(key), "--host", "127.0.0.1", "--port", str(port)),
                *("--node-config", door),
            )
        yield flwr
    finally:
        for process in started:
            seen.update(descendants(process.pid))
            process.terminate()
        for process in started:
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
