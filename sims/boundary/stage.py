"""Where a hostile process attacks: the other party's real node, its files, listeners of all kinds; and who saw what.

Whether an attack reached anything is judged here, from outside: by bytes that the attacker brought home, by what came
to a listener, by what changed.
"""

import contextlib
import ctypes
import errno
import os
import pty
import secrets
import selectors
import shutil
import signal
import socket
import sysconfig
import tempfile
import termios
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import protocol
from protocol.confinement import confine
from protocol.errors import RunFailedError
from sims.boundary.attempt import Area, Attack, Confined, Finding
from sims.boundary.hostile_acts import DONE, Outcome
from sims.boundary.sites import Site, Sites, make_sites, started

#: Errors by which a kernel stops something, or says that it has nothing of the kind.
REFUSALS = frozenset(
    {
        errno.EPERM,
        errno.EACCES,
        errno.EXDEV,
        errno.ENOSYS,
        errno.EAFNOSUPPORT,
        errno.EPROTONOSUPPORT,
        errno.EOPNOTSUPP,
        errno.EROFS,
    }
)
_MARK, _SCRATCH = "LEARNGENE_BOUNDARY_MARK", "LEARNGENE_BOUNDARY_SCRATCH"
_NOBODY = 65534
# Seconds: until what was done shows; how long is waited for it here; and where it was refused already.
_SHOWS, _SHOWS_HERE, _STAYS_AWAY = 2.0, 1.0, 0.05

#: Makes an act: its name and its aims.
Attacker = Callable[[str, Mapping[str, str]], Outcome]


@dataclass(frozen=True)
class Reached:
    """How it is seen that an act reached something: by what it brought home, and by what it changed.

    Attributes:
        evidence: whether what it brought home shows it.
        effect: whether the world shows it, given the token of this run; looked at even where the act was stopped.
    """

    evidence: Callable[["Stage", bytes], bool] | None = None
    effect: Callable[["Stage", str], bool] | None = None


@dataclass(frozen=True)
class Trial:
    """An attack by one act of ``sims.boundary.hostile_acts``; the fields are those of :class:`Attack`.

    Attributes:
        lacks: what this machine lacks for the control, asked when the stage is set; empty where nothing.
        prepare: is done before each run, with its token.
    """

    name: str
    act: str
    tries: str
    reached: Reached
    unstoppable: str = ""
    lacks: Callable[["Stage"], str] = lambda stage: ""
    prepare: Callable[["Stage", str], None] = lambda stage, token: None


