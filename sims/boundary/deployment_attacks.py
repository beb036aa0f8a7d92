"""Attacks through a whole Flower deployment: an app archive that shadows our packages, and a hostile relay.

A message costs seconds there, so each app runs once, before the first attack is asked for, and does everything at once
to two SuperNodes: one under ``learngene courier``, and one without it, for the controls.
"""

import base64
import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import tomli_w

from protocol.encoding.calendar import unix_seconds
from protocol.keys.encryption_key import EncryptionKey
from protocol.keys.signing_key import SigningKey
from protocol.messages.builders import make_request
from protocol.node import confine
from protocol.transport.frame import Frame
from sims.boundary import hostile_app, hostile_relay
from sims.boundary.acts.expectation import Expected, Holds, Open, files, protocol, scopes
from sims.boundary.attempt import Attack, Escaped, Failed, Found, NotEnforced, Refusal
from sims.boundary.command_attacks import paired_sites
from sims.boundary.flower_deployment import Deployment
from sims.boundary.node_commands.target import Forger
from sims.boundary.sites import Sites, started
from sims.boundary.unprotected import UnprotectedNode, serving
from sims.boundary.user_attacks import PYTHON, STRANGER, lacks_another_user
from sims.run import same_user

_MARK = "LEARNGENE_BOUNDARY_MEMORY"
_OPEN_NETWORK = Open(
    "a courier is what reaches the network, and the kernel tells no relay from another host by its address; it has "
    "nothing but sealed messages to send"
)

_ASK_SECONDS, _ANSWERED = 30.0, ("200", "404")
#: Program that asks a SuperLink with TLS and prints the status.
_ASK = """
import http.client, ssl, sys
unchecked = ssl._create_unverified_context()
connection = http.client.HTTPSConnection("127.0.0.1", int(sys.argv[1]), timeout=10, context=unchecked)
connection.request("GET", "/health")
print(connection.getresponse().status)
"""


@dataclass(frozen=True)
class _Theft:
    """One attack of the hostile ClientApp.

    Attributes:
        act: of ``sims.boundary.hostile_app``, with its target.
        shows: whether the answer shows that it succeeded.
        holds: the expected refusal, or why there is none.
    """

    name: str
    tries: str
    act: tuple[str, str, str]
    shows: Callable[[bytes], bool]
    holds: Holds


@contextlib.contextmanager
def deployment_attacks(folder: Path) -> Iterator[list[Attack]]:
    """The attacks, after both apps have run; if this kernel cannot confine a courier, attacks that need this count as
    not enforced.

    Args:
        folder: new or empty, and short: sockets lie in it.

    Raises:
        RunFailedError: the deployment, a node or an app does not start or does not end.
    """
    other, mark = SigningKey.generate(), secrets.token_bytes(32)
    sites = paired_sites(folder / "sites", ("individual-2", other))
    confined = confine.offered()
    unprotected = UnprotectedNode("individual", sites.individual.node, sites.individual.keys)
    door = folder / "door"
    door.mkdir(mode=0o700)
    (door / "secret").write_text(bytes(32).hex() + "\n")
    (door / "secret").chmod(0o600)
    # The interpreter keeps the environment in memory, as it keeps images.
    environment = {_MARK: mark.hex()}
    accepted = () if confined else ("--unconfined",)
    home, config = folder / "courier", sites.individual.config
    courier = ("learngene", "courier", "--home", str(home), "--config", str(config), *accepted, "--")
    with (
        started(sites.individual, unconfined=not confined, environment=environment) as process,
        serving(unprotected, door, handshake=True) as path,
        Deployment(folder / "flower") as deployment,
        _ear() as (port, heard),
    ):
        deployment.supernode("confined-supernode", before=_installed(courier))
        deployment.supernode("control-supernode", "--node-config", f'socket="{path}" secret="{door / "secret"}"')
        thefts = _thefts(sites, process.process.pid, mark, port, heard)
        stolen = _run_theft(deployment, folder / "theft", thefts)
        recorded = _overheard(sites, other)
        answers = _run_relay(deployment, folder / "relay", recorded)
        socket_path = str(sites.individual.node.socket)
        inside = next(found for found in stolen if _bytes(found["socket"]) == socket_path.encode())
        outside = next(found for found in stolen if found is not inside)
        # The real node's receipt is an envelope; the unprotected one's says how many it took.
        real = next(answer for answer in answers if not bytes.fromhex(answer["honest"]["receipt"]).startswith(b"taken"))
        naive = next(answer for answer in answers if answer is not real)
        yield [
            _shadowing(outside, inside),
            *(_theft_attack(theft, outside, inside, confined) for theft in thefts),
            *_relay_attacks(naive, real),
            _by_another_user(deployment.port),
        ]


def _installed(command: tuple[str, ...]) -> tuple[str, ...]:
    """The command with the absolute path of its program, which lies beside the interpreter."""
    return (str(Path(sys.executable).parent / command[0]), *command[1:])


