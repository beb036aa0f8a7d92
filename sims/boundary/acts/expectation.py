"""The expected end of an attack: the call that is refused, with which error, and by which guard."""

from dataclasses import dataclass
from typing import Literal

#: The guards that can refuse. ``files``: Landlock's paths. ``system calls``: seccomp's list. ``scopes``: Landlock's
#: domain (signals, abstract sockets, debugging). ``network``: the namespace, and seccomp's families of sockets.
#: ``privileges``: no capability, no_new_privs. ``launcher``: what a process was never given, or what was closed.
#: ``users``: the owner and the mode of a file, the owner of a process. ``protocol``: the project's own code.
Guard = Literal["files", "system calls", "scopes", "network", "privileges", "launcher", "users", "protocol"]

#: Stands for an error if the call succeeded but had no effect: a filter pretended success, or a signal was not
#: delivered.
NO_EFFECT = "no effect"


@dataclass(frozen=True)
class Expected:
    """The refusal that an attack expects.

    Attributes:
        call: the refused system call, command, or step of the protocol.
        errors: the allowed errors: names (``EACCES``), coarse codes (``expired``), classes of errors, ``NO_EFFECT``.
        guard: the guard that refuses it.
    """

    call: str
    errors: tuple[str, ...]
    guard: Guard

    def __str__(self) -> str:
        return f"{self.call} refused with {' or '.join(self.errors)} by {self.guard}"


@dataclass(frozen=True)
class Open:
    """Why nothing stops the attack, and what would, if anything."""

    why: str


#: Expected outcome of an attack if all protections are in force.
Holds = Expected | Open


def files(call: str, *errors: str) -> Expected:
    """Refused by Landlock's paths; EACCES unless other errors are named."""
    return Expected(call, errors or ("EACCES",), "files")


def system_calls(call: str, *errors: str) -> Expected:
    """Refused by the list of system calls; EPERM unless other errors are named."""
    return Expected(call, errors or ("EPERM",), "system calls")


def scopes(call: str, *errors: str) -> Expected:
    """Refused by Landlock's domain; EPERM unless other errors are named."""
    return Expected(call, errors or ("EPERM",), "scopes")


def network(call: str, *errors: str) -> Expected:
    """Refused because there is no network; EPERM unless other errors are named."""
    return Expected(call, errors or ("EPERM",), "network")


def privileges(call: str, *errors: str) -> Expected:
    """Refused for want of a capability; EPERM unless other errors are named."""
    return Expected(call, errors or ("EPERM",), "privileges")


def launcher(call: str, *errors: str) -> Expected:
    """Refused because the process was never given anything to make the call on."""
    return Expected(call, errors, "launcher")


def users(call: str, *errors: str) -> Expected:
    """Refused because it belongs to another user; EACCES unless other errors are named."""
    return Expected(call, errors or ("EACCES",), "users")


def protocol(call: str, *errors: str) -> Expected:
    """Refused by the project's own code."""
    return Expected(call, errors, "protocol")
