"""Namespaces: a process leaves the machine's network for one of its own, which is empty or has the loopback alone.

Interface: unshare(2), setns(2), network_namespaces(7), user_namespaces(7), netdevice(7). As root it needs only a
network namespace. Other users get one through a user namespace, in which the user and the group stay what they are, so
that owners and modes of files mean the same inside. A process has every capability in its new user namespace: the
caller must give them up (:func:`protocol.confinement.privileges.drop_capabilities`).
"""

import ctypes
import errno
import fcntl
import os
import socket
import struct
import sys
import warnings
from pathlib import Path

from protocol.errors import RunFailedError

_NEW_USER, _NEW_NETWORK = 0x10000000, 0x40000000
#: ioctl(2) on a socket: flags of a network device.
_GET_FLAGS, _SET_FLAGS, _UP = 0x8913, 0x8914, 1
_GET_DUMPABLE = 3
_DEVICE = struct.Struct("16sH14x")
_NOT_LINUX = "only Linux has network namespaces"
# Loaded here, because nothing may be loaded in a forked child.
_LIBC = ctypes.CDLL(None, use_errno=True)
#: The kinds in the order in which a process joins them: the user namespace gives the right to join the other.
_KINDS = {"user": _NEW_USER, "net": _NEW_NETWORK}


def enter_network(*, loopback: bool) -> str:
    """Move this process, which has one thread, out of the machine's network; nothing leads out of the new one.

    It is tried in a child first, because a kernel may give a user namespace and then no right in it (AppArmor).

    Args:
        loopback: whether the device ``lo`` of the new network is up; otherwise nothing in it can be reached at all.

    Returns:
        An empty string, or in plain words why it was refused; the process is then unchanged.

    Raises:
        RunFailedError: the process has a second thread, or was moved only in part; it must then end.
    """
    if sys.platform != "linux":
        return _NOT_LINUX
    if len(os.listdir("/proc/self/task")) > 1:
        raise RunFailedError("a process with a second thread cannot leave the machine's network as a whole")
    code, through_user = _find_way(loopback=loopback)
    if code:
        return _reason(code)
    before = _names(os.getpid())
    try:
        _enter(through_user, loopback=loopback)
    except OSError as error:
        if _names(os.getpid()) == before:
            return _reason(error.errno or errno.EIO)
        raise RunFailedError(f"this process left the machine's network only in part: {error}") from error
    return ""


def offered() -> str:
    """Whether :func:`enter_network` would work, with the loopback up, for a process like this one; changes nothing.

    Returns:
        An empty string, or in plain words why it would be refused.
    """
    if sys.platform != "linux":
        return _NOT_LINUX
    code, _ = _find_way(loopback=True)
    return _reason(code) if code else ""


def join(pid: int) -> None:
    """Move this process, which has one thread, into the user and network namespaces of another; it may be called
    between fork and exec.

    Raises:
        OSError: there is no such process, or it belongs to another user.
    """
    own, theirs = _names(os.getpid()), _names(pid)
    for kind, flag in _KINDS.items():
        if own[kind] != theirs[kind]:
            namespace = os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC)
            try:
                _call("setns", namespace, flag)
            finally:
                os.close(namespace)


def _names(pid: int) -> dict[str, str]:
    """The namespaces that a process is in, by kind."""
    return {kind: os.readlink(f"/proc/{pid}/ns/{kind}") for kind in _KINDS}


def _find_way(*, loopback: bool) -> tuple[int, bool]:
    """The error of the last way that was tried, 0 if one works; and whether it uses a user namespace."""
    code = _try_in_child(False, loopback=loopback)
    return (_try_in_child(True, loopback=loopback), True) if code else (0, False)


def _try_in_child(through_user: bool, *, loopback: bool) -> int:
    """The error of a child that tries this way; 0 if there is none."""
    read_end, write_end = os.pipe()
    with warnings.catch_warnings():
        # The fork is safe beside other threads: the child only makes system calls and ends.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        code = errno.EIO
        try:
            _enter(through_user, loopback=loopback)
            code = 0
        except OSError as error:
            code = error.errno or errno.EIO
        finally:
            os.write(write_end, bytes([code]))
            os._exit(0)
    os.close(write_end)
    try:
        answer = os.read(read_end, 1)
    finally:
        os.close(read_end)
        os.waitpid(child, 0)
    # A filter may kill the child instead of refusing it.
    return answer[0] if answer else errno.EPERM


def _enter(through_user: bool, *, loopback: bool) -> None:
    """As :func:`enter_network`, without a trial. Raises OSError."""
    if through_user:
        uid, gid = os.geteuid(), os.getegid()
        _call("unshare", _NEW_USER | _NEW_NETWORK)
        # A process without rights outside may map its own group only after it has given up changing its groups.
        for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
            descriptor = os.open(f"/proc/self/{name}", os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(descriptor, text.encode())
            finally:
                os.close(descriptor)
    else:
        _call("unshare", _NEW_NETWORK)
    if loopback:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
            answer = fcntl.ioctl(any_socket, _GET_FLAGS, _DEVICE.pack(b"lo", 0))
            fcntl.ioctl(any_socket, _SET_FLAGS, _DEVICE.pack(b"lo", _DEVICE.unpack(answer)[1] | _UP))


def _call(name: str, *arguments: int) -> None:
    if getattr(_LIBC, name)(*arguments) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def _reason(code: int) -> str:
    """The likely reason why the kernel gave no namespace."""
    if not all(Path("/proc/self/ns", kind).exists() for kind in _KINDS):
        return "this kernel has no user or no network namespaces"
    for limit in ("user.max_user_namespaces", "user.max_net_namespaces"):
        if _setting(limit) == "0":
            return f"{limit} is 0"
    if _LIBC.prctl(_GET_DUMPABLE, 0, 0, 0, 0) != 1:
        return "a process that is closed to others of its user (PR_SET_DUMPABLE) cannot map that user; do this before"
    if code == errno.ENOSPC:
        return "there are as many namespaces as user.max_user_namespaces or user.max_net_namespaces allows"
    if _setting("kernel.unprivileged_userns_clone") == "0":
        return "only root may make user namespaces: kernel.unprivileged_userns_clone is 0"
    if _setting("kernel.apparmor_restrict_unprivileged_userns") == "1":
        return (
            "AppArmor refuses user namespaces to programs without a profile: "
            "kernel.apparmor_restrict_unprivileged_userns is 1"
        )
    if "\nSeccomp:\t2\n" in Path("/proc/self/status").read_text("utf-8", errors="replace"):
        return f"a system call filter, as containers have one, refuses namespaces ({os.strerror(code)})"
    return f"the kernel refuses namespaces ({os.strerror(code)})"


def _setting(name: str) -> str:
    """A kernel setting by its name in sysctl(8); empty if the kernel has none."""
    try:
        return Path("/proc/sys", *name.split(".")).read_text("utf-8").strip()
    except OSError:
        return ""
