"""Confinement: what the operating system keeps a process from, applied before its first thread and tried out at once.

Landlock holds a process to the paths that it names, seccomp to the system calls that stay inside. What is claimed was
tried in this very process after both were applied; a kernel that lacks a part of it is said to lack it.
"""

import ctypes
import errno
import importlib.util
import os
import platform
import shutil
import socket
import stat
import sys
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from glob import glob
from pathlib import Path

from protocol.confinement import landlock, privileges, seccomp
from protocol.confinement.landlock import DEVICE, OWN, READ, READ_AND_RUN, Access
from protocol.errors import InputError, RunFailedError
from protocol.node_configuration import NodeTable

#: Programs, shared libraries and the tables that the dynamic loader reads.
_SYSTEM = ("/usr", "/lib", "/lib64", "/etc/ld.so.cache", "/etc/localtime")
#: What a numerical library asks about the machine it runs on.
_MACHINE = (
    "/proc/cpuinfo",
    "/proc/meminfo",
    "/proc/stat",
    "/proc/filesystems",
    "/proc/sys/vm/overcommit_memory",
    "/sys/devices/system",
    "/sys/fs/cgroup",
)
_GPU_FACTS = ("/proc/driver/nvidia*", "/proc/devices", "/proc/modules", "/sys/bus/pci", "/sys/devices", "/sys/module")
_GPU_DEVICES = ("/dev/nvidia*", "/dev/dri", "/dev/kfd")
#: Those of them that every program on a GPU opens.
_GPU_FILES = ("/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia[0-9]*", "/dev/dri/renderD*", "/dev/kfd")
#: What finding a host by its name and checking a certificate read. Folders where files in them are replaced.
_NETWORK = (
    "/etc/resolv.conf",
    "/run/systemd/resolve",
    "/etc/hosts",
    "/etc/host.conf",
    "/etc/nsswitch.conf",
    "/etc/gai.conf",
    "/etc/services",
    "/etc/protocols",
    "/etc/ssl/openssl.cnf",
    "/etc/ssl/certs",
    "/etc/pki/tls/openssl.cnf",
    "/etc/pki/tls/certs",
    "/etc/pki/ca-trust",
    "/etc/ca-certificates",
)


@dataclass(frozen=True)
class Guard:
    """One thing that the operating system keeps a process from, and whether that was seen to hold in this one."""

    name: str
    meaning: str
    enforced: bool


@dataclass(frozen=True)
class Confinement:
    """What holds for a process.

    Attributes:
        landlock_abi: version of Landlock's interface; 0 where the kernel has none.
        seccomp: whether the kernel filters system calls on request.
        guards: what was tried in the process itself: those of its profile, in their order.
    """

    landlock_abi: int
    seccomp: bool
    guards: tuple[Guard, ...]

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
        return f"{holds} (this kernel offers {kernel}, {filters})"


#: Name and meaning of every guard.
GUARDS = {
    "files": "reads and writes its own folders only",
    "network": "no socket of any family but Unix, no connection, no descriptor from elsewhere, no io_uring",
    "memory": "no debugging and no reading of another process",
    "signals": "no signal to another process",
    "privileges": "no capability, and none is gained by starting a program",
}


@dataclass(frozen=True)
class Profile:
    """A kind of process that is confined.

    Attributes:
        name: for messages.
        guards: those of ``GUARDS`` that are claimed.
        accept: how its operator accepts that nothing holds.
    """

    name: str
    guards: tuple[str, ...]
    accept: str

    @property
    def network(self) -> bool:
        """Whether sockets and TCP stay allowed."""
        return "network" not in self.guards


NODE = Profile("node", tuple(GUARDS), "set unconfined = true or pass --unconfined")
COURIER = Profile("courier", ("files", "memory", "signals", "privileges"), "pass --unconfined")