def _thefts(sites: Sites, pid: int, mark: bytes, port: int, heard: bytearray) -> list[_Theft]:
    return [*_readings(sites), *_further_thefts(sites, pid, mark, port, heard)]


def _readings(sites: Sites) -> list[_Theft]:
    site = sites.individual
    node = site.node
    key = node.key.read_bytes()[:64]
    ledger = b"SQLite format 3"
    return [
        _Theft(
            "an app reads an image",
            "the ClientApp of the archive opens a file in the party's data folder",
            ("read", str(site.private), ""),
            lambda found: site.marker in found,
            files("open"),
        ),
        _Theft(
            "an app lists the images",
            "the ClientApp of the archive lists the party's data folder",
            ("list", str(site.data), ""),
            lambda found: b"private.bin" in found,
            files("open"),
        ),
        _Theft(
            "an app reads the signing key",
            "the ClientApp of the archive opens the file with the node's key",
            ("read", str(node.key), ""),
            lambda found: key in found,
            files("open"),
        ),
        _Theft(
            "an app reads what opens the keys",
            "the ClientApp of the archive opens the key file",
            ("read", str(node.key_file), ""),
            lambda found: node.key_file is not None and node.key_file.read_bytes()[:32] in found,
            files("open"),
        ),
        _Theft(
            "an app reads the ledger",
            "the ClientApp of the archive opens the node's state",
            ("read", str(node.state / "ledger.db"), ""),
            lambda found: ledger in found,
            files("open"),
        ),
    ]


def _further_thefts(sites: Sites, pid: int, mark: bytes, port: int, heard: bytearray) -> list[_Theft]:
    node = sites.individual.node
    written, sent = "written by a courier", secrets.token_hex(16)
    return [
        _Theft(
            "an app writes into the state",
            "the ClientApp of the archive leaves a file in the node's state folder",
            ("write", str(node.state / "written"), written),
            lambda found: found == written.encode(),
            files("open"),
        ),
        _Theft(
            "an app reads the node's memory",
            "the ClientApp of the archive searches the memory of the node's process",
            ("memory", str(pid), mark.hex().encode().hex()),
            lambda found: mark.hex().encode() in found,
            files("open"),
        ),
        _Theft(
            "an app sends the node a signal",
            "the ClientApp of the archive could end the node's process",
            ("signal", str(pid), ""),
            lambda found: found == b"there",
            scopes("kill"),
        ),
        _Theft(
            "an app sends elsewhere what it has",
            "the ClientApp of the archive connects to a host that is not the relay",
            ("send", str(port), sent),
            lambda found: found == sent.encode() and sent.encode() in heard,
            _OPEN_NETWORK,
        ),
    ]


_Found = Mapping[str, Mapping[str, str]]


def _theft_attack(theft: _Theft, outside: _Found, inside: _Found, confined: bool) -> Attack:
    def there() -> Found:
        if not confined and isinstance(theft.holds, Expected):
            return NotEnforced("this kernel does not confine a courier")
        found = inside[theft.name]
        if "found" in found:
            return Escaped("it came back in the app's reply")
        return Refusal(found["call"], found["error"])

    return Attack(
        theft.name, "deployment", theft.tries, theft.holds, lambda: theft.shows(_bytes(outside[theft.name])), there
    )


def _shadowing(outside: _Found, inside: _Found) -> Attack:
    """That the archive's code runs in place of ours: what makes all the others possible, and is Flower's design."""

    def runs(found: _Found) -> bool:
        return b"/apps/" in _bytes(found["which code is this"])

    return Attack(
        "an app archive stands in the way of our packages",
        "deployment",
        "the archive has a package called protocol, and Flower finds it before ours",
        Open("Flower puts the archive first, so no data, key or decision lies where it runs"),
        lambda: runs(outside),
        lambda: Escaped() if runs(inside) else Failed("our own package was found first"),
    )


def _relay_attacks(naive: _Found, real: _Found) -> list[Attack]:
    """Attacks of a relay that has overheard bundles."""
    return [
        _relay_attack(naive, real, *described)
        for described in (
            (
                "replayed",
                "a replayed bundle through Flower",
                "the relay brings the bundle of a moment ago once more",
                "receipt",
            ),
            (
                "swapped",
                "another individual's bundle through Flower",
                "the relay swaps two individuals' bundles",
                "wrong_audience",
            ),
            (
                "crossed",
                "another run's bundle through Flower",
                "the relay crosses two runs of one collective",
                "wrong_run",
            ),
        )
    ]


def _relay_attack(naive: _Found, real: _Found, name: str, title: str, tries: str, code: str) -> Attack:
    """One attack of the relay; it succeeds if a node takes a bundle that it should not take."""

    def taken(answers: _Found) -> bool:
        answer = answers[name]
        # The same receipt again is what a node gives that takes nothing twice.
        same = name == "replayed" and answer.get("receipt") == answers["honest"]["receipt"]
        return answer["word"] == "receipt" and not same

    def confined() -> Found:
        answer = real[name]
        return Escaped() if taken(real) else Refusal("inherit", answer.get("code", answer["word"]))

    return Attack(title, "deployment", tries, protocol("inherit", code), lambda: taken(naive), confined)


