"""A file's metadata: modes, owners, times, attributes; and notices of changes."""

import fcntl
import os
import signal
import threading
import time
from typing import TYPE_CHECKING

from .act import DONE, Aims, Seen, act, call, checked, libc, otherwise, step
from .expectation import NO_EFFECT, Open, system_calls, users
from .seen import GRANTED, MEMORY, attributes, changes, gets, root_only, since

if TYPE_CHECKING:
    from sims.boundary.stage import Stage

_AT_FDCWD = -100
# Seconds for which a lease is held.
_LEASE = 0.5
_SAME_METADATA = Open(
    "the kernel tells name, size and times of a file to whoever may pass through the folders above it, and no filter "
    "sees whose file is asked about; where the parties are two users, the folder's mode (0700) stops it"
)


def _mode(stage: "Stage") -> int:
    return (stage.victim.data / "chmodable").stat().st_mode & 0o7777


def _noted(stage: "Stage", token: str) -> bool:
    path = stage.victim.data / "chmodable"
    return "user.note" in os.listxattr(path) and os.getxattr(path, "user.note") == token.encode()


def presence(stage: "Stage", evidence: bytes) -> bool:
    """The act could tell an existing name from a missing one."""
    return evidence == b"10"


_GROUP_CHANGED = changes(lambda stage, token: (stage.victim.data / "chmodable").stat().st_gid == 65534)


@act(
    "open another's file to all",
    "chmod",
    changes(lambda stage, token: _mode(stage) == 0o666),
    system_calls("chmod"),
    system_calls("chmod", NO_EFFECT),
    users("chmod", "EACCES"),
)
def change_mode(aims: Aims) -> bytes:
    with step("chmod"):
        os.chmod(aims["chmodable"], 0o666)
    return DONE


@act(
    "open another's file to all, by a new call",
    "fchmodat2",
    changes(lambda stage, token: _mode(stage) == 0o646),
    system_calls("fchmodat2"),
    system_calls("fchmodat2", NO_EFFECT),
    lacks=since(6, 6, "fchmodat2"),
)
def change_mode_by_new_call(aims: Aims) -> bytes:
    call("fchmodat2", _AT_FDCWD, aims["chmodable"].encode(), 0o646, 0)
    return DONE


@act(
    "change the mode of a system's file",
    "fchmod of a file that it may read",
    GRANTED,
    system_calls("fchmod"),
    lacks=root_only,
)
def change_mode_of_readable(aims: Aims) -> bytes:
    """Of a system's file, which may be opened to be read: set-user-id, say. Here it gets the mode that it has."""
    with step("open"):
        descriptor = os.open(aims["system_file"], os.O_RDONLY)
    try:
        with step("fchmod"):
            os.fchmod(descriptor, os.fstat(descriptor).st_mode & 0o7777)
    finally:
        os.close(descriptor)
    return DONE


@act(
    "give another's file to a group",
    "chown",
    _GROUP_CHANGED,
    system_calls("chown"),
    system_calls("chown", NO_EFFECT),
    lacks=root_only,
)
def change_owner(aims: Aims) -> bytes:
    with step("chown"):
        os.chown(aims["chmodable"], -1, int(aims["group"]))
    return DONE


@act(
    "give it by a descriptor that opens nothing",
    "fchownat of O_PATH",
    _GROUP_CHANGED,
    system_calls("fchownat"),
    system_calls("fchownat", NO_EFFECT),
    lacks=root_only,
)
def change_owner_by_descriptor(aims: Aims) -> bytes:
    with step("open O_PATH"):
        descriptor = os.open(aims["chmodable"], os.O_PATH)
    try:
        checked(libc.fchownat(descriptor, b"", -1, int(aims["group"]), 0x1000), "fchownat")
    finally:
        os.close(descriptor)
    return DONE


@act(
    "leave a bit in another's times",
    "utimensat",
    changes(lambda stage, token: (stage.victim.data / "chmodable").stat().st_atime == 1),
    system_calls("utimensat"),
    system_calls("utimensat", NO_EFFECT),
)
def change_time(aims: Aims) -> bytes:
    with step("utimensat"):
        os.utime(aims["chmodable"], (1, int(aims["time"])))
    return DONE


@act(
    "leave an attribute on another's file",
    "setxattr",
    changes(_noted),
    system_calls("setxattr"),
    system_calls("setxattr", NO_EFFECT),
    lacks=attributes,
)
def set_attribute(aims: Aims) -> bytes:
    with step("setxattr"):
        os.setxattr(aims["chmodable"], "user.note", aims["token"].encode())
    return DONE


# "There are none here" is what is answered, as some libraries give up at any other error.
_NO_ATTRIBUTES = system_calls("getxattr", "ENOTSUP", "EPERM")


