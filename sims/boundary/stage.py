"""The surroundings of a hostile process: the other party's real node, its files, a terminal, listeners, and the checks
for success.

Success of an attack is judged here, from outside: by bytes that the attacker returned, by what a listener heard, by
what changed.
"""

import contextlib
import ctypes
import fcntl
import os
import secrets
import shutil
import signal
import socket
import struct
import sysconfig
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

import protocol
from protocol.node import confine
from sims.boundary.acts.act import StoppedError, call, libc
from sims.boundary.listeners import Listeners
from sims.boundary.sites import Site, Sites, make_sites, started
from sims.boundary.terminal import Terminal

_MARK, _SCRATCH, _OPERATORS = "LEARNGENE_BOUNDARY_MARK", "LEARNGENE_BOUNDARY_SCRATCH", "LEARNGENE_BOUNDARY_TOKEN"
_NOBODY = 65534
_AT_FDCWD = -100
_NAME_BYTES = 15
# Descriptors that are left open get numbers that no other file of a process gets.
_LEFT_OPEN = 700
_GROUPS = Path("/sys/fs/cgroup")
#: Small files of the victim's that an attack may spoil.
_SPOILED = ("movable", "writable", "cuttable", "removable", "replaceable", "chmodable", "attributed", "listed")


class Stage:
    """The surroundings of the attackers, until the ``with`` of :func:`set_stage` ends.

    Attributes:
        pid: of the other party's node process.
        mark: text in that process's memory, and nowhere else.
        operators: text in the environment that attackers are started from.
        terminal: the operator's.
        handle: of the victim's image, as the kernel names files past their paths; empty if it gives none.
    """

    def __init__(
        self, sites: Sites, pid: int, mark: str, listeners: Listeners, outside: Path, terminal: Terminal
    ) -> None:
        self.sites, self.pid, self.mark = sites, pid, mark
        self.listeners, self._outside, self.terminal = listeners, outside, terminal
        self.segment = _shared_segment(mark)
        self.operators = secrets.token_hex(16)
        self.package = Path(protocol.__file__).parent
        # One that no starting process opens: a lease is given only on a file that nobody has open.
        self.package_file = self.package / "flower_app" / "pyproject.toml"
        self.handle = _handle(self.victim.private)

    @property
    def victim(self) -> Site:
        """The site that is attacked."""
        return self.sites.individual

    def aims(self, own: Path, site: Site, token: str) -> dict[str, str]:
        """Everything that an act may need, made for each run.

        Args:
            own: a folder that the attacker may write to.
            site: the attacker's own.
            token: what is to show up somewhere if the act succeeds.
        """
        node = self.victim.node
        assert node.key_file is not None
        place, size, scratch = _environment(self.pid)
        return {
            **{name: str(self.victim.data / name) for name in _SPOILED},
            **self.listeners.addresses,
            "link": str(self.victim.data / "link"),
            "set_user_id": str(self._outside / "id"),
            "token": token,
            "pid": str(self.pid),
            "environment": str(place),
            "environment_size": str(size),
            "scratch": str(scratch),
            "variable": _OPERATORS,
            "private": str(self.victim.private),
            "data": str(self.victim.data),
            "key": str(node.key),
            "key_file": str(node.key_file),
            "secret": str(node.secret),
            "log": str(node.state / "node.log"),
            "ledger": str(node.state / "ledger.db"),
            "socket": str(node.socket),
            "own": str(own),
            "own_data": str(site.data),
            "own_config": str(site.config),
            "own_trust": str(site.node.trust),
            "temporary_drop": str(self._drop(Path(tempfile.gettempdir()), token)),
            "shared_memory_drop": str(self._drop(Path("/dev/shm"), token)),
            "site_packages": sysconfig.get_path("purelib"),
            "package": str(self.package),
            "package_file": str(self.package_file),
            "interpreter": sysconfig.get_path("stdlib"),
            "system_file": os.path.realpath(sysconfig.get_path("stdlib") + "/os.py"),
            "interface": socket.if_nameindex()[-1][1],
            "handle": self.handle.hex(),
            "group": str(_NOBODY),
            "time": str(int(time.time()) - 1000),
            "ipc_key": str(int(token[:7], 16)),
            "segment": str(self.segment),
        }

    @staticmethod
    def _drop(folder: Path, token: str) -> Path:
        return folder / f"boundary-{token}"

    def set_up(self, own: Path) -> None:
        """Put everything that an act may have changed back to where it was, in the victim's site and the attacker's."""
        data = self.victim.data
        for name in _SPOILED:
            (data / name).unlink(missing_ok=True)
            (data / name).write_bytes(self.victim.marker + b"\n")
            (data / name).chmod(0o600)
        # Text, for a shell that cannot read anything else.
        (data / "listed").write_text(self.victim.marker.hex() + "\n")
        with contextlib.suppress(OSError):
            os.setxattr(data / "attributed", "user.note", self.mark.encode())
        (data / "link").unlink(missing_ok=True)
        (data / "link").symlink_to(self.mark)
        (data / "dropped").unlink(missing_ok=True)
        self.terminal.set_up()
        shutil.rmtree(own, ignore_errors=True)
        for name in ("harmless", "planted"):
            (own / "race" / name).mkdir(parents=True)
        (own / "planted-link").symlink_to(self.victim.private)
        (own / "race" / "planted" / "file").symlink_to(self.victim.private)
        (own / "race" / "harmless" / "file").write_bytes(b"harmless")

    def go_on(self) -> None:
        """Wake the other party's node, if it was stopped."""
        os.kill(self.pid, signal.SIGCONT)

    @property
    def shell(self) -> dict[str, str]:
        """What the environment of the operator's shell holds besides."""
        return {_OPERATORS: self.operators}

    @contextlib.contextmanager
    def careless(self) -> Iterator[tuple[int, int]]:
        """As a careless operator starts a process: with a file of the other party's and a terminal left open; the
        numbers of these two descriptors. The shell's environment holds a secret meanwhile."""
        left_open = os.open(self.victim.private, os.O_RDONLY)
        numbers = tuple(_high(number) for number in (left_open, self.terminal.descriptor))
        os.close(left_open)
        try:
            yield numbers[0], numbers[1]
        finally:
            for number in numbers:
                os.close(number)

    # --- What can be seen -------------------------------------------------------------------------------------------

    def heard(self, token: str) -> bool:
        """Whether a listener was told the token."""
        return token.encode() in self.listeners.received

    def dropped(self, place: Path, token: str) -> bool:
        """Whether the drop is there; it is removed."""
        path = self._drop(place, token)
        found = path.exists()
        path.unlink(missing_ok=True)
        return found

    def in_own(self, file: Callable[[Site], Path], token: str) -> bool:
        """Whether the token stands in this file of a site, whichever the attacker's is."""
        return any(token.encode() in file(site).read_bytes() for site in self.sites.all)

    def stopped(self) -> bool:
        """Whether the other party's node is stopped."""
        return psutil.Process(self.pid).status() == psutil.STATUS_STOPPED

    def scratch(self) -> bytes:
        """What stands now in the other node's environment."""
        return Path(f"/proc/{self.pid}/environ").read_bytes()

    def type(self, token: str) -> None:
        """Type as the operator does at the terminal."""
        self.terminal.type(token + "\n")

    def sibling(self, token: str) -> bool:
        """Whether this process has a child of that name that it did not start; it is ended."""
        for child in psutil.Process().children():
            if _name(child) == token[:_NAME_BYTES]:
                child.kill()
                os.waitpid(child.pid, 0)
                return True
        return False

    def orphan(self, pid: int) -> bool:
        """Whether a process is there; it is ended."""
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            return False
        return True

    def named(self, token: str) -> bool:
        """Whether any process of this machine bears the token."""
        return any(_name(process) == token[:_NAME_BYTES] for process in psutil.process_iter())

    @property
    def owns_package(self) -> bool:
        """Whether the project's files belong to this user, or to root if root asks."""
        return os.geteuid() in (0, self.package_file.stat().st_uid)

    def held_up(self) -> bool:
        """Whether a process that opens a file of the package would have to wait."""
        try:
            os.close(os.open(self.package_file, os.O_RDONLY | os.O_NONBLOCK))
        except BlockingIOError:
            return True
        return False

    @property
    def grouped(self) -> bool:
        """Whether the tree of control groups tells the number of the other party's node."""
        return any(
            str(self.pid) in path.read_text().split() for path in _GROUPS.rglob("cgroup.procs") if path.is_file()
        )

    def wake(self, seconds: float) -> None:
        """For this time, wake every process that waits on the first word of a file of the package."""
        threading.Thread(target=self._wake, args=(time.monotonic() + seconds,), daemon=True).start()

    def _wake(self, deadline: float) -> None:
        descriptor = os.open(self.package_file, os.O_RDONLY)
        libc.mmap.restype = ctypes.c_void_p
        place = libc.mmap(None, ctypes.c_size_t(4096), 1, 1, descriptor, ctypes.c_long(0))
        os.close(descriptor)
        while time.monotonic() < deadline:
            # FUTEX_WAKE, shared.
            call("futex", ctypes.c_void_p(place), 1, 1, None, None, 0)
            time.sleep(0.02)
        libc.munmap(ctypes.c_void_p(place), ctypes.c_size_t(4096))