def node_rules(node: NodeTable, packages: Iterable[str]) -> dict[Path, Access]:
    """What a node may reach: its data (to read), its state (all), its trust store's folder, the interpreter with the
    named packages, and its devices."""
    rules = program_rules(packages)
    if node.device != "cpu":
        rules |= gpu_rules()
    if node.policy is not None:
        rules |= {node.policy: Access.READ_FILE}
    return rules | {node.trust.parent: READ, node.data: READ, node.state: OWN}


def gpu_rules() -> dict[Path, Access]:
    """What computing on a GPU needs."""
    return dict.fromkeys(_existing(_GPU_FACTS), READ) | dict.fromkeys(_existing(_GPU_DEVICES), DEVICE | READ)


def courier_rules(home: Path, files: Iterable[Path]) -> dict[Path, Access]:
    """What a courier may reach: its home, the interpreter, the network's tables and, to read, these files."""
    rules = program_rules(["protocol", "flwr"]) | dict.fromkeys(_existing(_NETWORK), READ)
    return rules | dict.fromkeys(files, Access.READ_FILE) | {home: OWN}


def program_rules(packages: Iterable[str]) -> dict[Path, Access]:
    """What any Python program needs: the interpreter, its libraries, the named packages wherever they lie, and facts
    about the machine."""
    rules = dict.fromkeys([*_existing(_SYSTEM), *code_folders(packages)], READ_AND_RUN)
    rules |= dict.fromkeys(_existing((*_MACHINE, f"/proc/{os.getpid()}")), READ)
    rules |= {Path(name): Access.READ_FILE for name in ("/dev/urandom", "/dev/random", "/dev/zero")}
    return rules | {Path("/dev/null"): Access.READ_FILE | Access.WRITE_FILE}


def code_folders(packages: Iterable[str]) -> list[Path]:
    """Where the interpreter, the installed packages and the named ones lie."""
    # A virtual environment's interpreter lies outside it.
    code = [sys.prefix, sys.base_prefix, *(folder for package in packages for folder in _folders(package))]
    return [Path(folder) for folder in dict.fromkeys(code)]


def check_apart(node: NodeTable) -> None:
    """Refuse folders that lie inside each other: rules hold for all that is beneath a path.

    Raises:
        InputError: they do, or the trust store's folder holds folders that are not the node's.
    """
    data, state = node.data.resolve(), node.state.resolve()
    if state.is_relative_to(data):
        raise InputError(f"node.state {state} lies inside node.data: a node only reads its data; choose another folder")
    if data.is_relative_to(state):
        raise InputError(f"node.data {data} lies inside node.state: a node may write there; keep its images elsewhere")
    # A node that was taken over could write anew what it is started with next. The trust store may lie there: it is
    # signed with the root key. A simulation has it there; a site keeps it beside the configuration.
    if node.policy is not None and node.policy.resolve().is_relative_to(state):
        raise InputError(f"node.policy {node.policy} lies inside node.state: a node may write there; keep it elsewhere")
    trust = node.trust.parent.resolve()
    if not any(trust.is_relative_to(folder) for folder in (data, state)):
        _check_trust_folder(trust, {data, state, node.socket.parent.resolve()})


def _check_trust_folder(folder: Path, own: Collection[Path]) -> None:
    """The node reads all of it, because a new trust store takes the place of the old one: it must be no folder of many
    things, such as a home or one that holds other parties' folders."""
    if not folder.is_dir():
        return
    # Links are left aside: a rule opens what lies beneath a folder, not where a link in it leads.
    with os.scandir(folder) as entries:
        inside = {Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False)}
    if others := sorted(inside - set(own)):
        raise InputError(
            f"node.trust lies in {folder}, all of which the node reads, {others[0]} as well; put trust.json into a "
            "folder of its own"
        )


