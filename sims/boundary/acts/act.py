"""Registration of acts, the calls that an act makes by name, and its answer.

An act gets its aims (paths, process ids, ports) by name. It returns what it read, or ``DONE`` if the attack is an
action. Every call that could be refused is made in a :func:`step` or by :func:`call`, so that a refusal names the call
and its error. Success is judged from outside.
"""

import contextlib
import ctypes
import errno
import os
import platform
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from .expectation import Holds

if TYPE_CHECKING:
    from sims.boundary.stage import Stage

Aims = Mapping[str, str]
Act = Callable[[Aims], bytes]

#: Evidence of an act that only does something: the system allowed it.
DONE = b"done"

#: Numbers of system calls: (x86-64, arm64).
_NUMBERS = {
    "add_key": (248, 217),
    "bpf": (321, 280),
    "clone": (56, 220),
    "fanotify_init": (300, 262),
    "fchmodat2": (452, 452),
    "futex": (202, 98),
    "get_robust_list": (274, 100),
    "inotify_add_watch": (254, 27),
    "inotify_init1": (294, 26),
    "io_uring_setup": (425, 425),
    "ioprio_get": (252, 31),
    "ioprio_set": (251, 30),
    "kcmp": (312, 272),
    "keyctl": (250, 219),
    "memfd_create": (319, 279),
    "mount": (165, 40),
    "move_pages": (279, 239),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "open_tree": (428, 428),
    "openat2": (437, 437),
    "perf_event_open": (298, 241),
    "personality": (135, 92),
    "pidfd_getfd": (438, 438),
    "pidfd_open": (434, 434),
    "pidfd_send_signal": (424, 424),
    "pivot_root": (155, 41),
    "process_madvise": (440, 440),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "ptrace": (101, 117),
    "renameat2": (316, 276),
    "rt_sigqueueinfo": (129, 138),
    "setns": (308, 268),
    "splice": (275, 76),
    "syslog": (103, 116),
    "tee": (276, 77),
    "timer_create": (222, 107),
    "tkill": (200, 130),
    "unshare": (272, 97),
    "userfaultfd": (323, 282),
    "vmsplice": (278, 75),
}
_COLUMN = 1 if platform.machine() == "aarch64" else 0
libc = ctypes.CDLL(None, use_errno=True)


class StoppedError(Exception):
    """A call was refused.

    Attributes:
        call: its name.
        error: the name of its error, or a word.
    """

    def __init__(self, call: str, error: OSError | int | str, text: str = "") -> None:
        number = error.errno if isinstance(error, OSError) else error
        self.call = call
        self.error = errno.errorcode.get(number or 0, str(number)) if not isinstance(number, str) else number
        super().__init__(text or (str(error) if isinstance(error, OSError) else self.error))


#: The last successful step of this process; the last call of an act that was done without effect.
_last = ""


@contextlib.contextmanager
def step(name: str) -> Iterator[None]:
    """Make one call inside the ``with``; if it fails, the refusal has this name."""
    global _last
    try:
        yield
    except OSError as error:
        raise StoppedError(name, error) from None
    _last = name


def call(name: str, *arguments: object) -> int:
    """Make a system call by its number, without the C library.

    Raises:
        StoppedError: it failed.
    """
    return checked(int(libc.syscall(_NUMBERS[name][_COLUMN], *map(_word, arguments))), name)


def checked(result: int, name: str) -> int:
    """The result of a function of the C library.

    Raises:
        StoppedError: it is negative; ``errno`` says why.
    """
    with step(name):
        if result < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def otherwise(value: int, name: str, *arguments: object) -> int:
    """As :func:`call`, for a call that only prepares an attack: if it is refused, return ``value``. So the decisive
    call is made in any case; a filter refuses it before the kernel looks at its arguments.
    """
    try:
        return call(name, *arguments)
    except StoppedError:
        return value


