"""A Flower deployment on this machine: a SuperLink with TLS, authenticated SuperNodes, and apps submitted to them.

The SuperLink answers only this user (``sims.run.superlink``): no other user of this machine can submit an app
meanwhile.
"""

import ipaddress
import json
import os
import select
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType

import psutil
import tomli_w
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from protocol.confinement import isolated_start
from protocol.errors import RunFailedError
from protocol.visible_text import visible_line
from sims.run.environment import of_run
from sims.run.processes import descendants, end_all

_PROGRAMS = Path(sys.executable).parent
_CONNECTION = "boundary"
_PEM = serialization.Encoding.PEM
_PLAIN = serialization.NoEncryption()
# Seconds for one command of Flower's; a submitted app runs meanwhile.
_COMMAND_SECONDS = 150.0


class Deployment:
    """A SuperLink, and the SuperNodes that are started to it. Used as a context manager: leaving it ends all of them.

    Args:
        folder: of its own, new; everything that Flower writes lies in it.

    Attributes:
        port: of the SuperLink, on the loopback.
    """

    port: int

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._started: list[subprocess.Popen[bytes]] = []
        self._seen: set[psutil.Process] = set()

    def __enter__(self) -> "Deployment":
        for path in (self._folder, self._folder / "flwr", self._folder / "tmp"):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._authority = make_certificates(self._folder)
        try:
            self.port = self._start_superlink()
        except BaseException:
            self.end()
            raise
        connection = {"address": f"127.0.0.1:{self.port}", "root-certificates": str(self._authority)}
        settings = {"superlink": {"default": _CONNECTION, _CONNECTION: connection}}
        (self._folder / "flwr" / "config.toml").write_text(tomli_w.dumps(settings))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def supernode(self, name: str, *options: str, before: Sequence[str] = ()) -> None:
        """Register and start a SuperNode.

        Args:
            before: the command that becomes it, as ``learngene courier ... --``.
            options: its further ones, as ``--node-config``.
        """
        key = make_node_key(self._folder / name)
        self.flwr("supernode", "register", str(key.with_suffix(".pub")), _CONNECTION, "--format", "json")
        self._start(
            name,
            *(before or ()),
            "flower-supernode" if before else str(_PROGRAMS / "flower-supernode"),
            *("--superlink", f"127.0.0.1:{self.port}", "--root-certificates", str(self._authority)),
            *("--auth-supernode-private-key", str(key), "--host", "127.0.0.1", "--port", str(free_port())),
            *options,
        )

    def run(self, app: Path) -> str:
        """Submit an app, follow it to its end, and return its log.

        Raises:
            RunFailedError: it did not complete.
        """
        said = self.flwr("run", str(app), _CONNECTION, "--format", "json")
        answer = json.loads(said[said.find("{") : said.rfind("}") + 1])
        if "run-id" not in answer:
            raise RunFailedError(f"Flower does not take the app: {visible_line(said)}")
        submitted = answer["run-id"]
        log = self.flwr("log", submitted, _CONNECTION, "--stream")
        listed = self.flwr("list", "--run-id", submitted, _CONNECTION, "--format", "json")
        if "finished:completed" not in listed:
            raise RunFailedError(f"the app {app.name} did not complete: {log[-3000:]}{self._logs()}")
        return log

    def flwr(self, *arguments: str) -> str:
        """The output of a command of ``flwr``.

        Raises:
            RunFailedError: it failed.
        """
        done = subprocess.run(
            [str(_PROGRAMS / "flwr"), *arguments],
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=_COMMAND_SECONDS,
            check=False,
        )
        if done.returncode != 0:
            raise RunFailedError(f"flwr {arguments[0]} failed: {done.stdout}{done.stderr}{self._logs()}")
        return done.stdout

    def end(self) -> None:
        """End everything that was started, and what that started. May be called again."""
        for process in self._started:
            self._seen.update(descendants(process.pid))
            process.terminate()
        for process in self._started:
            try:
                process.wait(5.0)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        end_all(self._seen)
        self._started.clear()

    @property
    def _environment(self) -> Mapping[str, str]:
        # A run's, so that no proxy and no setting of Flower's in the user's shell reaches it; and what an attack puts
        # into that shell to be found.
        planted = {name: value for name, value in os.environ.items() if name.startswith("LEARNGENE_BOUNDARY_")}
        return {**of_run(self._folder / "flwr", self._folder / "tmp"), **planted, "OMP_NUM_THREADS": "1"}

    def _start_superlink(self, seconds: float = 60.0) -> int:
        """Its port, when it answers."""
        reading, ready = os.pipe()
        options = [
            *("--ssl-ca-certfile", str(self._authority), "--ssl-certfile", str(self._folder / "server.pem")),
            *("--ssl-keyfile", str(self._folder / "server.key"), "--enable-supernode-auth"),
            *("--database", str(self._folder / "superlink.db")),
        ]
        try:
            command = isolated_start.command("sims.run.superlink", [str(ready), *options])
            self._start("superlink", *command, inherited=(ready,))
        finally:
            os.close(ready)
        with os.fdopen(reading) as lines:
            said = lines.readline() if select.select([lines], [], [], seconds)[0] else ""
        if not said:
            raise RunFailedError(f"the SuperLink does not listen: {self._logs()}")
        return int(said)

    def _start(self, name: str, *command: str, inherited: Sequence[int] = ()) -> None:
        with (self._folder / f"{name}.log").open("wb") as log:
            self._started.append(
                subprocess.Popen(
                    command,
                    env=self._environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    cwd=self._folder,
                    pass_fds=inherited,
                    start_new_session=True,
                )
            )

    def _logs(self) -> str:
        logs = sorted(self._folder.glob("*.log"))
        return "".join(f"\n--- {path.name}\n{path.read_text(errors='replace')[-2000:]}" for path in logs)


