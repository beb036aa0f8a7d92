"""Knocking at what a run listens on: who is answered, from outside and from inside, with Ray's token and without."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from protocol.confinement import namespaces
from tests.sims.run.listening import Listener, network_of

#: As this user, or as another one, who need not be able to start this Python; a method of each of Ray's services.
_KNOCK = """
import encodings.idna, http.client, json, os, socket, sys, urllib.error, urllib.request
import grpc, grpc._channel  # all of it, before another user cannot read it
user, token, *ports = sys.argv[1:]
if user != "-":
    os.setgroups([]); os.setresgid(*[int(user)] * 3); os.setresuid(*[int(user)] * 3)
METHODS = ("NodeInfoGcsService/GetAllNodeInfo", "NodeManagerService/GetNodeStats", "ObjectManagerService/FreeObjects",
           "CoreWorkerService/GetCoreWorkerStats")
proof = (("authorization", "Bearer " + token),) if token != "-" else ()
def by_http(port):
    try:
        request = urllib.request.Request(f"http://127.0.0.1:{port}/health", headers=dict(proof))
        with urllib.request.urlopen(request, timeout=10) as answer:
            return str(answer.status)
    except urllib.error.HTTPError as error:
        return str(error.code)
    except (OSError, http.client.HTTPException) as error:
        return type(error).__name__
def by_grpc(port):
    found = set()
    with grpc.insecure_channel(f"ipv4:127.0.0.1:{port}") as channel:
        for method in METHODS:
            try:
                channel.unary_unary("/ray.rpc." + method)(b"", timeout=10, metadata=proof)
                found.add("OK")
            except grpc.RpcError as error:
                found.add(error.code().name)
    return found - {"UNIMPLEMENTED"}
def knock(port):
    try:
        socket.create_connection(("127.0.0.1", port), 10).close()
    except OSError:
        return "not reached"
    found = by_grpc(port)
    return by_http(port) if found == {"UNAVAILABLE"} else " ".join(sorted(found))
print(json.dumps({port: knock(int(port)) for port in ports}))
"""
NOBODY = 65534


@dataclass(frozen=True)
class Answers:
    """What each TCP port answered: ``not reached``, a status of HTTP, or of gRPC.

    Attributes:
        superlink: its port.
        enclosed: whether the ports lie in another network than this process.
        outside, outside_as_another: to a process of this user or another one that joined nothing; None: not tried.
        inside, inside_with_token: to a process of this user that joined the run's network.
        inside_as_another: to one of another user that did; None: not tried.
    """

    superlink: int
    enclosed: bool
    outside: Mapping[int, str]
    outside_as_another: Mapping[int, str] | None
    inside: Mapping[int, str]
    inside_with_token: Mapping[int, str]
    inside_as_another: Mapping[int, str] | None


def knock(listening: Iterable[Listener], *, superlink: int, ray: int, as_another: bool) -> Answers:
    """Try every TCP port of ``listening``.

    Args:
        superlink: process that serves Flower's interfaces.
        ray: a process of Ray, whose environment names the token.
        as_another: whether this process can start one of another user.
    """
    served = {listener.port: listener for listener in listening if listener.kind == "tcp"}
    [port] = [port for port, listener in served.items() if listener.pid == superlink]
    environment = Path(f"/proc/{ray}/environ").read_text().split("\0")
    [path] = [line.partition("=")[2] for line in environment if line.startswith("RAY_AUTH_TOKEN_PATH=")]
    token = Path(path).read_text()

    def join() -> None:
        namespaces.join(superlink)

    def ask(user: str, proof: str, enter: Callable[[], None] | None = None) -> Mapping[int, str]:
        done = subprocess.run(
            [sys.executable, "-I", "-c", _KNOCK, user, proof, *map(str, served)],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            preexec_fn=enter,
        )
        assert done.returncode == 0, done.stderr
        return {int(key): value for key, value in json.loads(done.stdout).items()}

    return Answers(
        port,
        network_of(superlink) != network_of("self"),
        ask("-", "-"),
        ask(str(NOBODY), "-") if as_another else None,
        ask("-", "-", join),
        ask("-", token, join),
        ask(str(NOBODY), "-", join) if as_another else None,
    )
