"""Attacks on a run of Flower's simulation while it goes on: from outside its network, and by another user inside it.

A run's SuperLink and its Ray are started as a run starts them; the controls are Flower's and Ray's own, as they are.
"""

import contextlib
import errno
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil
import tomli_w

from protocol.confinement import isolated_start
from protocol.errors import RunFailedError
from sims.boundary.acts.expectation import Expected, network, protocol
from sims.boundary.attempt import Attack, Escaped, Failed, Found, NotEnforced, Refusal
from sims.boundary.flower_deployment import free_port
from sims.boundary.user_attacks import PYTHON, STRANGER, lacks_another_user
from sims.run import environment
from sims.run.enclosure import Enclosure
from sims.run.processes import descendants, end_all
from sims.run.ray_environment import keep_ray_to_itself

# Seconds for a start; for a connection.
_PATIENCE, _SECONDS = 90.0, 10.0
#: Program that asks a SuperLink's HTTP port, as the user who runs it, and prints the status or the name of the error.
_ASK = """
import http.client, sys
connection = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]), timeout=10)
connection.request("GET", "/health")
print(connection.getresponse().status)
"""
#: Program that starts Ray as a run does, and prints the address of its table of everything (GCS).
_RAY = """
import os, sys, time, ray
ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
os.write(int(sys.argv[1]), (ray.get_runtime_context().gcs_address.rpartition(":")[2] + "\\n").encode())
while True:
    time.sleep(1.0)
"""
#: Program that asks that table for all nodes, and prints the status of gRPC.
_ASK_RAY = """
import grpc, sys
with grpc.insecure_channel("ipv4:127.0.0.1:" + sys.argv[1]) as channel:
    try:
        channel.unary_unary("/ray.rpc.NodeInfoGcsService/GetAllNodeInfo")(b"", timeout=10)
        print("OK")
    except grpc.RpcError as error:
        print(error.code().name)
"""


@dataclass(frozen=True)
class _Service:
    """A service that listens.

    Attributes:
        port: on the loopback.
        enter: moves a child, between fork and exec, to where it listens.
        apart: why it has no network of its own; empty if it has.
    """

    port: int
    enter: Callable[[], None]
    apart: str = ""


@contextlib.contextmanager
def run_attacks(folder: Path) -> Iterator[list[Attack]]:
    """All attacks on runs, with everything that they need, until the ``with`` ends.

    Args:
        folder: new or empty.
    """
    for name in ("real", "plain", "ray", "plain-ray"):
        (folder / name).mkdir(mode=0o700)
    with (
        _superlink(folder / "real") as real,
        _plain_superlink(folder / "plain") as plain,
        _ray(folder / "ray", kept=True) as ray,
        _ray(folder / "plain-ray", kept=False) as plain_ray,
    ):
        yield [
            _from_outside("reach a run's SuperLink", "its Control API takes apps from whoever asks", real, plain),
            _from_outside("reach a run's Ray", "its GCS port runs code for whoever asks", ray, plain_ray),
            _submission(folder, real, plain),
            _by_another_user(real, plain),
            _without_token(ray, plain_ray),
        ]


# --- What listens ---------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _enclosed(folder: Path, command: Callable[[int], list[str]], given: Mapping[str, str]) -> Iterator[_Service]:
    with (folder / "output").open("wb") as output:
        enclosure = Enclosure(command, environment=given, folder=folder, output=output)
    try:
        if not enclosure.wait_until_ready(_PATIENCE):
            raise RunFailedError(f"it does not start: {(folder / 'output').read_text(errors='replace')[-2000:]}")
        yield _Service(int(enclosure.said), enclosure.enter, enclosure.refused)
    finally:
        enclosure.close()


def _superlink(folder: Path) -> contextlib.AbstractContextManager[_Service]:
    """The SuperLink of a run."""
    given = environment.of_run(folder, folder)
    return _enclosed(folder, lambda ready: isolated_start.command("sims.run.superlink", [str(ready)]), given)


@contextlib.contextmanager
def _plain_superlink(folder: Path) -> Iterator[_Service]:
    """Flower's, as `flwr run` starts it."""
    port = free_port()
    command = [
        str(Path(sys.executable).parent / "flower-superlink"),
        *("--insecure", "--simulation", "--isolation", "subprocess", "--host", "127.0.0.1", "--port", str(port)),
        "--disable-runtime-dependency-installation",
    ]
    with _started(folder, command, environment.of_run(folder, folder)):
        deadline = time.monotonic() + _PATIENCE
        while _connection(port):
            if time.monotonic() > deadline:
                raise RunFailedError(f"no SuperLink: {(folder / 'output').read_text(errors='replace')[-2000:]}")
            time.sleep(0.1)
        yield _Service(port, lambda: None)


@contextlib.contextmanager
def _ray(folder: Path, *, kept: bool) -> Iterator[_Service]:
    """Ray as a run starts it, or as Ray starts by itself."""
    given = environment.of_run(folder, folder)
    if kept:
        keep_ray_to_itself(given)
        with _enclosed(folder, lambda ready: [sys.executable, "-I", "-c", _RAY, str(ready)], given) as service:
            yield service
        return
    reading, writing = os.pipe()
    command = [sys.executable, "-I", "-c", _RAY, str(writing)]
    given["RAY_TMPDIR"] = str(folder)
    with os.fdopen(reading) as lines, _started(folder, command, given, writing):
        os.close(writing)
        said = lines.readline()
        if not said:
            raise RunFailedError(f"no Ray: {(folder / 'output').read_text(errors='replace')[-2000:]}")
        yield _Service(int(said), lambda: None)


