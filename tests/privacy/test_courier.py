"""A hostile program in place of the courier's: what it reaches under ``learngene courier``, and what without it.

What Flower runs on a site comes from whoever reaches the SuperLink, so the program here does what it likes. The same
attempts are made unconfined first, where each must succeed: an attempt that fails anyhow would show nothing.
"""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from protocol.node import confine
from protocol.transport.frame import Frame
from protocol.transport.local_socket import ask, load_secret
from tests.protocol.node.test_server import Started, site  # noqa: F401 - the fixture

pytestmark = pytest.mark.skipif(not confine.offered(), reason="this kernel does not confine a process")

# Its courier's part comes first: what the tree of Flower's processes needs must go on working.
HOSTILE = """
import ctypes, json, mmap, os, shutil, signal, socket, subprocess, sys, tempfile
from pathlib import Path
import flwr.clientapp, protocol.transport.courier
from protocol.transport.local_socket import Frame, ask, load_secret

site, outside, victim, port, descriptor = Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:])
data, state = site.parent / "data", site / "state"
outcomes = {}

def attempt(name, function):
    try:
        function()
        outcomes[name] = "done"
    except OSError as error:
        outcomes[name] = type(error).__name__

def run(*command):
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise PermissionError(done.stderr)

def call(number, *arguments):
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(number, *arguments) < 0:
        raise OSError(ctypes.get_errno(), "refused")

def library(path):
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.open(os.fsencode(path), os.O_RDONLY) < 0:
        raise OSError(ctypes.get_errno(), "refused")

def read_memory():
    with open(f"/proc/{victim}/maps") as maps:
        place = next(line for line in maps if "[heap]" in line or "rw-p" in line)
    with open(f"/proc/{victim}/mem", "rb") as memory:
        memory.seek(int(place.split("-")[0], 16))
        memory.read(64)

def trace():
    # PTRACE_SEIZE does not stop it, and ends with this process.
    call(101 if os.uname().machine == "x86_64" else 117, 0x4206, victim, None, None)

def home():
    Path(os.environ["FLWR_HOME"]).mkdir(exist_ok=True)
    (Path(os.environ["HOME"]) / "x").write_text("x")

def end_a_child():
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    child.kill()
    child.wait()

def link(kind):
    target = Path(tempfile.mkdtemp()) / "link"
    kind(data / "image", target)
    target.read_bytes()

def hard_link():
    target = Path(os.environ["HOME"]) / "hard"
    target.unlink(missing_ok=True)
    os.link(data / "image", target)
    target.read_bytes()

def abstract():
    with socket.socket(socket.AF_UNIX) as one:
        one.connect("\\0" + outside.name)

def through_child():
    run(sys.executable, "-c", f"open({str(data / 'image')!r}).read()")

for name, function in {
    "the door": lambda: ask(site / "node.sock", load_secret(site / "socket.secret"), Frame("echo")),
    "TCP": lambda: socket.create_connection(("127.0.0.1", port), 5).close(),
    "names": lambda: socket.getaddrinfo("localhost", port),
    "its home": home,
    "a temporary file": lambda: tempfile.TemporaryFile().close(),
    "a child": lambda: run(sys.executable, "-c", "import protocol.transport.courier"),
    "an end to its child": end_a_child,
}.items():
    attempt("needs " + name, function)

for name, function in {
    "an image": lambda: (data / "image").read_bytes(),
    "the list of images": lambda: os.listdir(data),
    "the signing key": lambda: (site / "signing.key").read_bytes(),
    "the key's key": lambda: (site / "key.secret").read_bytes(),
    "the configuration": lambda: (site / "config.toml").read_bytes(),
    "the log": lambda: (state / "node.log").read_bytes(),
    "an image through a child": through_child,
    "an image through a shell": lambda: run("/bin/sh", "-c", f"cat {data / 'image'}"),
    "an image through the C library": lambda: library(data / "image"),
    "an image through a memory map": lambda: mmap.mmap(os.open(data / "image", os.O_RDONLY), 0, prot=mmap.PROT_READ),
    "an image through the node's root": lambda: Path(f"/proc/{victim}/root{data / 'image'}").read_bytes(),
    "an image through a symbolic link": lambda: link(os.symlink),
    "an image through a hard link": hard_link,
    "an image through dots": lambda: (state / ".." / ".." / "data" / "image").read_bytes(),
    "a file left open": lambda: os.pread(descriptor, 1, 0),
    "a new image": lambda: (data / "new").write_bytes(b"x"),
    "a changed log": lambda: os.truncate(state / "node.log", 0),
    "a file elsewhere": lambda: (outside / "planted").write_bytes(b"x"),
    "the environment of the node": lambda: Path(f"/proc/{victim}/environ").read_bytes(),
    "the memory of the node": read_memory,
    "a debugger on the node": trace,
    "a signal to the node": lambda: os.kill(victim, signal.SIGCONT),
    "an abstract socket": abstract,
    "a namespace of its own": lambda: call(272 if os.uname().machine == "x86_64" else 97, 0x20000),
    "a device": lambda: os.mknod(Path(os.environ["HOME"]) / "device", 0o20600, os.makedev(1, 3)),
    "a user database": lambda: Path("/etc/passwd").read_bytes(),
}.items():
    attempt(name, function)
print(json.dumps(outcomes))
"""