def check_out_of_reach(rules: Mapping[Path, Access], folders: Iterable[Path]) -> None:
    """Refuse folders that lie beneath a path that a rule opens.

    Raises:
        InputError: one does.
    """
    for folder in folders:
        for path in rules:
            if folder.resolve().is_relative_to(path.resolve()):
                raise InputError(
                    f"the node's folder {folder} lies in {path}, which a courier reads; move the one or the other"
                )


def apply(node: NodeTable, packages: Iterable[str], *, unconfined: bool) -> Confinement:
    """Confine a node's process; called before its second thread.

    Args:
        packages: those of this project that it runs.
        unconfined: the operator accepts that nothing is enforced, and nothing is.

    Raises:
        InputError: its folders lie inside each other.
        RunFailedError: this kernel cannot confine it and the operator did not accept that.
    """
    check_apart(node)
    return not_confined() if unconfined else confine(node_rules(node, packages), node.state)


def confine(
    rules: Mapping[Path, Access], own: Path, profile: Profile = NODE, *, apart: Iterable[Path] = ()
) -> Confinement:
    """Confine this process; its children inherit it, and the program that it becomes. A node must have one thread only:
    others would stay outside. A courier's others end when it becomes its program.

    Args:
        rules: what it may reach.
        own: the one folder that it may write to; its temporary and cache folders are made in it.
        apart: folders that it is not to reach, which is tried where they exist.

    Raises:
        RunFailedError: the kernel cannot, a guard does not hold, or a node has a second thread; nothing of the process
            may go on then.
    """
    if not offered():
        raise RunFailedError(_too_old(not_confined(profile), profile))
    found = restrict(rules, own, profile, apart=apart)
    if not found.enforced:
        raise RunFailedError(_too_old(found, profile))
    return found


def restrict(
    rules: Mapping[Path, Access], own: Path, profile: Profile = NODE, *, apart: Iterable[Path] = ()
) -> Confinement:
    """As :func:`confine`, as far as this kernel goes; what holds then is for the caller to look at.

    Raises:
        RunFailedError: the kernel refused what it offers, or a node has a second thread.
    """
    if profile is NODE and len(os.listdir("/proc/self/task")) != 1:
        raise RunFailedError("this process has a second thread already, which would stay unconfined; start it anew")
    _own_temporary_folders(own)
    privileges.drop_capabilities()
    apart = [folder for folder in apart if os.path.lexists(folder)]
    with _bystander() as bystander:
        landlock.set_no_new_privileges()
        if landlock.abi():
            landlock.restrict(rules, tcp=profile.network)
        if seccomp.offered():
            seccomp.restrict(network=profile.network)
        return Confinement(landlock.abi(), seccomp.offered(), _try_guards(bystander, profile, apart))


def offered() -> bool:
    """Whether this kernel has all that ``confine`` needs. Only ``confine`` itself shows that it works."""
    return landlock.abi() >= landlock.ABI_SCOPES and seccomp.offered()


def not_confined(profile: Profile = NODE) -> Confinement:
    """The process stays as it is; what the kernel would offer is said all the same."""
    guards = tuple(Guard(name, GUARDS[name], False) for name in profile.guards)
    return Confinement(landlock.abi(), seccomp.offered(), guards)


def look(profile: Profile = NODE) -> Confinement:
    """What holds for this process as it is, tried out; changes nothing."""
    with _bystander() as bystander:
        return Confinement(landlock.abi(), seccomp.offered(), _try_guards(bystander, profile, ()))


def _too_old(found: Confinement, profile: Profile) -> str:
    missing = ", ".join(guard.name for guard in found.guards if not guard.enforced)
    return (
        f"this kernel does not confine a {profile.name}: not enforced are {missing} (Landlock ABI {found.landlock_abi})"
        f"; it needs Linux 6.12 with Landlock and seccomp; to start all the same, {profile.accept}"
    )


def _folders(package: str) -> list[str]:
    specification = importlib.util.find_spec(package)
    return list((specification and specification.submodule_search_locations) or ())