@contextlib.contextmanager
def set_stage(folder: Path) -> Iterator[Stage]:
    """Make the sites in a folder, and start the other party's node, confined if this kernel can, and the listeners.

    Args:
        folder: new or empty, and short: sockets lie in it.
    """
    sites, mark = make_sites(folder), secrets.token_hex(16)
    outside = folder / "outside"
    outside.mkdir(mode=0o711)
    _set_user_id_program(outside / "id")
    (sites.individual.data / "images").mkdir()
    environment = {_MARK: mark, _SCRATCH: "." * 32}
    with (
        Terminal() as terminal,
        Listeners(outside) as listeners,
        started(sites.individual, unconfined=not confine.offered(), environment=environment) as process,
    ):
        made = Stage(sites, process.process.pid, mark, listeners, outside, terminal)
        os.environ |= made.shell
        try:
            yield made
        finally:
            os.environ.pop(_OPERATORS, None)
            _remove_segment(made.segment)


# --- Small things ---------------------------------------------------------------------------------------------------


def _high(number: int) -> int:
    """The same file, by a number that nothing else gets."""
    return fcntl.fcntl(number, fcntl.F_DUPFD, _LEFT_OPEN)


def _name(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.name()[:_NAME_BYTES]
    return ""


def _environment(pid: int) -> tuple[int, int, int]:
    """Where a process keeps its environment: address, bytes; and the address of our scratch in it."""
    # psutil gives the environment, but not its address.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    start, end = int(fields[47]), int(fields[48])
    content = Path(f"/proc/{pid}/environ").read_bytes()
    return start, end - start, start + content.index(f"{_SCRATCH}=".encode()) + len(_SCRATCH) + 1


def _handle(path: Path) -> bytes:
    handle, mount = ctypes.create_string_buffer(struct.pack("=Ii", 128, 0), 136), ctypes.c_int()
    try:
        call("name_to_handle_at", _AT_FDCWD, os.fsencode(path), handle, ctypes.byref(mount), 0)
    except StoppedError:
        return b""
    return handle.raw


def _set_user_id_program(path: Path) -> None:
    """A program that runs as another user, if this process can make one."""
    shutil.copyfile(os.path.realpath(shutil.which("id") or "/usr/bin/id"), path)
    with contextlib.suppress(PermissionError):
        os.chown(path, _NOBODY, -1)
    path.chmod(0o4755)


def _shared_segment(text: str) -> int:
    """A System V segment of our own that holds this; its number."""
    number = int(libc.shmget(0, 4096, 0o1600))
    libc.shmat.restype = ctypes.c_void_p
    address = libc.shmat(number, None, 0)
    ctypes.memmove(address, text.encode(), len(text))
    libc.shmdt(ctypes.c_void_p(address))
    return number


def _remove_segment(number: int) -> None:
    libc.shmctl(number, 0, None)