#: Whether these succeed unconfined is the machine's matter: root's capabilities in a container, the module Yama.
BY_CHANCE = {"a namespace of its own", "a device", "the memory of the node", "a debugger on the node"}


@pytest.fixture
def listening(tmp_path: Path) -> Iterator[int]:
    """A TCP port, and an abstract socket with the folder's name."""
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX) as abstract:
        abstract.bind("\0" + tmp_path.name)
        abstract.listen()
        yield tcp.getsockname()[1]


def test_a_hostile_courier_reaches_the_door_and_nothing_else_of_the_site(
    site: Path,  # noqa: F811
    tmp_path: Path,
    listening: int,
) -> None:
    (tmp_path / "data" / "image").write_bytes(b"an image")
    (tmp_path / "hostile.py").write_text(HOSTILE)
    # Not confined itself, so that the courier's own confinement is what is tried.
    node = Started(site)
    try:
        node.wait_until_listening()
        found = {confined: attack(site, tmp_path, node.process.pid, listening, confined) for confined in (False, True)}
    finally:
        node.end()
    controls, confined = found[False], found[True]
    assert {name for name, outcome in controls.items() if outcome != "done"} <= BY_CHANCE
    needed = {name for name in controls if name.startswith("needs ")}
    assert len(needed) == 7
    assert {name for name, outcome in confined.items() if outcome == "done"} == needed
    # A hard link out of a confined folder fails as one between two file systems does, a closed descriptor as one.
    others = {"an image through a hard link": "OSError", "a file left open": "OSError"}
    expected = {name: others.get(name, "PermissionError") for name in controls.keys() - needed}
    assert {name: confined[name] for name in expected} == expected


def attack(site: Path, folder: Path, victim: int, port: int, confined: bool) -> dict[str, str]:  # noqa: F811
    home = ["--home", str(folder / f"courier-{confined}"), "--config", str(site / "config.toml")]
    options = [] if confined else ["--unconfined"]
    (folder / "data" / "new").unlink(missing_ok=True)
    with (folder / "data" / "image").open("rb") as left_open:
        # The control's is named, so that it stays open; a confined courier closes what it was not given.
        arguments = [str(site), str(folder), str(victim), str(port), str(left_open.fileno())]
        program = ["python", str(folder / "hostile.py"), *arguments]
        command = [sys.executable, "-m", "protocol.commands.learngene", "courier", *home, *options, "--", *program]
        if not confined:
            command = [sys.executable, *program[1:]]
        environment = {**os.environ, "HOME": str(folder), "FLWR_HOME": str(folder / "flwr")}
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=120,
            cwd=folder,
            env=environment,
            pass_fds=[left_open.fileno()],
            check=False,
        )
    assert done.returncode == 0, done.stderr
    outcomes: dict[str, str] = json.loads(done.stdout)
    return outcomes


def test_a_confined_node_and_a_confined_courier_still_talk(site: Path, tmp_path: Path) -> None:  # noqa: F811
    node = Started(site, unconfined=False, prelude="import tests.protocol.fake_program")
    try:
        node.wait_until_listening()
        text = (
            "import sys; from pathlib import Path\n"
            "from protocol.transport.local_socket import Frame, ask, load_secret\n"
            f"print(ask(Path({str(site / 'node.sock')!r}), load_secret(Path({str(site / 'socket.secret')!r})),"
            " Frame('echo', numbers={'n': 7})).numbers)"
        )
        options = ["--home", str(tmp_path / "courier"), "--config", str(site / "config.toml"), "--", "python", "-c"]
        done = subprocess.run(
            [sys.executable, "-m", "protocol.commands.learngene", "courier", *options, text],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.stdout == "{'n': 7}\n", done.stderr
        assert ask(site / "node.sock", load_secret(site / "socket.secret"), Frame("echo")) == Frame("echo")
    finally:
        node.end()