def in_child(work: Callable[[], bytes]) -> bytes:
    """Run code that changes its own process in a child process; if none can be started, in this one: it is refused here
    too, or the attack has succeeded.
    """
    reading, writing = os.pipe()
    try:
        child = os.fork()
    except OSError:
        os.close(reading)
        os.close(writing)
        return work()
    if child == 0:
        try:
            answer = b"+" + work()
        except StoppedError as error:
            answer = f"-{error.call}\0{error.error}\0{error}".encode()
        except BaseException as error:
            answer = f"!{type(error).__name__}: {error}".encode()
        os.write(writing, answer)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as answers:
        answer = answers.read()
    os.waitpid(child, 0)
    if answer[:1] == b"+":
        return answer[1:]
    if answer[:1] == b"-":
        raise StoppedError(*answer[1:].decode().split("\0"))
    raise RuntimeError(answer[1:].decode() or "the child was killed")


def read(path: str) -> bytes:
    """A file's content."""
    with step("open"):
        descriptor = os.open(path, os.O_RDONLY)
    with os.fdopen(descriptor, "rb", buffering=0) as file, step("read"):
        return file.read()


def _word(argument: object) -> object:
    # An int would be passed as 32 bits.
    return ctypes.c_long(argument) if isinstance(argument, int) else argument


# --- How an act is registered ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Seen:
    """Signs that an act succeeded: in its evidence, and in what it changed.

    Attributes:
        evidence: whether its evidence shows success.
        effect: whether its surroundings show success, given the token of this run; checked even if the act was stopped.
    """

    evidence: "Callable[[Stage, bytes], bool] | None" = None
    effect: "Callable[[Stage, str], bool] | None" = None


def nothing_lacks(stage: "Stage") -> str:
    """Every machine has what the control needs."""
    return ""


def nothing_to_prepare(stage: "Stage", token: str) -> None:
    """The stage is as the act needs it."""


@dataclass(frozen=True)
class Trial:
    """An attack by one act.

    Attributes:
        act: its name.
        name: of the attack, short and unique.
        tries: the attack in a sentence for a reader of the table.
        seen: the signs of its success.
        node, courier, user: the expected outcome if a node, a courier or a process of another user makes it; None: it
            is no attack there, or is not made.
        lacks: what this machine lacks for the control, checked when the stage is set; empty if nothing is missing.
        prepare: runs before each run, with its token.
    """

    act: str
    name: str
    tries: str
    seen: Seen
    node: Holds | None
    courier: Holds | None
    user: Holds | None
    lacks: "Callable[[Stage], str]"
    prepare: "Callable[[Stage, str], None]"


ACTS: dict[str, Act] = {}
REGISTERED: list[Trial] = []


def act(
    name: str,
    tries: str,
    seen: Seen,
    node: Holds | None = None,
    courier: Holds | None = None,
    user: Holds | None = None,
    *,
    lacks: "Callable[[Stage], str]" = nothing_lacks,
    prepare: "Callable[[Stage, str], None]" = nothing_to_prepare,
) -> Callable[[Act], Act]:
    """Register an act, and the attack that it makes; see :class:`Trial`."""

    def register(function: Act) -> Act:
        own = function.__name__
        if own in ACTS or any(trial.name == name for trial in REGISTERED):
            raise ValueError(f"there are two acts {own}, or two called {name!r}")
        ACTS[own] = function
        REGISTERED.append(Trial(own, name, tries, seen, node, courier, user, lacks, prepare))
        return function

    return register


# --- How an act is asked for, and answers ---------------------------------------------------------------------------


class Outcome(NamedTuple):
    """The outcome of an act.

    Attributes:
        word: ``done``, ``stopped`` (a call was refused), ``broken`` (anything else went wrong).
        evidence: what it read; or why it failed.
        call: the refused call, or the last successful one.
        error: of the call that was refused.
    """

    word: str
    evidence: bytes
    call: str = ""
    error: str = ""


def perform(name: str, aims: Aims) -> Outcome:
    """Make an attack."""
    global _last
    _last = ""
    try:
        return Outcome("done", ACTS[name](aims), _last)
    except StoppedError as error:
        return Outcome("stopped", str(error).encode(), error.call, error.error)
    except Exception as error:  # any other error is no refusal
        return Outcome("broken", f"{type(error).__name__}: {error}".encode())
