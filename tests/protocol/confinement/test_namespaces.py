"""A network of one's own: nothing of the machine's is reached inside, files stay whose they are, a refusal changes
nothing."""

import json
import os
import platform
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from protocol.confinement import namespaces

_NOBODY = 65534
_AS_ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="only root can start a process of another user")
#: Who leaves the network: the user of the tests, and another one without any right.
_USERS = [None, pytest.param(_NOBODY, marks=_AS_ROOT_ONLY)]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="namespaces are Linux's")

#: What a process is, as far as namespaces could change it.
_STATE = """
import ctypes, encodings.idna, json, os, socket, struct, tempfile, threading
from pathlib import Path
from protocol.confinement import namespaces

def state():
    status = Path("/proc/self/status").read_text().splitlines()
    return {
        "namespaces": {kind: os.readlink(f"/proc/self/ns/{kind}") for kind in sorted(os.listdir("/proc/self/ns"))},
        "status": [line for line in status if line.startswith(("Uid", "Gid", "Groups", "Cap", "NoNewPrivs"))],
        "maps": [Path("/proc/self", name).read_text() for name in ("uid_map", "gid_map")],
        "descriptors": sorted(os.listdir("/proc/self/fd")),
    }

def devices():
    return [line.split(":")[0].strip() for line in Path("/proc/self/net/dev").read_text().splitlines()[2:]]

def reach(port):
    try:
        socket.create_connection(("127.0.0.1", port), 5).close()
    except OSError as error:
        return error.errno
    return "reached"
"""


#: Go on as another user, who need not be able to start this Python; /proc/self must be that user's again.
_BECOME = """
os.setgroups([]); os.setresgid({user}, {user}, {user}); os.setresuid({user}, {user}, {user})
assert ctypes.CDLL(None).prctl(4, 1, 0, 0, 0) == 0
"""