def gpu_devices() -> list[Path]:
    """Files through which programs reach this machine's GPUs; empty where it has none."""
    return [path for path in _existing(_GPU_FILES) if stat.S_ISCHR(path.stat().st_mode)]


def _existing(patterns: Iterable[str]) -> list[Path]:
    return [Path(path) for pattern in patterns for path in glob(pattern)]


def _own_temporary_folders(own: Path) -> None:
    """Temporary and cache folders of this process's own, empty and 0700, where libraries look for theirs."""
    folders = {"TMPDIR": own / "temporary", "XDG_CACHE_HOME": own / "cache"}
    for folder in folders.values():
        if os.path.lexists(folder) and (folder.is_symlink() or not folder.is_dir()):
            folder.unlink()
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(mode=0o700)
    os.environ.update({name: str(folder) for name, folder in folders.items()})
    for name in ("CUDA_CACHE_PATH", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"):
        os.environ[name] = str(folders["XDG_CACHE_HOME"] / name.lower())
    # Read once and kept, unless told anew.
    tempfile.tempdir = None


@contextmanager
def _bystander() -> Iterator[int]:
    """Process id of a child that is not confined with this process and does nothing: somebody to try things on."""
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
        os.waitpid(child, 0)


def _try_guards(bystander: int, profile: Profile, apart: Iterable[Path]) -> tuple[Guard, ...]:
    """Try, harmlessly, what every guard is to forbid."""
    tries: dict[str, tuple[Callable[[], object], ...]] = {
        "files": (
            lambda: os.listdir("/"),
            lambda: Path("/etc/passwd").read_bytes(),
            # A file without a name: where this is allowed, nothing stays behind.
            lambda: os.close(os.open("/tmp", os.O_TMPFILE | os.O_WRONLY, 0o600)),
            *(partial(os.listdir, folder) for folder in apart),
        ),
        "network": (
            lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM).close(),
            lambda: socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).close(),
            lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW).close(),
            lambda: socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).close(),
            _connect_to_nobody,
            _pass_descriptor,
            _take_message,
            lambda: _system_call("io_uring_setup", 0, None),
        ),
        "memory": (
            lambda: _system_call("ptrace", -1, bystander, None, None),
            lambda: _system_call("process_vm_readv", bystander, None, 0, None, 0, 0),
            lambda: Path(f"/proc/{bystander}/environ").read_bytes(),
        ),
        "signals": (lambda: os.kill(bystander, 0),),
        "privileges": (_gain_privileges, _use_capabilities),
    }
    return tuple(
        Guard(name, GUARDS[name], all(_refused(attempt) for attempt in tries[name])) for name in profile.guards
    )


def _refused(attempt: Callable[[], object]) -> bool:
    """Whether it fails for want of permission, or because this kernel has nothing of the kind. That it fails because
    what it needs is not there shows nothing."""
    try:
        attempt()
    except OSError as error:
        return error.errno in (errno.EPERM, errno.EACCES, errno.ENOSYS, errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT)
    return False


def _connect_to_nobody() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as one:
        one.connect("/no-such-socket")


def _pass_descriptor() -> None:
    one, other = socket.socketpair()
    with one, other:
        socket.send_fds(one, [b"x"], [one.fileno()])


def _take_message() -> None:
    one, other = socket.socketpair()
    with one, other:
        other.sendall(b"x")
        one.recvmsg(1)


def _gain_privileges() -> None:
    if landlock.has_no_new_privileges():
        raise PermissionError(errno.EPERM, "no_new_privs")


def _use_capabilities() -> None:
    if not privileges.has_capabilities():
        raise PermissionError(errno.EPERM, "no capabilities")


def _system_call(name: str, *arguments: object) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(seccomp.FORBIDDEN[name][0 if platform.machine() == "x86_64" else 1], *arguments) < 0:
        raise OSError(ctypes.get_errno(), name)