@act("read an attribute of another's file", "getxattr", MEMORY, _NO_ATTRIBUTES, _NO_ATTRIBUTES, lacks=attributes)
def get_attribute(aims: Aims) -> bytes:
    with step("getxattr"):
        return os.getxattr(aims["attributed"], "user.note")


@act("be told of changes in another's folder", "inotify", GRANTED, *[system_calls("inotify_add_watch")] * 2)
def watch_folder(aims: Aims) -> bytes:
    watching = otherwise(-1, "inotify_init1", os.O_NONBLOCK)
    try:
        # Every kind of event.
        call("inotify_add_watch", watching, aims["data"].encode(), 0xFFF)
        return DONE
    finally:
        if watching >= 0:
            os.close(watching)


@act("be told of every file that is opened", "fanotify", GRANTED, *[system_calls("fanotify_init")] * 2, lacks=root_only)
def watch_everything(aims: Aims) -> bytes:
    os.close(call("fanotify_init", 0, os.O_RDONLY))
    return DONE


@act("be told of changes by a signal", "F_NOTIFY on a folder that it may read", GRANTED, system_calls("fcntl F_NOTIFY"))
def watch_by_signal(aims: Aims) -> bytes:
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)
    descriptor = os.open(aims["package"], os.O_RDONLY | os.O_DIRECTORY)
    try:
        with step("fcntl F_NOTIFY"):
            fcntl.fcntl(descriptor, fcntl.F_NOTIFY, fcntl.DN_CREATE | fcntl.DN_MULTISHOT)
    finally:
        os.close(descriptor)
        signal.signal(signal.SIGIO, before)
    return DONE


@act(
    "hold up whoever opens a file that both may read",
    "F_SETLEASE on a file of the package: every other reader waits",
    changes(lambda stage, token: stage.held_up()),
    system_calls("fcntl F_SETLEASE"),
    system_calls("fcntl F_SETLEASE"),
    lacks=lambda stage: "" if stage.owns_package else "only who owns the package can hold a lease on it",
)
def hold_readers_up(aims: Aims) -> bytes:
    # The kernel would end this process with a signal that another one waits.
    signal.signal(signal.SIGIO, signal.SIG_IGN)
    descriptor = os.open(aims["package_file"], os.O_RDONLY)
    try:
        with step("fcntl F_SETLEASE"):
            fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    except BaseException:
        os.close(descriptor)
        raise

    def let_go() -> None:
        time.sleep(_LEASE)
        os.close(descriptor)

    threading.Thread(target=let_go, daemon=True).start()
    return DONE


# --- What nothing stops between processes of one user ---------------------------------------------------------------


@act("read where another's link leads", "readlink", MEMORY, _SAME_METADATA, None, users("readlink"))
def read_link(aims: Aims) -> bytes:
    with step("readlink"):
        return os.readlink(aims["link"]).encode()


@act(
    "ask for the size of another's file",
    "stat",
    gets(lambda stage: str((stage.victim.data / "listed").stat().st_size).encode()),
    _SAME_METADATA,
    _SAME_METADATA,
    users("stat"),
)
def ask_size(aims: Aims) -> bytes:
    with step("stat"):
        return str(os.stat(aims["listed"]).st_size).encode()


@act(
    "ask whether another's file is there",
    "access of a name that exists and of one that does not",
    Seen(evidence=presence),
    _SAME_METADATA,
    None,
    users("access"),
)
def ask_presence(aims: Aims) -> bytes:
    """One name that is there and one that is not, told apart without opening either."""
    names = aims["listed"], aims["listed"] + "-missing"
    errors = []
    for name in names:
        try:
            os.stat(name)
            errors.append("1")
        except FileNotFoundError:
            errors.append("0")
        except OSError as error:
            with step("access"):
                raise error
    return "".join(errors).encode()


@act(
    "tell a refusal from an absence",
    "open of a name that exists and of one that does not: by the kind of error, or its time",
    Seen(evidence=presence),
    _SAME_METADATA,
    None,
    users("open"),
)
def time_presence(aims: Aims) -> bytes:
    """The same by which error comes."""
    found, refused = "", OSError(0, "nothing was refused")
    for name in (aims["listed"], aims["listed"] + "-missing"):
        try:
            os.close(os.open(name, os.O_RDONLY))
            found += "1"
        except FileNotFoundError:
            found += "0"
        except PermissionError as error:
            found, refused = found + "1", error
    if found == "11":
        with step("open"):
            raise refused
    return found.encode()


@act(
    "ask how full the other's disk is",
    "statfs",
    gets(lambda stage: str(os.statvfs(stage.victim.data).f_blocks).encode()),
    system_calls("statfs"),
    _SAME_METADATA,
    users("statfs"),
)
def ask_space(aims: Aims) -> bytes:
    with step("statfs"):
        return str(os.statvfs(aims["data"] + "/images").f_blocks).encode()
