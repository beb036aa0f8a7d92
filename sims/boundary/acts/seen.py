"""Signs that an act succeeded, and what its control needs of a machine."""

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from .act import DONE, Seen

if TYPE_CHECKING:
    from sims.boundary.stage import Stage


def gets(what: "Callable[[Stage], bytes]") -> Seen:
    """Sign: these bytes are in its evidence."""
    return Seen(evidence=lambda stage, evidence: what(stage) in evidence)


def changes(effect: "Callable[[Stage, str], bool]") -> Seen:
    """Sign: something has changed."""
    return Seen(effect=effect)


def unlike(name: str, changed: Callable[[bytes | None, bytes, str], bool]) -> Seen:
    """Sign: a file of the victim; the test gets its present content, its old content, and the token."""

    def effect(stage: "Stage", token: str) -> bool:
        path = stage.victim.data / name
        return changed(path.read_bytes() if path.exists() else None, stage.victim.marker + b"\n", token)

    return changes(effect)


#: Sign: the kernel allowed the call.
GRANTED = Seen(evidence=lambda stage, evidence: evidence == DONE)
#: Sign: bytes that stand in the victim's data and nowhere else.
PRIVATE = gets(lambda stage: stage.victim.marker)
#: Sign: bytes that stand in the memory of the victim's process and nowhere else.
MEMORY = gets(lambda stage: stage.mark.encode())
#: Sign: the token has arrived at a listener.
HEARD = changes(lambda stage, token: stage.heard(token))
#: Sign: the victim is stopped.
STOPPED = changes(lambda stage, token: stage.stopped())


# --- What a control needs -------------------------------------------------------------------------------------------


def root_only(stage: "Stage") -> str:
    """Needs root."""
    return "" if os.geteuid() == 0 else "only root can make the control"


def tracing(stage: "Stage") -> str:
    """Needs the right to look into another process of the same user."""
    scope = Path("/proc/sys/kernel/yama/ptrace_scope")
    if os.geteuid() == 0 or not scope.exists() or scope.read_text().strip() == "0":
        return ""
    return "this kernel lets nobody but root look into a process that is no child (kernel.yama.ptrace_scope)"


def writable(folder: Callable[[], str]) -> "Callable[[Stage], str]":
    """Needs the right to write there without a name (O_TMPFILE)."""

    def lacks(stage: "Stage") -> str:
        try:
            os.close(os.open(folder(), os.O_TMPFILE | os.O_WRONLY, 0o600))
        except OSError as error:
            return f"this user cannot write to {folder()}: {error.strerror}"
        return ""

    return lacks


def family(number: int, kind: int, protocol_number: int = 0) -> "Callable[[Stage], str]":
    """Needs a kernel with such sockets that lets this user have one."""

    def lacks(stage: "Stage") -> str:
        try:
            socket.socket(number, kind, protocol_number).close()
        except OSError as error:
            return f"this machine gives nobody like us such a socket: {error.strerror}"
        return ""

    return lacks


def attributes(stage: "Stage") -> str:
    """Needs a file system with extended attributes."""
    try:
        os.setxattr(stage.victim.private, "user.note", b"x")
    except OSError as error:
        return f"this file system keeps no extended attributes: {error.strerror}"
    return ""


def setting(name: str, allowed: tuple[str, ...]) -> "Callable[[Stage], str]":
    """Needs a kernel setting that does not forbid it to all users but root."""

    def lacks(stage: "Stage") -> str:
        path = Path("/proc/sys") / name.replace(".", "/")
        if path.exists() and path.read_text().strip() not in allowed:
            return f"this kernel forbids it to everybody: {name} = {path.read_text().strip()}"
        return ""

    return lacks


def needs(path: str, what: str) -> "Callable[[Stage], str]":
    """Needs such a file."""
    return lambda stage: "" if os.path.exists(path) else f"this machine has no {what}"


def since(major: int, minor: int, what: str) -> "Callable[[Stage], str]":
    """Needs this kernel or a later one."""

    def lacks(stage: "Stage") -> str:
        found = [int("".join(filter(str.isdigit, part)) or 0) for part in os.uname().release.split(".")[:2]]
        return "" if found >= [major, minor] else f"this kernel has no {what} (Linux {major}.{minor})"

    return lacks