class Stage:
    """What stands around the attackers, until the ``with`` of :func:`stage` ends.

    Attributes:
        pid: of the other party's node process.
        mark: text in that process's memory, and nowhere else.
        terminal: descriptor of the operator's terminal.
    """

    def __init__(
        self, sites: Sites, pid: int, mark: str, listeners: "Listeners", outside: Path, terminal: int, keyboard: int
    ) -> None:
        self.sites, self.pid, self.mark = sites, pid, mark
        self.listeners, self._outside = listeners, outside
        self.terminal, self._keyboard = terminal, keyboard
        self.segment = _shared_segment(mark)

    @property
    def victim(self) -> Site:
        """The site that is attacked."""
        return self.sites.individual

    def aims(self, own: Path, site: Site, token: str) -> dict[str, str]:
        """Everything that an act may need, anew for each run.

        Args:
            own: a folder that the attacker may write to.
            site: the attacker's own.
            token: what is to show up somewhere if the act succeeds.
        """
        files, node = self._files, self.victim.node
        assert node.key_file is not None
        place, size, scratch = _environment(self.pid)
        ports = self.listeners.addresses
        return {
            **{name: str(path) for name, path in files.items()},
            **ports,
            "token": token,
            "pid": str(self.pid),
            "environment": str(place),
            "environment_size": str(size),
            "scratch": str(scratch),
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
            "own_trust": str(site.folder / "trust.json"),
            "temporary_drop": str(self._drop(Path(tempfile.gettempdir()), token)),
            "shared_memory_drop": str(self._drop(Path("/dev/shm"), token)),
            "site_packages": sysconfig.get_path("purelib"),
            "package": str(Path(protocol.__file__).parent),
            "interpreter": sysconfig.get_path("stdlib"),
            "system_file": os.path.realpath(sysconfig.get_path("stdlib") + "/os.py"),
            "group": str(_NOBODY),
            "time": str(int(time.time()) - 1000),
            "ipc_key": str(int(token[:7], 16)),
            "segment": str(self.segment),
        }

    @property
    def _files(self) -> dict[str, Path]:
        """Small files of the victim's that an attack may spoil."""
        names = ("movable", "writable", "cuttable", "removable", "replaceable", "chmodable", "attributed", "listed")
        return {
            **{name: self.victim.data / name for name in names},
            "link": self.victim.data / "link",
            "set_user_id": self._outside / "id",
        }

    @staticmethod
    def _drop(folder: Path, token: str) -> Path:
        return folder / f"boundary-{token}"

    def set_up(self, own: Path) -> None:
        """Put everything that an act may have changed back to where it was, in the victim's site and the attacker's."""
        for name, path in self._files.items():
            if name not in ("link", "set_user_id"):
                path.unlink(missing_ok=True)
                path.write_bytes(self.victim.marker + b"\n")
                path.chmod(0o600)
        # Text, for a shell that cannot read anything else.
        self._files["listed"].write_text(self.victim.marker.hex() + "\n")
        with contextlib.suppress(OSError):
            os.setxattr(self._files["attributed"], "user.note", self.mark.encode())
        self._files["link"].unlink(missing_ok=True)
        self._files["link"].symlink_to(self.mark)
        (self.victim.data / "dropped").unlink(missing_ok=True)
        termios.tcflush(self.terminal, termios.TCIFLUSH)
        shutil.rmtree(own, ignore_errors=True)
        (own / "race").mkdir(parents=True)
        (own / "planted-link").symlink_to(self.victim.private)
        (own / "race" / "link").symlink_to(self.victim.private)
        (own / "race" / "file").write_bytes(b"harmless")

    def go_on(self) -> None:
        """Wake the other party's node, where it was stopped."""
        os.kill(self.pid, signal.SIGCONT)

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

    def stopped(self) -> bool:
        """Whether the other party's node stands still."""
        return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"

    def scratch(self) -> bytes:
        """What stands now in the other node's environment."""
        return Path(f"/proc/{self.pid}/environ").read_bytes()

    def type(self, token: str) -> None:
        """What the operator does at the terminal."""
        os.write(self._keyboard, token.encode() + b"\n")

    def typed(self, token: str) -> bool:
        """Whether somebody typed the token into the terminal."""
        os.set_blocking(self.terminal, False)
        with contextlib.suppress(BlockingIOError):
            return token.encode() in os.read(self.terminal, 4096)
        return False


@contextlib.contextmanager
def set_stage(folder: Path) -> Iterator[Stage]:
    """Make the sites in a folder, and start the other party's node, confined where this kernel can, and the listeners.

    Args:
        folder: new or empty, and short: sockets lie in it.
    """
    sites, mark = make_sites(folder), secrets.token_hex(16)
    outside = folder / "outside"
    outside.mkdir(mode=0o711)
    _set_user_id_program(outside / "id")
    (sites.individual.data / "images").mkdir()
    master, terminal = pty.openpty()
    environment = {_MARK: mark, _SCRATCH: "." * 32}
    try:
        with (
            Listeners(outside) as listeners,
            started(sites.individual, unconfined=not confine.offered(), environment=environment) as process,
        ):
            made = Stage(sites, process.process.pid, mark, listeners, outside, terminal, master)
            try:
                yield made
            finally:
                _remove_segment(made.segment)
    finally:
        os.close(master)
        os.close(terminal)


def attacks_of(
    stage: Stage,
    trials: list[Trial],
    area: Area,
    control: tuple[Attacker, Site, Path],
    confined: tuple[Attacker, Site, Path] | RunFailedError,
) -> list[Attack]:
    """The attacks of these trials.

    Args:
        control: an attacker whom nothing holds, the site that it is in, and a folder that it may write to.
        confined: the same with everything in place; or why this kernel cannot have it.
    """
    return [_attack(stage, trial, area, control, confined) for trial in trials]


