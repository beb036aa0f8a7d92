"""Confinement: what the operating system keeps a process from, applied before its first thread and tried out at once.

Landlock holds a process to the paths that it names, seccomp to the system calls that stay inside. What is claimed was
tried in this very process after both were applied; a kernel that lacks a part of it is said to lack it.
"""

import contextlib
import ctypes
import errno
import fcntl
import importlib.util
import os
import shutil
import socket
import stat
import sys
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from glob import glob
from pathlib import Path

from protocol.confinement import landlock, privileges, seccomp, system_calls
from protocol.confinement.allowed_calls import COURIER as COURIER_CALLS
from protocol.confinement.allowed_calls import node_policy
from protocol.confinement.landlock import DEVICE, OWN, READ, READ_AND_RUN, Access
from protocol.confinement.warden import Warden
from protocol.errors import InputError, RunFailedError
from protocol.node_configuration import NodeTable

#: Programs, shared libraries and the tables that the dynamic loader reads.
_SYSTEM = ("/usr", "/lib", "/lib64", "/etc/ld.so.cache", "/etc/localtime")
#: What a numerical library asks about the machine it runs on: single files, since the folders tell of other processes.
_MACHINE = (
    "/proc/cpuinfo",
    "/proc/meminfo",
    "/proc/sys/vm/overcommit_memory",
    "/sys/devices/system/cpu/possible",
    "/sys/devices/system/cpu/present",
    "/sys/devices/system/cpu/online",
    "/sys/devices/system/cpu/kernel_max",
    "/sys/devices/system/cpu/cpu*/topology/*",
    "/sys/devices/system/cpu/cpu*/cache/index*/*",
    "/sys/devices/system/node/possible",
    "/sys/devices/system/node/online",
    "/sys/devices/system/node/node*/cpulist",
    "/sys/devices/system/node/node*/cpumap",
    "/sys/devices/system/node/node*/distance",
    "/sys/devices/system/node/node*/meminfo",
)
#: Folders of which names may be listed, and nothing in them read: how many processors there are.
_LISTED = ("/sys/devices/system/cpu", "/sys/devices/system/node")
#: What a process asks about itself. Not ``net``, ``mountinfo`` or ``fd``.
_ITSELF = ("maps", "status", "stat", "statm", "cgroup", "limits", "auxv", "environ", "cmdline", "comm")
#: Limits that a container or a service sets, in the process's own control group.
_LIMITS = ("cpu.max", "memory.max", "cpu.cfs_quota_us", "cpu.cfs_period_us", "memory.limit_in_bytes")
_GPU_FACTS = ("/proc/driver/nvidia*", "/proc/devices", "/proc/modules", "/sys/bus/pci", "/sys/devices", "/sys/module")
_GPU_DEVICES = ("/dev/nvidia*", "/dev/dri", "/dev/kfd")
#: Those of them that every program on a GPU opens.
_GPU_FILES = ("/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia[0-9]*", "/dev/dri/renderD*", "/dev/kfd")
_SIOCGIFCONF = 0x8912
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
        notes: what its operator is to know besides: an exception that was made, a further wall that is missing.
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
COURIER = Profile("courier", ("files", "memory", "signals", "privileges", "calls"), "pass --unconfined")


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
    itself = [f"/proc/self/{name}" for name in _ITSELF]
    rules |= dict.fromkeys([*_existing((*_MACHINE, *itself)), *_own_limits()], Access.READ_FILE)
    rules |= dict.fromkeys(_existing(_LISTED), Access.READ_DIR)
    rules |= {Path(name): Access.READ_FILE for name in ("/dev/urandom", "/dev/random", "/dev/zero")}
    return rules | {Path("/dev/null"): Access.READ_FILE | Access.WRITE_FILE}


def _own_limits() -> list[Path]:
    """Files of this process's control group, and of those that it lies in, which say how much it may use."""
    root = Path("/sys/fs/cgroup")
    found = []
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            for controller in controllers.split(",") or [""]:
                group = root / controller / path.lstrip("/")
                found += [one / name for one in (group, *group.parents) if one.is_relative_to(root) for name in _LIMITS]
    return [path for path in dict.fromkeys(found) if path.is_file()]


def code_folders(packages: Iterable[str]) -> list[Path]:
    """Where the interpreter, the installed packages and the named ones lie."""
    # A virtual environment's interpreter lies outside it.
    code = [sys.prefix, sys.base_prefix, *(folder for package in packages for folder in _folders(package))]
    return [Path(folder) for folder in dict.fromkeys(code)]


def check_apart(node: NodeTable, configuration: Path | None = None) -> None:
    """Refuse folders that lie inside each other: rules hold for all that is beneath a path.

    Args:
        configuration: the file that the node is started with.

    Raises:
        InputError: they do, something that the node starts with lies where it may write, or the trust store's folder
            holds folders that are not the node's.
    """
    data, state = node.data.resolve(), node.state.resolve()
    if state.is_relative_to(data):
        raise InputError(f"node.state {state} lies inside node.data: a node only reads its data; choose another folder")
    if data.is_relative_to(state):
        raise InputError(f"node.data {data} lies inside node.state: a node may write there; keep its images elsewhere")
    # A node that was taken over could write anew what it is started with next.
    settings = ("policy", "trust", "secret", "key", "encryption_key", "key_file")
    given = {"the configuration": configuration} | {f"node.{name}": getattr(node, name) for name in settings}
    for name, path in given.items():
        if path is not None and path.resolve().is_relative_to(state):
            raise InputError(
                f"{name} {path} lies inside node.state: a node may write there, and starts with what it wrote; keep it "
                "elsewhere"
            )
    trust = node.trust.parent.resolve()
    if not trust.is_relative_to(data):
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