def _by_another_user(port: int) -> Attack:
    """The control is a process of the user who runs the deployment: a caller that gets an answer can submit an app."""
    expected = protocol("request", "403")

    def status(user: int | None) -> str:
        def become() -> None:
            if user is not None:
                os.setgroups([])
                os.setresgid(user, user, user)
                os.setresuid(user, user, user)

        command = [PYTHON, "-I", "-c", _ASK, str(port)]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_ASK_SECONDS, check=False, cwd="/", preexec_fn=become
        )
        return done.stdout.strip() or done.stderr.strip()[-300:]

    def there() -> Found:
        if not same_user.offered():
            return NotEnforced("this system does not tell whose a connection is")
        said = status(STRANGER)
        if said in _ANSWERED:
            return Escaped(f"it answered {said}")
        return Refusal(expected.call, said) if said in expected.errors else Failed(said)

    return Attack(
        "ask a site's SuperLink as another user",
        "deployment",
        "its Control API takes apps from whoever is answered",
        expected,
        lambda: status(None) in _ANSWERED,
        there,
        lacks_another_user(),
    )


def _bytes(found: Mapping[str, str]) -> bytes:
    return bytes.fromhex(found.get("found", ""))


def _overheard(sites: Sites, other: SigningKey) -> Mapping[str, Mapping[str, Mapping[str, bytes]]]:
    """Bundles by batch and name: what a relay may have carried before, made by the real collective's key."""
    request = sites.individual.ask(Frame("request", fields={"form": "condensed"})).part("request")
    forger = Forger(sites.collective.keys.signing, sites.run_id)
    honest = forger.bundle(request)
    of_another = make_request(
        run_id=sites.run_id,
        audience=forger.key.keyid,
        form="condensed",
        key=other,
        encryption=EncryptionKey.generate(),
        now=unix_seconds(),
        nonce=secrets.token_bytes(16),
    )
    other_run = Forger(forger.key, "f" * 32)
    crossed = other_run.bundle(request)
    return {
        "first": {"honest": honest},
        "then": {"replayed": honest, "swapped": forger.bundle(of_another), "crossed": crossed},
    }


def _run_theft(deployment: Deployment, folder: Path, thefts: list[_Theft]) -> list[_Found]:
    package = folder / "protocol" / "transport"
    package.mkdir(parents=True)
    for place in (package.parent, package):
        (place / "__init__.py").write_text('"""Not ours."""\n')
    shutil.copyfile(hostile_app.__file__, package / "courier.py")
    aims = {theft.name: theft.act for theft in thefts}
    (package / "aims.json").write_text(json.dumps(aims))
    return _run(deployment, folder, server="protocol.transport.courier:server", client="protocol.transport.courier:app")


def _run_relay(
    deployment: Deployment, folder: Path, recorded: Mapping[str, Mapping[str, Mapping[str, bytes]]]
) -> list[_Found]:
    folder.mkdir()
    shutil.copyfile(hostile_relay.__file__, folder / "relay_of_an_attacker.py")
    text = {
        batch: {
            name: {part: base64.b64encode(data).decode() for part, data in parts.items()}
            for name, parts in bundles.items()
        }
        for batch, bundles in recorded.items()
    }
    (folder / "overheard.json").write_text(json.dumps(text))
    return _run(deployment, folder, server="relay_of_an_attacker:app", client="protocol.transport.courier:app")


def _run(deployment: Deployment, folder: Path, *, server: str, client: str) -> list[_Found]:
    """Run an app on both SuperNodes, and return what its ServerApp wrote."""
    out = folder.with_suffix(".json")
    config = {
        "project": {
            "name": f"attacker-{folder.name}",
            "version": "0.1.0",
            "description": "An attack",
            "license": "Apache-2.0",
            "dependencies": [],
        },
        "tool": {
            "flwr": {
                "app": {
                    "publisher": "attacker",
                    "components": {"serverapp": server, "clientapp": client},
                    "config": {"out": str(out), "nodes": 2},
                }
            }
        },
    }
    (folder / "pyproject.toml").write_text(tomli_w.dumps(config))
    log = deployment.run(folder)
    try:
        found: list[_Found] = json.loads(out.read_text())
    except (OSError, ValueError) as error:
        raise LookupError(f"the app wrote nothing down: {log[-3000:]}") from error
    return found


@contextlib.contextmanager
def _ear() -> Iterator[tuple[int, bytearray]]:
    """A listener on a port, and the bytes that it hears."""
    heard = bytearray()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(4)

        def listen() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    with connection:
                        connection.settimeout(5.0)
                        while piece := connection.recv(1000):
                            heard.extend(piece)

        thread = threading.Thread(target=listen, daemon=True)
        thread.start()
        yield int(listener.getsockname()[1]), heard
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(10.0)