def _attack(
    stage: Stage,
    trial: Trial,
    area: Area,
    control: tuple[Attacker, Site, Path],
    confined: tuple[Attacker, Site, Path] | RunFailedError,
) -> Attack:
    def made(attacker: Attacker, site: Site, own: Path, patience: float) -> tuple[bool, Outcome]:
        token = secrets.token_hex(16)
        stage.set_up(own)
        trial.prepare(stage, token)
        aims = stage.aims(own, site, token)
        config, trust = site.config.read_bytes(), (site.folder / "trust.json").read_bytes()
        try:
            outcome = attacker(trial.act, aims)
            reached = False
            if outcome[0] == "done":
                seen = trial.reached.evidence
                reached = seen is not None and seen(stage, outcome[1])
            effect = trial.reached.effect
            if effect is not None:
                deadline = time.monotonic() + (patience if outcome[0] == "done" else _STAYS_AWAY)
                while not (reached := effect(stage, token)) and time.monotonic() < deadline:
                    time.sleep(0.01)
            return reached, outcome
        finally:
            stage.go_on()
            (site.data / "dropped").unlink(missing_ok=True)
            site.config.write_bytes(config)
            (site.folder / "trust.json").write_bytes(trust)

    def unprotected() -> bool:
        reached, (word, evidence, _) = made(*control, _SHOWS)
        if word != "done":
            raise RunFailedError(evidence.decode(errors="replace"))
        return reached

    def protected() -> Confined | Finding:
        if isinstance(confined, RunFailedError):
            return Finding("not enforced", str(confined))
        reached, (word, evidence, number) = made(*confined, _SHOWS_HERE)
        if reached:
            return Finding("escaped", "it went through")
        text = evidence.decode(errors="replace") if word != "done" else "it brought nothing home"
        if word == "broken" or (word == "stopped" and number not in REFUSALS):
            raise RunFailedError(text)
        return Finding("blocked", text)

    return Attack(
        trial.name, area, trial.tries, unprotected, protected, unstoppable=trial.unstoppable, lacks=trial.lacks(stage)
    )


