"""Attacks on the operator's terminal, from a node that a careless operator starts on one: a single file serves for
output, input and settings.
"""

import contextlib
import fcntl
import os
import select
import stat
import struct
import termios

from .act import DONE, Aims, Seen, StoppedError, act, in_child, step
from .expectation import files, launcher, system_calls
from .seen import GRANTED, changes, setting

_SECONDS = 3.0
# Major numbers of terminals: consoles, and the slaves of pseudo-terminals.
_TERMINALS = (4, 5, *range(136, 144))
_TIOCSCTTY, _TIOCSTI, _TIOCSETD = 0x540E, 0x5412, 0x5423
# A token and the end of its line.
_TYPED_BYTES = 33
_NONE = launcher("fstat", "ENOTTY")
# Asks for the title, which comes back as if it were typed (XTWINOPS 21).
_QUERY = b"\x1b[21t"


def _terminal(aims: Aims) -> int | None:
    """A descriptor of a terminal, if this process was given one."""
    for number in (0, 1, 2, int(aims["terminal"])):
        try:
            found = os.fstat(number)
        except OSError:
            continue
        if stat.S_ISCHR(found.st_mode) and os.major(found.st_rdev) in _TERMINALS:
            return number
    return None


def _given(aims: Aims) -> int:
    """As :func:`_terminal`.

    Raises:
        StoppedError: there is none.
    """
    found = _terminal(aims)
    if found is None:
        raise StoppedError("fstat", "ENOTTY", "no descriptor is a terminal's")
    return found


def _some(aims: Aims) -> int:
    """A terminal or, without one, standard input: a filter refuses a request before the kernel looks at the
    descriptor.
    """
    return _terminal(aims) or 0


@act(
    "type into the operator's terminal",
    "TIOCSTI on a terminal that it was started with",
    changes(lambda stage, token: token.encode() in stage.terminal.waiting()),
    *[system_calls("ioctl TIOCSTI")] * 2,
    lacks=setting("dev.tty.legacy_tiocsti", ("1",)),
)
def type_into_terminal(aims: Aims) -> bytes:
    """Write what the operator's shell would read next."""

    def work() -> bytes:
        for prepare in (os.setsid, lambda: fcntl.ioctl(_some(aims), _TIOCSCTTY, 1)):
            # It has a terminal already, or none: then the next call says so.
            with contextlib.suppress(OSError):
                prepare()
        for letter in aims["token"].encode() + b"\n":
            with step("ioctl TIOCSTI"):
                fcntl.ioctl(_some(aims), _TIOCSTI, bytes([letter]))
        return DONE

    return in_child(work)


@act(
    "read the operator's terminal",
    "what is typed into a terminal that it was started with",
    Seen(evidence=lambda stage, evidence: len(evidence) == _TYPED_BYTES),
    _NONE,
    _NONE,
    prepare=lambda stage, token: stage.type(token),
)
def read_terminal(aims: Aims) -> bytes:
    terminal = _given(aims)
    if not select.select([terminal], [], [], _SECONDS)[0]:
        raise StoppedError("select", "nothing was typed")
    with step("read"):
        return os.read(terminal, 4096)


@act(
    "have the terminal answer into the operator's shell",
    "writes a query to it, and what it answers is typed",
    changes(lambda stage, token: token.encode() in stage.terminal.shown()),
    _NONE,
    _NONE,
)
def print_on_terminal(aims: Aims) -> bytes:
    """A title that it sets and asks for comes back as if it were typed."""
    with step("write"):
        os.write(_given(aims), f"\x1b]2;{aims['token']}\x07".encode() + _QUERY)
    return DONE


@act(
    "resize the operator's terminal",
    "TIOCSWINSZ: every program on it is told",
    changes(lambda stage, token: stage.terminal.size == (7, 77)),
    *[system_calls("ioctl TIOCSWINSZ")] * 2,
)
def resize_terminal(aims: Aims) -> bytes:
    with step("ioctl TIOCSWINSZ"):
        fcntl.ioctl(_some(aims), termios.TIOCSWINSZ, struct.pack("=4H", 7, 77, 0, 0))
    return DONE


@act(
    "hide what the operator types",
    "TCSETS: raw mode, no echo",
    changes(lambda stage, token: not stage.terminal.echoes),
    *[system_calls("ioctl TCSETS")] * 2,
)
def silence_terminal(aims: Aims) -> bytes:
    mode = bytearray(36)
    # Where it is not told what it is now, all of it is switched off.
    with contextlib.suppress(OSError):
        mode[:] = fcntl.ioctl(_some(aims), termios.TCGETS, bytes(mode))
    (local,) = struct.unpack_from("=I", mode, 12)
    struct.pack_into("=I", mode, 12, local & ~(termios.ECHO | termios.ICANON))
    with step("ioctl TCSETS"):
        fcntl.ioctl(_some(aims), termios.TCSETS, bytes(mode))
    return DONE


@act(
    "change what stands between the terminal and its programs",
    "TIOCSETD: another line discipline",
    GRANTED,
    *[system_calls("ioctl TIOCSETD")] * 2,
)
def change_line_discipline(aims: Aims) -> bytes:
    """The one that it has, N_TTY, once more."""
    with step("ioctl TIOCSETD"):
        fcntl.ioctl(_some(aims), _TIOCSETD, struct.pack("=i", 0))
    return DONE


@act("make a terminal of its own", "opens /dev/ptmx", GRANTED, *[files("open")] * 2)
def make_terminal(aims: Aims) -> bytes:
    with step("open"):
        os.close(os.open("/dev/ptmx", os.O_RDWR | os.O_NOCTTY))
    return DONE


# --- Started by hand, so that what it prints goes to the terminal ---------------------------------------------------


@act(
    "print on the terminal that it was started on",
    "writes a query to its standard output: what the terminal answers is typed into the operator's shell",
    changes(lambda stage, token: _QUERY in stage.terminal.shown()),
)
def print_by_output(aims: Aims) -> bytes:
    with step("write"):
        os.write(1, aims["token"].encode() + _QUERY + b"\n")
    return DONE


@act(
    "read the terminal that it was started on",
    "what is typed, by its standard output: a terminal is open for both",
    Seen(evidence=lambda stage, evidence: len(evidence) == _TYPED_BYTES),
    prepare=lambda stage, token: stage.type(token),
)
def read_by_output(aims: Aims) -> bytes:
    with step("read"):
        return os.read(1, 4096)