def _run(script: str, user: int | None, *arguments: str) -> dict[str, object]:
    """The JSON that ``script`` prints, run in an isolated process that becomes ``user`` first."""
    become = "" if user is None else _BECOME.format(user=user)
    done = subprocess.run(
        [sys.executable, "-I", "-c", _STATE + become + script, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, object] = json.loads(done.stdout)
    return answer


def _unless_offered(user: int | None) -> None:
    refused = _run("print(json.dumps({'refused': namespaces.offered()}))", user)["refused"]
    if refused:
        pytest.skip(f"no network namespace here for the user {user}: {refused}")


@pytest.fixture
def listener() -> Iterator[int]:
    """Port of a listener on this machine's loopback."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.mark.parametrize("user", _USERS)
@pytest.mark.parametrize("loopback", [True, False])
def test_nothing_of_the_machines_network_is_reached_inside(listener: int, loopback: bool, user: int | None) -> None:
    _unless_offered(user)
    got = _run(
        """
import sys
port, loopback = int(sys.argv[1]), sys.argv[2] == "True"
before = reach(port)
refused = namespaces.enter_network(loopback=loopback)
try:
    with socket.create_server(("127.0.0.1", 0)) as own:
        itself = reach(own.getsockname()[1])
except OSError as error:
    itself = error.errno
print(json.dumps({"before": before, "refused": refused, "inside": reach(port), "itself": itself, "devices": devices(),
                  "user": [os.getuid(), os.getgid()]}))
""",
        user,
        str(listener),
        str(loopback),
    )
    assert got["before"] == "reached"
    assert got["refused"] == ""
    assert got["inside"] != "reached"
    assert (got["itself"] == "reached") is loopback
    assert got["devices"] == ["lo"]
    assert got["user"] == ([os.getuid(), os.getgid()] if user is None else [user, user])


@pytest.mark.parametrize("user", _USERS)
def test_files_belong_inside_to_whom_they_belong_outside(user: int | None) -> None:
    _unless_offered(user)
    got = _run(
        """
with tempfile.TemporaryDirectory(dir="/tmp") as folder:
    path = Path(folder, "own")
    path.touch(0o600)
    before = [path.stat().st_uid, path.stat().st_gid, path.stat().st_mode]
    refused = namespaces.enter_network(loopback=False)
    after = [path.stat().st_uid, path.stat().st_gid, path.stat().st_mode]
    path.write_text("written inside")
print(json.dumps({"before": before, "refused": refused, "after": after}))
""",
        user,
    )
    assert got["refused"] == ""
    assert got["before"] == got["after"]


@pytest.mark.parametrize("user", _USERS)
def test_to_ask_changes_nothing(user: int | None) -> None:
    _unless_offered(user)
    got = _run(
        "before = state(); namespaces.offered(); print(json.dumps({'before': before, 'after': state()}))",
        user,
    )
    assert got["before"] == got["after"]


#: Refuses the system call of the number {number} with EPERM.
_FILTER = """
LIBC = ctypes.CDLL(None)
program = b"".join(struct.pack("=HBBI", *step) for step in (
    (0x20, 0, 0, 0), (0x15, 0, 1, {number}), (0x06, 0, 0, 0x00050001), (0x06, 0, 0, 0x7FFF0000)))
steps = ctypes.create_string_buffer(program, len(program))
assert LIBC.prctl(38, 1, 0, 0, 0) == 0
assert LIBC.prctl(22, 2, ctypes.c_char_p(struct.pack("HxxxxxxP", 4, ctypes.addressof(steps))), 0, 0) == 0
"""
_UNSHARE, _SOCKET = {"x86_64": (272, 41), "aarch64": (97, 198)}.get(platform.machine(), (0, 0))
#: In a user namespace of its own, which allows no further one.
_NO_MORE = """
uid, gid = os.geteuid(), os.getegid()
assert ctypes.CDLL(None).unshare(0x10000000) == 0
for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
    Path("/proc/self", name).write_text(text)
for kind in ("user", "net"):
    Path(f"/proc/sys/user/max_{kind}_namespaces").write_text("0")
"""


@pytest.mark.parametrize("user", _USERS)
@pytest.mark.parametrize(
    ("refusal", "said"),
    [
        pytest.param(_FILTER.format(number=_UNSHARE), "filter", id="a filter refuses namespaces"),
        # As AppArmor does: the namespace is given, and no right in it.
        pytest.param(_FILTER.format(number=_SOCKET), "filter", id="no right in the new namespace"),
        pytest.param(_NO_MORE, "user.max_user_namespaces", id="no namespaces are left"),
    ],
)
def test_a_refusal_is_said_and_leaves_the_process_as_it_was(refusal: str, said: str, user: int | None) -> None:
    _unless_offered(user)
    if "prctl" in refusal and not _UNSHARE:
        pytest.skip(f"the numbers of {platform.machine()}'s system calls are not known here")
    got = _run(
        refusal
        + "before = state()\n"
        + "refused, asked = namespaces.enter_network(loopback=True), namespaces.offered()\n"
        + "print(json.dumps({'before': before, 'refused': refused, 'asked': asked, 'after': state()}))",
        user,
    )
    assert said in str(got["refused"])
    assert said in str(got["asked"])
    assert got["before"] == got["after"]


def test_a_process_with_a_second_thread_is_not_moved() -> None:
    got = _run(
        """
from protocol.errors import RunFailedError
before, end = state(), threading.Event()
threading.Thread(target=end.wait).start()
try:
    namespaces.enter_network(loopback=True)
    refused = False
except RunFailedError:
    refused = True
end.set()
print(json.dumps({"refused": refused, "before": before, "after": state()}))
""",
        None,
    )
    assert got["refused"]
    assert got["before"] == got["after"]


@pytest.mark.parametrize("user", _USERS)
def test_another_process_of_the_same_user_joins(user: int | None) -> None:
    _unless_offered(user)
    got = _run(
        """
read_end, write_end = os.pipe()
end_read, end_write = os.pipe()
inside = os.fork()
if not inside:
    os.close(end_write)
    namespaces.enter_network(loopback=True)
    server = socket.create_server(("127.0.0.1", 0))
    os.write(write_end, str(server.getsockname()[1]).encode())
    os.read(end_read, 1)
    os._exit(0)
port = int(os.read(read_end, 8))

def reached(times):
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    code = 1
    try:
        for _ in range(times):
            namespaces.join(inside)
        code = 0 if reach(port) == "reached" else 2
    finally:
        os._exit(code)

print(json.dumps({"outside": reached(0), "joined": reached(1), "joined twice": reached(2)}))
os.close(end_write)
os.waitpid(inside, 0)
""",
        user,
    )
    assert got == {"outside": False, "joined": True, "joined twice": True}


def test_what_is_not_there_cannot_be_joined() -> None:
    done = subprocess.Popen(["true"])
    done.wait()
    with pytest.raises(OSError, match=r"\d"):
        namespaces.join(done.pid)