def make_certificates(folder: Path) -> Path:
    """An authority of our own (``ca.pem``) and with it a certificate of this machine (``server.pem``, ``server.key``),
    for a day."""
    now = datetime.now(UTC)
    authority_key, server_key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    authority = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "boundary authority")])
    local = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1")), x509.DNSName("localhost")])
    found: dict[str, x509.Certificate] = {}
    kinds: tuple[tuple[str, x509.Name, ec.EllipticCurvePrivateKey, x509.ExtensionType, bool], ...] = (
        ("ca.pem", authority, authority_key, x509.BasicConstraints(ca=True, path_length=0), True),
        ("server.pem", local, server_key, names, False),
    )
    for name, subject, key, extension, critical in kinds:
        builder = x509.CertificateBuilder().subject_name(subject).issuer_name(authority).public_key(key.public_key())
        builder = builder.serial_number(x509.random_serial_number()).add_extension(extension, critical=critical)
        builder = builder.not_valid_before(now - timedelta(hours=1)).not_valid_after(now + timedelta(days=1))
        found[name] = builder.sign(authority_key, hashes.SHA256())
        (folder / name).write_bytes(found[name].public_bytes(_PEM))
    private = server_key.private_bytes(_PEM, serialization.PrivateFormat.PKCS8, _PLAIN)
    (folder / "server.key").write_bytes(private)
    return folder / "ca.pem"


def make_node_key(path: Path) -> Path:
    """A SuperNode's key as ``ssh-keygen -t ecdsa -b 384`` makes it, its public half beside it as ``.pub``."""
    key = ec.generate_private_key(ec.SECP384R1())
    path.write_bytes(key.private_bytes(_PEM, serialization.PrivateFormat.OpenSSH, _PLAIN))
    path.chmod(0o600)
    openssh = serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    path.with_suffix(".pub").write_bytes(key.public_key().public_bytes(*openssh))
    return path


def free_port() -> int:
    """A free port of the loopback."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