@contextlib.contextmanager
def _started(folder: Path, command: list[str], given: Mapping[str, str], *inherited: int) -> Iterator[None]:
    with (folder / "output").open("wb") as output:
        process = subprocess.Popen(
            command,
            env=given,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=folder,
            pass_fds=inherited,
            start_new_session=True,
        )
    try:
        yield
    finally:
        below: set[psutil.Process] = set(descendants(process.pid))
        process.terminate()
        try:
            process.wait(5.0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        end_all(below)


# --- Who knocks -----------------------------------------------------------------------------------------------------


def _connection(port: int) -> str:
    """The error of a connection by this process; empty if there is one."""
    try:
        socket.create_connection(("127.0.0.1", port), _SECONDS).close()
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error))
    return ""


def _unless_apart(service: _Service, found: Callable[[], Found]) -> Found:
    return NotEnforced(f"a run gets no network of its own here: {service.apart}") if service.apart else found()


def _from_outside(name: str, tries: str, real: _Service, plain: _Service) -> Attack:
    """Attacks by a process of the same user outside the run's network."""

    def confined() -> Found:
        error = _connection(real.port)
        return Refusal("connect", error) if error else Escaped("it was reached")

    return Attack(
        name,
        "runs",
        tries,
        network("connect", "ECONNREFUSED"),
        lambda: not _connection(plain.port),
        lambda: _unless_apart(real, confined),
    )


def _submission(folder: Path, real: _Service, plain: _Service) -> Attack:
    """By Flower's own command: the app would run as the run's user, beside its keys."""
    app = folder / "app"
    app.mkdir()
    (app / "hostile.py").write_text(
        "from flwr.serverapp import ServerApp\nfrom flwr.clientapp import ClientApp\n"
        "client = ClientApp()\napp = ServerApp()\n@app.main()\ndef main(grid, context): ...\n"
    )
    described = {
        "project": {
            "name": "hostile",
            "version": "0.1.0",
            "description": "x",
            "license": "Apache-2.0",
            "dependencies": [],
        },
        "tool": {
            "flwr": {
                "app": {"publisher": "x", "components": {"serverapp": "hostile:app", "clientapp": "hostile:client"}}
            }
        },
    }
    (app / "pyproject.toml").write_text(tomli_w.dumps(described))

    def answer(service: _Service, name: str) -> dict[str, object]:
        home = folder / name
        home.mkdir(mode=0o700)
        connection = {"address": f"127.0.0.1:{service.port}", "insecure": True}
        (home / "config.toml").write_text(tomli_w.dumps({"superlink": {"default": "local", "local": connection}}))
        done = subprocess.run(
            [str(Path(sys.executable).parent / "flwr"), "run", str(app), "local", "--format", "json"],
            env=environment.of_run(home, home),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_PATIENCE,
            check=False,
        )
        with contextlib.suppress(ValueError):
            found: dict[str, object] = json.loads(done.stdout[done.stdout.find("{") : done.stdout.rfind("}") + 1])
            return found
        return {"error-message": done.stdout + done.stderr}

    def confined() -> Found:
        found = answer(real, "submitting")
        if "run-id" in found:
            return Escaped("it was accepted")
        said = " ".join(str(found.get("error-message", "")).split())
        return Refusal("submit", "unavailable", said[-200:]) if "navailable" in said else Failed(said[-300:])

    return Attack(
        "submit an app to a going run",
        "runs",
        "flwr run, by a process of the same user",
        network("submit", "unavailable"),
        lambda: "run-id" in answer(plain, "submitting-plain"),
        lambda: _unless_apart(real, confined),
    )


def _asked(code: str, service: _Service, python: str, user: int | None) -> str:
    """What a program says that joined the service's network, as this user or another."""
    done = subprocess.run(
        [python, "-I", "-c", code, str(service.port)],
        capture_output=True,
        text=True,
        timeout=_PATIENCE,
        check=False,
        cwd="/",
        preexec_fn=lambda: _join(service, user),
    )
    return done.stdout.strip() or done.stderr.strip()[-300:]


def _join(service: _Service, user: int | None) -> None:
    service.enter()
    if user is not None:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)


def _judged(said: str, reached: tuple[str, ...], expected: Expected) -> Found:
    if said in reached:
        return Escaped(f"it answered {said}")
    return Refusal(expected.call, said) if said in expected.errors else Failed(said)


def _by_another_user(real: _Service, plain: _Service) -> Attack:
    """Attacks by another user: the limit of their reach if a run has no network of its own."""
    expected = protocol("request", "403")
    return Attack(
        "ask a run's SuperLink as another user",
        "runs",
        "from inside the run's network, where no wall stands between",
        expected,
        lambda: _asked(_ASK, plain, PYTHON, STRANGER) in ("200", "404"),
        lambda: _judged(_asked(_ASK, real, PYTHON, STRANGER), ("200", "404"), expected),
        lacks_another_user(),
    )


def _without_token(real: _Service, plain: _Service) -> Attack:
    expected = protocol("GetAllNodeInfo", "UNAUTHENTICATED")
    return Attack(
        "ask a run's Ray without its token",
        "runs",
        "from inside the run's network, by a process of the same user",
        expected,
        lambda: _asked(_ASK_RAY, plain, sys.executable, None) == "OK",
        lambda: _judged(_asked(_ASK_RAY, real, sys.executable, None), ("OK",), expected),
    )