def apply(
    node: NodeTable,
    packages: Iterable[str],
    *,
    unconfined: bool,
    warden: Warden | None = None,
    notes: Iterable[str] = (),
    configuration: Path | None = None,
) -> Confinement:
    """Confine a node's process; called before its second thread.

    Args:
        configuration: the file that it is started with.
        packages: those of this project that it runs.
        unconfined: the operator accepts that nothing is enforced, and nothing is.
        warden: notes the system calls that are refused; None: they are refused all the same.
        notes: of what was done before, for :class:`Confinement`.

    Raises:
        InputError: its folders lie inside each other.
        RunFailedError: this kernel cannot confine it and the operator did not accept that.
    """
    check_apart(node, configuration)
    if unconfined:
        return not_confined()
    cuda = node.device != "cpu" and bool(gpu_devices())
    found = confine(node_rules(node, packages), node.state, cuda=cuda, warden=warden)
    exceptions = ("exception: system calls that a GPU's driver needs, unmeasured",) if cuda else ()
    return replace(found, notes=(*notes, *exceptions))


def confine(
    rules: Mapping[Path, Access],
    own: Path,
    profile: Profile = NODE,
    *,
    apart: Iterable[Path] = (),
    cuda: bool = False,
    warden: Warden | None = None,
) -> Confinement:
    """Confine this process; its children inherit it, and the program that it becomes. A node must have one thread only:
    others would stay outside. A courier's others end when it becomes its program.

    Args:
        rules: what it may reach.
        own: the one folder that it may write to; its temporary and cache folders are made in it.
        apart: folders that it is not to reach, which is tried where they exist.
        cuda: with the system calls that a GPU needs.
        warden: notes the system calls that are refused to a node.

    Raises:
        RunFailedError: the kernel cannot, a guard does not hold, or a node has a second thread; nothing of the process
            may go on then.
    """
    if not offered():
        raise RunFailedError(_too_old(not_confined(profile), profile))
    found = restrict(rules, own, profile, apart=apart, cuda=cuda, warden=warden)
    if not found.enforced:
        raise RunFailedError(_too_old(found, profile))
    return found


def restrict(
    rules: Mapping[Path, Access],
    own: Path,
    profile: Profile = NODE,
    *,
    apart: Iterable[Path] = (),
    cuda: bool = False,
    warden: Warden | None = None,
) -> Confinement:
    """As :func:`confine`, as far as this kernel goes; what holds then is for the caller to look at.

    Raises:
        RunFailedError: the kernel refused what it offers, or a node has a second thread.
    """
    if profile is NODE and len(os.listdir("/proc/self/task")) != 1:
        raise RunFailedError("this process has a second thread already, which would stay unconfined; start it anew")
    privileges.drop_capabilities()
    apart = [folder for folder in apart if os.path.lexists(folder)]
    with _bystander() as bystander, _pair() as pair:
        landlock.set_no_new_privileges()
        version, filters = landlock.abi(), seccomp.offered()
        if version:
            landlock.restrict(rules, tcp=profile.network)
        # What is left of its state from the last time is touched by a confined process only.
        _own_temporary_folders(own)
        # Afterwards it cannot ask any more.
        privileged = _try_privileges()
        if filters and profile is not NODE:
            seccomp.restrict(COURIER_CALLS)
        elif filters and warden is not None:
            seccomp.restrict_noting(node_policy(os.getpid(), cuda=cuda), warden.channel)
        elif filters:
            seccomp.restrict(node_policy(os.getpid(), cuda=cuda))
        guards = _try_guards(bystander, pair, profile, apart, privileged)
    if warden is not None:
        warden.begin()
    return Confinement(version, filters, guards)


def offered() -> bool:
    """Whether this kernel has all that ``confine`` needs. Only ``confine`` itself shows that it works."""
    return landlock.abi() >= landlock.ABI_SCOPES and seccomp.offered()


def not_confined(profile: Profile = NODE) -> Confinement:
    """The process stays as it is; what the kernel would offer is said all the same."""
    guards = tuple(Guard(name, GUARDS[name], False) for name in profile.guards)
    return Confinement(landlock.abi(), seccomp.offered(), guards)


def look(profile: Profile = NODE) -> Confinement:
    """What holds for this process as it is, tried out; changes nothing."""
    with _bystander() as bystander, _pair() as pair:
        guards = _try_guards(bystander, pair, profile, (), _try_privileges())
        return Confinement(landlock.abi(), seccomp.offered(), guards)


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
        try:
            if os.path.lexists(folder):
                shutil.rmtree(folder)
            folder.mkdir(mode=0o700)
        except (OSError, RecursionError) as error:
            # Folders thousands deep, say, which whoever wrote there before has left.
            raise InputError(f"{folder} cannot be emptied ({error}); remove it: rm -rf {folder}") from None
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
        # A confined node waits for no child any more: it has none but this one, which ends.
        with contextlib.suppress(PermissionError):
            os.waitpid(child, 0)


@contextmanager
def _pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two sockets that are connected, made while that is allowed."""
    one, other = socket.socketpair()
    with one, other:
        yield one, other


def _try_privileges() -> bool:
    """Whether no program gains privileges, and no capability is left."""
    return landlock.has_no_new_privileges() and not privileges.has_capabilities()


def _try_guards(
    bystander: int, pair: tuple[socket.socket, socket.socket], profile: Profile, apart: Iterable[Path], privileged: bool
) -> tuple[Guard, ...]:
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


def _take_message(one: socket.socket, other: socket.socket) -> None:
    other.sendall(b"x")
    one.recvmsg(1)


def _lease(path: str) -> None:
    """Hold up whoever opens a file for writing (fcntl(2), F_SETLEASE), and give that up again."""
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
