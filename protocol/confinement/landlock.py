"""Landlock: a process gives up, for itself and all its children, every file but those beneath the paths that it names.

Interface: the Linux kernel's documentation, ``userspace-api/landlock``. It needs no privilege and cannot be undone. It
holds for the calling thread and what comes from it, so it is called before there is a second one.
"""

import ctypes
import os
import stat
import struct
from collections.abc import Mapping
from enum import IntFlag
from pathlib import Path

from protocol.errors import RunFailedError

# The same numbers on every architecture.
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION_FLAG = 1
_PATH_BENEATH = 1
_SET_NO_NEW_PRIVS, _GET_NO_NEW_PRIVS = 38, 39


class Access(IntFlag):
    """Rights for everything beneath a path. The comment is the ABI that introduced a right."""

    EXECUTE = 1 << 0  # 1
    WRITE_FILE = 1 << 1
    READ_FILE = 1 << 2
    READ_DIR = 1 << 3
    REMOVE_DIR = 1 << 4
    REMOVE_FILE = 1 << 5
    MAKE_CHAR = 1 << 6
    MAKE_DIR = 1 << 7
    MAKE_REG = 1 << 8
    MAKE_SOCK = 1 << 9
    MAKE_FIFO = 1 << 10
    MAKE_BLOCK = 1 << 11
    MAKE_SYM = 1 << 12
    REFER = 1 << 13  # 2
    TRUNCATE = 1 << 14  # 3
    IOCTL_DEV = 1 << 15  # 5


#: Read files and list folders.
READ = Access.READ_FILE | Access.READ_DIR
#: Read, and run or load as code.
READ_AND_RUN = READ | Access.EXECUTE
#: Rights in a process's own folder: read, write, make and remove files and folders; no devices, sockets or pipes.
OWN = (
    READ
    | Access.WRITE_FILE
    | Access.TRUNCATE
    | Access.REFER
    | Access.MAKE_REG
    | Access.MAKE_DIR
    | Access.REMOVE_FILE
    | Access.REMOVE_DIR
)
#: A device file.
DEVICE = Access.READ_FILE | Access.WRITE_FILE | Access.IOCTL_DEV

_OF_FILES = Access.EXECUTE | Access.WRITE_FILE | Access.READ_FILE | Access.TRUNCATE | Access.IOCTL_DEV
# ABI: rights of files that are new in it.
_NEW_RIGHTS = {2: Access.REFER, 3: Access.TRUNCATE, 5: Access.IOCTL_DEV}
_ALL_OF_ABI_1 = Access((1 << 13) - 1)
#: From this ABI on: TCP can be forbidden (bind, connect).
ABI_NETWORK = 4
#: From this ABI on: abstract Unix sockets and signals reach no process outside.
ABI_SCOPES = 6
_BIND_AND_CONNECT_TCP = 3
_ABSTRACT_SOCKETS_AND_SIGNALS = 3


def abi() -> int:
    """Version of Landlock's interface; 0 if the kernel has none, or it is switched off."""
    return max(0, _call(_CREATE_RULESET, None, ctypes.c_size_t(0), _VERSION_FLAG))


def restrict(rules: Mapping[Path, Access], *, tcp: bool) -> None:
    """Confine the calling thread: it has the rights of each rule beneath its path, and none elsewhere; signals and
    abstract sockets reach only this process and its children. Newer rights are handled as far as the kernel knows them.

    Args:
        rules: existing paths; leave out those that do not exist or must not be reached.
        tcp: whether TCP stays allowed.

    Raises:
        RunFailedError: the kernel refused; the process must then end.
    """
    version = abi()
    if not version:
        raise RunFailedError("this kernel has no Landlock; it needs Linux 5.13, with lsm=landlock")
    handled = _ALL_OF_ABI_1
    for since, rights in _NEW_RIGHTS.items():
        if version >= since:
            handled |= rights
    attributes = struct.pack("=Q", handled)
    if version >= ABI_NETWORK:
        attributes += struct.pack("=Q", 0 if tcp else _BIND_AND_CONNECT_TCP)
    if version >= ABI_SCOPES:
        attributes += struct.pack("=Q", _ABSTRACT_SOCKETS_AND_SIGNALS)
    ruleset = _call(_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0)
    if ruleset < 0:
        raise RunFailedError(f"Landlock made no ruleset: {_error()}")
    try:
        for path, access in rules.items():
            _add(ruleset, path, access & handled)
        set_no_new_privileges()
        if _call(_RESTRICT_SELF, ruleset, 0) < 0:
            raise RunFailedError(f"Landlock did not confine this process: {_error()}")
    finally:
        os.close(ruleset)


def set_no_new_privileges() -> None:
    """From now on, no program that this process starts gains privileges (set-user-id bits have no effect).

    Raises:
        RunFailedError: the kernel refused.
    """
    if _libc().prctl(_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise RunFailedError(f"the kernel did not set no_new_privs: {_error()}")


def has_no_new_privileges() -> bool:
    """Whether ``set_no_new_privileges`` holds."""
    return bool(_libc().prctl(_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 1)


def _add(ruleset: int, path: Path, access: Access) -> None:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    except PermissionError as error:
        raise RunFailedError(
            f"the user {os.getuid()} of this process may not reach {path}; give it to that user"
        ) from error
    try:
        if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            access &= _OF_FILES
        if access and _call(_ADD_RULE, ruleset, _PATH_BENEATH, struct.pack("=Qi", access, descriptor), 0) < 0:
            raise RunFailedError(f"Landlock took no rule for {path}: {_error()}")
    finally:
        # The kernel may drop a file of /proc and make it again, and the rule is for the old one; it does not drop an
        # open file. This descriptor (O_PATH) cannot read.
        if not path.is_relative_to("/proc"):
            os.close(descriptor)


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _call(number: int, *arguments: object) -> int:
    return int(_libc().syscall(number, *arguments))


def _error() -> str:
    return os.strerror(ctypes.get_errno())