class Listeners:
    """A listener of every kind that a process on this machine could tell something to.

    Attributes:
        addresses: where they listen, by the names of aims.
    """

    def __init__(self, folder: Path) -> None:
        self._selector, self._over = selectors.DefaultSelector(), threading.Event()
        self.received = bytearray()
        self.addresses: dict[str, str] = {}
        name = secrets.token_hex(8)
        self._add("tcp", socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", 0))
        self._add("udp", socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", 0))
        with contextlib.suppress(OSError):
            self._add("tcp6", socket.AF_INET6, socket.SOCK_STREAM, ("::1", 0))
        for word, kind in (("stream", socket.SOCK_STREAM), ("datagram", socket.SOCK_DGRAM)):
            self._add(f"unix_{word}", socket.AF_UNIX, kind, str(folder / f"{word}.sock"))
            self._add(f"abstract_{word}", socket.AF_UNIX, kind, f"\0boundary-{name}-{word}")
        self._thread = threading.Thread(target=self._listen, name="listeners", daemon=True)

    def __enter__(self) -> "Listeners":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        for key in list(self._selector.get_map().values()):
            assert isinstance(key.fileobj, socket.socket)
            key.fileobj.close()
        self._selector.close()

    def _add(self, name: str, family: int, kind: int, address: tuple[str, int] | str) -> None:
        listener = socket.socket(family, kind)
        listener.bind(address)
        if kind == socket.SOCK_STREAM:
            listener.listen()
        listener.setblocking(False)
        self._selector.register(listener, selectors.EVENT_READ, kind)
        bound = listener.getsockname()
        if isinstance(bound, bytes):
            self.addresses[name] = bound[1:].decode()
        else:
            self.addresses[name] = bound if isinstance(bound, str) else str(bound[1])

    def _listen(self) -> None:
        while not self._over.is_set():
            for key, _ in self._selector.select(0.05):
                listener = key.fileobj
                assert isinstance(listener, socket.socket)
                with contextlib.suppress(OSError):
                    if key.data == socket.SOCK_DGRAM:
                        self.received += listener.recv(4096)
                        continue
                    connection, _ = listener.accept()
                    with connection:
                        connection.settimeout(1.0)
                        self.received += connection.recv(4096)


# --- How it is seen that an attack succeeded ------------------------------------------------------------------------


def gets(what: Callable[[Stage], bytes]) -> Reached:
    """By these bytes in what it brought home."""
    return Reached(evidence=lambda stage, evidence: what(stage) in evidence)


def changes(effect: Callable[[Stage, str], bool]) -> Reached:
    """By what is different now."""
    return Reached(effect=effect)


#: By the kernel's doing what it was asked for.
GRANTED = Reached(evidence=lambda stage, evidence: evidence == DONE)
#: By bytes that stand in the victim's data and nowhere else.
PRIVATE = gets(lambda stage: stage.victim.marker)
#: By bytes that stand in the memory of the victim's process and nowhere else.
MEMORY = gets(lambda stage: stage.mark.encode())
#: By the token's arrival at a listener.
HEARD = changes(lambda stage, token: stage.heard(token))
#: By the victim's standing still.
STOPPED = changes(lambda stage, token: stage.stopped())


# --- What a control needs -------------------------------------------------------------------------------------------


def root_only(stage: Stage) -> str:
    """Only root can do it at all."""
    return "" if os.geteuid() == 0 else "only root can make the control"


def tracing(stage: Stage) -> str:
    """Only where a process may look into another of the same user."""
    scope = Path("/proc/sys/kernel/yama/ptrace_scope")
    if os.geteuid() == 0 or not scope.exists() or scope.read_text().strip() == "0":
        return ""
    return "this kernel lets nobody but root look into a process that is no child (kernel.yama.ptrace_scope)"


def writable(folder: Callable[[], str]) -> Callable[[Stage], str]:
    """Only where this user may write there, without a name (O_TMPFILE)."""

    def lacks(stage: Stage) -> str:
        try:
            os.close(os.open(folder(), os.O_TMPFILE | os.O_WRONLY, 0o600))
        except OSError as error:
            return f"this user cannot write to {folder()}: {error.strerror}"
        return ""

    return lacks


def family(number: int, kind: int, protocol_number: int = 0) -> Callable[[Stage], str]:
    """Only where this kernel has such sockets, and lets this user have one."""

    def lacks(stage: Stage) -> str:
        try:
            socket.socket(number, kind, protocol_number).close()
        except OSError as error:
            return f"this machine gives nobody like us such a socket: {error.strerror}"
        return ""

    return lacks


def attributes(stage: Stage) -> str:
    """Only where the file system keeps extended attributes."""
    try:
        os.setxattr(stage.victim.private, "user.note", b"x")
    except OSError as error:
        return f"this file system keeps no extended attributes: {error.strerror}"
    return ""


def setting(name: str, allowed: tuple[str, ...]) -> Callable[[Stage], str]:
    """Only where a setting of the kernel does not forbid it to everybody, root aside."""

    def lacks(stage: Stage) -> str:
        path = Path("/proc/sys") / name.replace(".", "/")
        if path.exists() and path.read_text().strip() not in allowed:
            return f"this kernel forbids it to everybody: {name} = {path.read_text().strip()}"
        return ""

    return lacks


# --- Small things ---------------------------------------------------------------------------------------------------


def _environment(pid: int) -> tuple[int, int, int]:
    """Where a process keeps its environment: address, bytes; and the address of our scratch in it."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    start, end = int(fields[47]), int(fields[48])
    content = Path(f"/proc/{pid}/environ").read_bytes()
    return start, end - start, start + content.index(f"{_SCRATCH}=".encode()) + len(_SCRATCH) + 1


def _set_user_id_program(path: Path) -> None:
    """A program that runs as somebody else, where this process can make one."""
    shutil.copyfile(os.path.realpath(shutil.which("id") or "/usr/bin/id"), path)
    with contextlib.suppress(PermissionError):
        os.chown(path, _NOBODY, -1)
    path.chmod(0o4755)


def _shared_segment(text: str) -> int:
    """A System V segment of our own that holds this; its number."""
    libc = ctypes.CDLL(None, use_errno=True)
    number = int(libc.shmget(0, 4096, 0o1600))
    libc.shmat.restype = ctypes.c_void_p
    address = libc.shmat(number, None, 0)
    ctypes.memmove(address, text.encode(), len(text))
    libc.shmdt(ctypes.c_void_p(address))
    return number


def _remove_segment(number: int) -> None:
    ctypes.CDLL(None).shmctl(number, 0, None)
