"""How it is seen that an act reached something, and what its control needs of a machine."""

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from .act import DONE, Seen

if TYPE_CHECKING:
    from sims.boundary.stage import Stage


def gets(what: "Callable[[Stage], bytes]") -> Seen:
    """By these bytes in what it brought home."""
    return Seen(evidence=lambda stage, evidence: what(stage) in evidence)


def changes(effect: "Callable[[Stage, str], bool]") -> Seen:
    """By what is different now."""
    return Seen(effect=effect)


def unlike(name: str, changed: Callable[[bytes | None, bytes, str], bool]) -> Seen:
    """By a file of the victim's: what it holds now, what it held, and the token."""

    def effect(stage: "Stage", token: str) -> bool:
        path = stage.victim.data / name
        return changed(path.read_bytes() if path.exists() else None, stage.victim.marker + b"\n", token)

    return changes(effect)


#: By the kernel's doing what it was asked for.
GRANTED = Seen(evidence=lambda stage, evidence: evidence == DONE)
#: By bytes that stand in the victim's data and nowhere else.
PRIVATE = gets(lambda stage: stage.victim.marker)
#: By bytes that stand in the memory of the victim's process and nowhere else.
MEMORY = gets(lambda stage: stage.mark.encode())
#: By the token's arrival at a listener.
HEARD = changes(lambda stage, token: stage.heard(token))
#: By the victim's standing still.
STOPPED = changes(lambda stage, token: stage.stopped())


# --- What a control needs -------------------------------------------------------------------------------------------


def root_only(stage: "Stage") -> str:
    """Only root can do it at all."""
    return "" if os.geteuid() == 0 else "only root can make the control"


def tracing(stage: "Stage") -> str:
    """Only where a process may look into another of the same user."""
    scope = Path("/proc/sys/kernel/yama/ptrace_scope")
    if os.geteuid() == 0 or not scope.exists() or scope.read_text().strip() == "0":
        return ""
    return "this kernel lets nobody but root look into a process that is no child (kernel.yama.ptrace_scope)"


def writable(folder: Callable[[], str]) -> "Callable[[Stage], str]":
    """Only where this user may write there, without a name (O_TMPFILE)."""

    def lacks(stage: "Stage") -> str:
        try:
            os.close(os.open(folder(), os.O_TMPFILE | os.O_WRONLY, 0o600))
        except OSError as error:
            return f"this user cannot write to {folder()}: {error.strerror}"
        return ""

    return lacks


def family(number: int, kind: int, protocol_number: int = 0) -> "Callable[[Stage], str]":
    """Only where this kernel has such sockets, and lets this user have one."""

    def lacks(stage: "Stage") -> str:
        try:
            socket.socket(number, kind, protocol_number).close()
        except OSError as error:
            return f"this machine gives nobody like us such a socket: {error.strerror}"
        return ""

    return lacks


def attributes(stage: "Stage") -> str:
    """Only where the file system keeps extended attributes."""
    try:
        os.setxattr(stage.victim.private, "user.note", b"x")
    except OSError as error:
        return f"this file system keeps no extended attributes: {error.strerror}"
    return ""


def setting(name: str, allowed: tuple[str, ...]) -> "Callable[[Stage], str]":
    """Only where a setting of the kernel does not forbid it to everybody, root aside."""

    def lacks(stage: "Stage") -> str:
        path = Path("/proc/sys") / name.replace(".", "/")
        if path.exists() and path.read_text().strip() not in allowed:
            return f"this kernel forbids it to everybody: {name} = {path.read_text().strip()}"
        return ""

    return lacks


def needs(path: str, what: str) -> "Callable[[Stage], str]":
    """Only where there is such a file."""
    return lambda stage: "" if os.path.exists(path) else f"this machine has no {what}"


def since(major: int, minor: int, what: str) -> "Callable[[Stage], str]":
    """Only from this kernel on."""

    def lacks(stage: "Stage") -> str:
        found = [int("".join(filter(str.isdigit, part)) or 0) for part in os.uname().release.split(".")[:2]]
        return "" if found >= [major, minor] else f"this kernel has no {what} (Linux {major}.{minor})"

    return lacks
