"""Another view of the file system: roots, mounts, namespaces, devices."""

import contextlib
import ctypes
import os
from pathlib import Path

from .act import DONE, Aims, act, call, in_child, libc, otherwise, read, step
from .expectation import system_calls
from .seen import GRANTED, PRIVATE, root_only

_AT_FDCWD = -100
_NEW_MOUNTS, _NEW_USER, _SIGCHLD = 0x00020000, 0x10000000, 17
_BIND, _RECURSIVE, _PRIVATE = 4096, 16384, 1 << 18


def _own_mounts() -> None:
    """A mount table of this process's own, if it may have one, so that no mount remains."""
    if libc.unshare(_NEW_MOUNTS) == 0:
        libc.mount(b"none", b"/", None, ctypes.c_ulong(_RECURSIVE | _PRIVATE), None)


_CHROOT = system_calls("chroot")


@act("change the root folder", "chroot into the other's data", PRIVATE, _CHROOT, _CHROOT, lacks=root_only)
def change_root(aims: Aims) -> bytes:
    def work() -> bytes:
        with step("chroot"):
            os.chroot(aims["data"])
        return read("/" + Path(aims["private"]).name)

    return in_child(work)


_MOUNT = system_calls("mount")


@act("mount another's folder here", "a bind mount in its state", PRIVATE, _MOUNT, _MOUNT, lacks=root_only)
def mount_here(aims: Aims) -> bytes:
    def work() -> bytes:
        _own_mounts()
        here = Path(aims["own"]) / "mount"
        here.mkdir(exist_ok=True)
        call("mount", aims["data"].encode(), os.fsencode(here), None, _BIND, None)
        return read(str(here / Path(aims["private"]).name))

    return in_child(work)


_OPEN_TREE = system_calls("open_tree")


@act("clone a mount", "open_tree of the other's data", PRIVATE, _OPEN_TREE, _OPEN_TREE, lacks=root_only)
def clone_mount(aims: Aims) -> bytes:
    def work() -> bytes:
        tree = call("open_tree", _AT_FDCWD, aims["data"].encode(), 1 | os.O_CLOEXEC)
        with step("openat"):
            descriptor = os.open(Path(aims["private"]).name, os.O_RDONLY, dir_fd=tree)
        with os.fdopen(descriptor, "rb") as file:
            return file.read()

    return in_child(work)


_PIVOT_ROOT = system_calls("pivot_root")


@act("put another's folder in place of the root", "pivot_root", PRIVATE, _PIVOT_ROOT, _PIVOT_ROOT, lacks=root_only)
def pivot_root(aims: Aims) -> bytes:
    def work() -> bytes:
        _own_mounts()
        folder = aims["data"].encode()
        libc.mount(folder, folder, None, ctypes.c_ulong(_BIND), None)
        with contextlib.suppress(OSError):
            os.chdir(folder)
        call("pivot_root", b".", b".")
        return read("/" + Path(aims["private"]).name)

    return in_child(work)


_UNSHARE = system_calls("unshare")


@act("make namespaces", "unshare: users and mounts of its own", GRANTED, _UNSHARE, _UNSHARE, lacks=root_only)
def new_namespaces(aims: Aims) -> bytes:
    def work() -> bytes:
        call("unshare", _NEW_USER | _NEW_MOUNTS)
        return DONE

    return in_child(work)


@act("start a child in namespaces", "clone with new users", GRANTED, system_calls("clone"), lacks=root_only)
def clone_into_namespace(aims: Aims) -> bytes:
    """The same by clone, as a container runtime does it."""
    child = call("clone", _NEW_USER | _SIGCHLD, None, None, None, None)
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    return DONE


_SETNS = system_calls("setns")


@act("join the other node's namespace", "setns to its mounts", GRANTED, _SETNS, _SETNS, lacks=root_only)
def join_namespace(aims: Aims) -> bytes:
    def work() -> bytes:
        call("setns", otherwise(-1, "pidfd_open", int(aims["pid"]), 0), _NEW_MOUNTS)
        return DONE

    return in_child(work)


_MKNOD = system_calls("mknod")


@act("make a device file", "mknod in its state", GRANTED, _MKNOD, _MKNOD, lacks=root_only)
def make_device(aims: Aims) -> bytes:
    path = Path(aims["own"]) / "device"
    with step("mknod"):
        os.mknod(path, 0o600 | 0o020000, os.makedev(1, 5))
    path.unlink()
    return DONE


@act("make a pipe in its state", "mkfifo, at which whoever opens it waits for ever", GRANTED, _MKNOD, _MKNOD)
def make_pipe(aims: Aims) -> bytes:
    path = Path(aims["own"]) / "pipe"
    with step("mknod"):
        os.mkfifo(path)
    path.unlink()
    return DONE
