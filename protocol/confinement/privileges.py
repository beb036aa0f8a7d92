"""Privileges that a process was given and gives up: root's user or capabilities, and descriptors that were left open.

Interface: setresuid(2), capset(2), capabilities(7).
"""

import contextlib
import ctypes
import grp
import os
import pwd
import resource
import signal
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from protocol.errors import InputError, RunFailedError
from protocol.files.private_folders import private_folder

_BOUNDING_READ, _BOUNDING_DROP, _AMBIENT, _AMBIENT_CLEAR = 23, 24, 47, 4
_VERSION_3 = 0x20080522
_SETPCAP = 8
_SET_PARENT_DEATH_SIGNAL = 1
_SET_DUMPABLE = 4
_MOST_CAPABILITIES = 64
# Loaded here, because nothing may be loaded between fork and exec.
_LIBC = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class User:
    """A user that a process can become."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]


def find_user(name: str) -> User:
    """The user of this name or number; a number without a user stands for itself, with the group of the same number.

    Raises:
        InputError: there is no such user, or it is root.
    """
    try:
        entry = pwd.getpwuid(int(name)) if name.isdecimal() else pwd.getpwnam(name)
        found = User(entry.pw_name, entry.pw_uid, entry.pw_gid, tuple(os.getgrouplist(entry.pw_name, entry.pw_gid)))
    except (KeyError, OverflowError):
        if not name.isdecimal() or int(name) >= 2**31:
            raise InputError(f"there is no user {name}; make one: useradd --system {name}") from None
        found = User(name, int(name), int(name), (int(name),))
    if found.uid == 0:
        raise InputError("root cannot be the user that root's rights are given up for; name another")
    return found


def find_group(name: str) -> int:
    """Number of the group of this name or number.

    Raises:
        InputError: there is no such group.
    """
    try:
        return int(name) if name.isdecimal() else grp.getgrnam(name).gr_gid
    except KeyError:
        raise InputError(f"there is no group {name}; make one: groupadd --system {name}") from None


def chosen_user(name: str | None, *groups: int) -> User | None:
    """The user that this process must become; None if no user is named or it is that user. ``groups``: further groups,
    which only root can give.

    Raises:
        InputError: there is no such user, or only root could become it.
    """
    user = None if name is None else find_user(name)
    if user is None or os.getresuid() == (user.uid,) * 3:
        return None
    if os.geteuid() != 0:
        raise InputError(f"only root can go on as the user {user.name}; start it as root or as {user.name}")
    return replace(user, groups=(*user.groups, *groups))


def give_up(user: User | None, *, capabilities: bool) -> None:
    """Become ``user``, or stay the same user, and give up the capabilities if ``capabilities`` says so.

    Raises:
        RunFailedError: the system refused; this process must then end.
    """
    if user is not None:
        become(user)
    elif capabilities:
        drop_capabilities()


def become(user: User) -> None:
    """Become ``user`` for good, with its groups and no capability.

    Raises:
        RunFailedError: the system refused, or would let this process come back; it must then end.
    """
    try:
        os.setgroups(user.groups)
        os.setresgid(user.gid, user.gid, user.gid)
        os.setresuid(user.uid, user.uid, user.uid)
    except OSError as error:
        raise RunFailedError(f"this process cannot become the user {user.name}: {error.strerror}") from error
    drop_capabilities()
    for back in (partial(os.setuid, 0), partial(os.setgid, 0), partial(os.setgroups, [])):
        try:
            back()
        except PermissionError:
            continue
        raise RunFailedError(f"the system lets a process of the user {user.name} become root again; it must not")
    if os.getresuid() != (user.uid,) * 3 or os.getresgid() != (user.gid,) * 3:
        raise RunFailedError(f"this process did not wholly become the user {user.name}")


@contextlib.contextmanager
def acting_as(user: User | None) -> Iterator[None]:
    """Run the ``with`` with the rights of ``user``, who owns the files made in it; None: with this process's own."""
    if user is None:
        yield
        return
    gid, groups = os.getegid(), os.getgroups()
    os.setgroups(user.groups)
    os.setegid(user.gid)
    os.seteuid(user.uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(gid)
        os.setgroups(groups)


def own_folder(folder: Path, user: User | None) -> Path:
    """A folder (0700) of that user's, or of this process's own; made if there is none.

    Raises:
        InputError: it belongs to another user or is open to others, or cannot be made.
    """
    with acting_as(user):
        try:
            return private_folder(folder)
        except InputError as error:
            if user is None:
                raise
            raise InputError(
                f"{error}; as root: install -d -m 700 -o {user.name} {folder} && chown -R {user.name} {folder}"
            ) from None


def drop_capabilities() -> None:
    """Give up every capability of this process, for good: with ``no_new_privs``, no program that it starts has any.

    Raises:
        RunFailedError: the kernel refused.
    """
    _LIBC.prctl(_AMBIENT, _AMBIENT_CLEAR, 0, 0, 0)
    if _capabilities()[0] >> _SETPCAP & 1:
        for number in range(_MOST_CAPABILITIES):
            if _LIBC.prctl(_BOUNDING_READ, number, 0, 0, 0) == 1:
                _LIBC.prctl(_BOUNDING_DROP, number, 0, 0, 0)
    if _LIBC.capset(struct.pack("=Ii", _VERSION_3, 0), struct.pack("=6I", *[0] * 6)) != 0 or has_capabilities():
        raise RunFailedError(f"this process could not give up its capabilities: {os.strerror(ctypes.get_errno())}")


def close_inherited(*keep: int) -> None:
    """Close inherited descriptors, except the standard streams and ``keep``: an open descriptor stays usable, even if
    its path is forbidden.
    """
    for number in map(int, os.listdir("/proc/self/fd")):
        # Python's own descriptors are not inheritable. The listing's own descriptor is closed by now.
        with contextlib.suppress(OSError):
            if number > 2 and number not in keep and os.get_inheritable(number):
                os.close(number)


def end_with_parent(by: signal.Signals = signal.SIGKILL) -> None:
    """Ask for a signal when the thread that started this process ends (prctl(2), PR_SET_PDEATHSIG). A change of user
    resets it, so call it after one. It may be called between fork and exec.

    Raises:
        RunFailedError: the kernel refused, or that parent has ended meanwhile; this process must then end.
    """
    parent = os.getppid()
    if _LIBC.prctl(_SET_PARENT_DEATH_SIGNAL, by, 0, 0, 0) != 0:
        raise RunFailedError(f"the kernel does not end this process with its parent: {os.strerror(ctypes.get_errno())}")
    if os.getppid() != parent:
        raise RunFailedError("whoever started this process has ended")


def forbid_core_files() -> None:
    """Forbid core files of this process and of its children, which would hold their memory.

    A limit of 0 forbids the file only; with 1, less than any core file has, the kernel gives none to a program that
    ``core_pattern`` names either (core(5), and ``fs/coredump.c`` of Linux). It cannot be raised again. And should one
    be made all the same, no memory is in it (core(5), coredump_filter).
    """
    with contextlib.suppress(OSError), open("/proc/self/coredump_filter", "w", encoding="ascii") as chosen:
        chosen.write("0")
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (1, 1))
    except ValueError:
        # The hard limit was 0 before, and only root can raise it.
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def let_others_look(allowed: bool) -> None:
    """Allow or forbid other processes of this user to read this one's memory and open what it has open, by ``/proc``,
    and a core file of it (PR_SET_DUMPABLE, prctl(2))."""
    _LIBC.prctl(_SET_DUMPABLE, int(allowed), 0, 0, 0)


def has_capabilities() -> bool:
    """Whether this process has a capability, or may take one up."""
    return any(_capabilities())


def _capabilities() -> tuple[int, int, int]:
    """Effective, permitted and inheritable capabilities, as sets of bits."""
    data = ctypes.create_string_buffer(24)
    if _LIBC.capget(struct.pack("=Ii", _VERSION_3, 0), data) != 0:
        raise RunFailedError(f"the kernel does not tell capabilities: {os.strerror(ctypes.get_errno())}")
    low_e, low_p, low_i, high_e, high_p, high_i = struct.unpack("=6I", data.raw)
    return low_e | high_e << 32, low_p | high_p << 32, low_i | high_i << 32
