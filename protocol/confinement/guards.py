"""Guards: the limits that the operating system sets a process, each tested in the process itself.

Every claim was tested in this process after it was confined; parts that the kernel lacks are reported as missing.
"""

import contextlib
import ctypes
import errno
import fcntl
import os
import socket
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from protocol.confinement import landlock, privileges, seccomp, system_calls

_SIOCGIFCONF = 0x8912


@dataclass(frozen=True)
class Guard:
    """One limit that the operating system sets a process, and whether it held in a test of this one."""

    name: str
    meaning: str
    enforced: bool


@dataclass(frozen=True)
class Confinement:
    """The state of a process's confinement.

    Attributes:
        landlock_abi: version of Landlock's interface; 0 if the kernel has none.
        seccomp: whether the kernel filters system calls on request.
        guards: the guards of its profile, in their order, as tested in the process itself.
        notes: further facts for the operator: an exception that was made, or another wall that is missing.
    """

    landlock_abi: int
    seccomp: bool
    guards: tuple[Guard, ...]
    notes: tuple[str, ...] = ()

    @property
    def enforced(self) -> bool:
        """Whether every guard holds."""
        return all(guard.enforced for guard in self.guards)

    @property
    def line(self) -> str:
        """One line for logs and reports."""
        kernel = f"Landlock ABI {self.landlock_abi}" if self.landlock_abi else "no Landlock"
        filters = "seccomp" if self.seccomp else "no seccomp"
        missing = ", ".join(guard.name for guard in self.guards if not guard.enforced)
        holds = "confined" if self.enforced else f"unconfined: not enforced are {missing}"
        return "; ".join((f"{holds} (this kernel offers {kernel}, {filters})", *self.notes))


#: Name and meaning of every guard.
GUARDS = {
    "files": "reads and writes its own folders only",
    "network": "no socket of any family but Unix, no connection, no descriptor from elsewhere, no io_uring",
    "memory": "no debugging and no reading of another process",
    "signals": "no signal to another process",
    "privileges": "no capability, and none is gained by starting a program",
    "calls": "no system call but those that it needs",
    "view": "sees no other process, and nothing of the machine's network",
}


@dataclass(frozen=True)
class Profile:
    """A kind of process that is confined.

    Attributes:
        name: for messages.
        guards: the guards of ``GUARDS`` that it claims.
        accept: how its operator accepts that no guard holds.
    """

    name: str
    guards: tuple[str, ...]
    accept: str

    @property
    def network(self) -> bool:
        """Whether sockets and TCP stay allowed."""
        return "network" not in self.guards


#: Folders in which every user may write.
OPEN_TO_ALL = ("/tmp", "/var/tmp", "/dev/shm")
_REFUSALS = (errno.EPERM, errno.EACCES, errno.ENOSYS, errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT)

NODE = Profile("node", tuple(GUARDS), "set unconfined = true or pass --unconfined")
COURIER = Profile("courier", ("files", "memory", "signals", "privileges", "calls"), "pass --unconfined")


def not_confined(profile: Profile = NODE) -> Confinement:
    """The state of a process that is not confined, with what the kernel would offer."""
    guards = tuple(Guard(name, GUARDS[name], False) for name in profile.guards)
    return Confinement(landlock.abi(), seccomp.offered(), guards)


def look(profile: Profile = NODE) -> Confinement:
    """Test which guards hold for this process now; changes nothing."""
    with bystander() as other, connected_pair() as pair:
        guards = try_guards(other, pair, profile, (), try_privileges())
        return Confinement(landlock.abi(), seccomp.offered(), guards)


@contextmanager
def bystander() -> Iterator[int]:
    """Process id of a child that is not confined with this process and does nothing: the guards are tested on it."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(writing)
        os.read(reading, 1)
        os._exit(0)
    os.close(reading)
    try:
        yield child
    finally:
        os.close(writing)
        # A confined node cannot wait for a child; the kernel buries it.
        with contextlib.suppress(OSError):
            os.waitpid(child, 0)


@contextmanager
def connected_pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two connected sockets, made while this is allowed."""
    one, other = socket.socketpair()
    with one, other:
        yield one, other


def try_privileges() -> bool:
    """Whether no program gains privileges, and no capability is left."""
    return landlock.has_no_new_privileges() and not privileges.has_capabilities()


def try_guards(
    bystander: int, pair: tuple[socket.socket, socket.socket], profile: Profile, apart: Iterable[Path], privileged: bool
) -> tuple[Guard, ...]:
    """Try, harmlessly, what every guard must forbid."""
    tries: dict[str, tuple[Callable[[], object], ...]] = {
        "files": (
            lambda: os.listdir("/"),
            lambda: Path("/etc/passwd").read_bytes(),
            _write_where_everybody_may,
            *(partial(os.listdir, folder) for folder in apart),
        ),
        "network": (
            lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM).close(),
            lambda: socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).close(),
            lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW).close(),
            lambda: socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).close(),
            _connect_to_a_closed_port,
            lambda: socket.send_fds(pair[0], [b"x"], [pair[0].fileno()]),
            lambda: _take_message(*pair),
            lambda: _system_call("io_uring_setup", 0, None),
        ),
        "memory": (
            lambda: _system_call("ptrace", -1, bystander, None, None),
            lambda: _system_call("process_vm_readv", bystander, None, 0, None, 0, 0),
            lambda: Path(f"/proc/{bystander}/environ").read_bytes(),
        ),
        "signals": (lambda: os.kill(bystander, 0),),
        "calls": (
            lambda: os.close(os.memfd_create("none")),
            lambda: _system_call("userfaultfd", os.O_CLOEXEC),
            lambda: _lease(sys.executable),
            *((lambda: os.execv("/no-such-program", ["none"]), _fork) if profile is NODE else ()),
        ),
        "view": (
            lambda: Path("/proc/self/net/unix").read_bytes(),
            lambda: Path("/proc/self/mountinfo").read_bytes(),
            lambda: os.listdir("/proc"),
            lambda: os.listdir("/sys"),
            lambda: fcntl.ioctl(pair[0], _SIOCGIFCONF, bytes(16)),
        ),
    }
    held = {name: all(map(_refused, attempts)) for name, attempts in tries.items()} | {"privileges": privileged}
    return tuple(Guard(name, GUARDS[name], held[name]) for name in profile.guards)


def _refused(attempt: Callable[[], object]) -> bool:
    """Whether it fails because permission is missing, or because this kernel has no such call. Failure because a file
    is missing proves nothing.
    """
    try:
        attempt()
    except OSError as error:
        return error.errno in _REFUSALS
    return False


def _write_where_everybody_may() -> None:
    """Make a file without a name, of which nothing remains. Of a folder that is missing or read-only, as in some
    containers, nothing is learned; another one's refusal counts then."""
    errors = []
    for folder in OPEN_TO_ALL:
        try:
            os.close(os.open(folder, os.O_TMPFILE | os.O_WRONLY, 0o600))
            return
        except OSError as error:
            errors.append(error)
    raise next((error for error in errors if error.errno in _REFUSALS), errors[0])


def _connect_to_a_closed_port() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as one:
        one.connect("/no-such-socket")


def _take_message(one: socket.socket, other: socket.socket) -> None:
    other.sendall(b"x")
    one.recvmsg(1)


def _lease(path: str) -> None:
    """Take a lease on a file, which makes another opener wait (fcntl(2), F_SETLEASE), and give it up again."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    finally:
        os.close(descriptor)


def _fork() -> None:
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)


def _system_call(name: str, *arguments: object) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(system_calls.number(name), *arguments) < 0:
        raise OSError(ctypes.get_errno(), name)
