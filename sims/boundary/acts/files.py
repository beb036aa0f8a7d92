"""Reading the other party's files, each way in."""

import ctypes
import mmap
import os
import struct
import threading
import time
from pathlib import Path

from .act import Aims, StoppedError, act, call, libc, read, step
from .expectation import files, launcher, system_calls, users
from .seen import PRIVATE, gets, root_only

_AT_FDCWD = -100
# Seconds after which a race that is not won ends, and how often it must have been refused by then.
_RACE, _REFUSALS = 3.0, 20
_OPEN = files("open")
_OTHERS = users("open")


@act("read the other party's images", "opens a file in its data folder", PRIVATE, _OPEN, _OPEN, _OTHERS)
def read_file(aims: Aims) -> bytes:
    return read(aims["private"])


@act(
    "list the other party's images",
    "lists its data folder",
    gets(lambda stage: b"private.bin"),
    _OPEN,
    _OPEN,
    _OTHERS,
)
def list_folder(aims: Aims) -> bytes:
    with step("open"):
        return "\n".join(os.listdir(aims["data"])).encode()


@act(
    "read the other party's signing key",
    "opens its signing.key",
    gets(lambda stage: stage.victim.node.key.read_bytes()),
    _OPEN,
    _OPEN,
    _OTHERS,
)
def read_key(aims: Aims) -> bytes:
    return read(aims["key"])


@act(
    "read what opens the other party's keys",
    "opens its key.secret",
    gets(lambda stage: (stage.victim.folder / "key.secret").read_bytes()),
    _OPEN,
    _OPEN,
    _OTHERS,
)
def read_key_file(aims: Aims) -> bytes:
    return read(aims["key_file"])


# A courier is given the secret of its node's socket.
@act(
    "read the secret of the other party's socket",
    "opens its socket.secret",
    gets(lambda stage: stage.victim.node.secret.read_bytes()),
    _OPEN,
    None,
    _OTHERS,
)
def read_secret(aims: Aims) -> bytes:
    return read(aims["secret"])


@act("read the other party's log", "opens its node.log", gets(lambda stage: b"individual-1 starts"), _OPEN, _OPEN)
def read_log(aims: Aims) -> bytes:
    return read(aims["log"])


@act(
    "read the other party's ledger",
    "opens its ledger.db",
    gets(lambda stage: b"SQLite format 3"),
    _OPEN,
    _OPEN,
    _OTHERS,
)
def read_ledger(aims: Aims) -> bytes:
    return read(aims["ledger"])


@act("read the machine's accounts", "opens /etc/passwd", gets(lambda stage: b"root:"), _OPEN, _OPEN)
def read_accounts(aims: Aims) -> bytes:
    return read("/etc/passwd")


@act(
    "open by a raw system call",
    "openat2 by its number, with ctypes",
    PRIVATE,
    system_calls("openat2"),
    system_calls("openat2"),
    users("openat2"),
)
def read_by_raw_call(aims: Aims) -> bytes:
    how = struct.pack("=QQQ", os.O_RDONLY, 0, 0)
    descriptor = call("openat2", _AT_FDCWD, aims["private"].encode(), how, len(how))
    with os.fdopen(descriptor, "rb") as file:
        return file.read()


@act("open by the C library", "fopen and fread, with ctypes", PRIVATE, files("fopen"), files("fopen"))
def read_by_c_library(aims: Aims) -> bytes:
    libc.fopen.restype = ctypes.c_void_p
    file = libc.fopen(aims["private"].encode(), b"rb")
    if not file:
        raise StoppedError("fopen", ctypes.get_errno())
    buffer = ctypes.create_string_buffer(4096)
    count = libc.fread(buffer, 1, 4096, ctypes.c_void_p(file))
    libc.fclose(ctypes.c_void_p(file))
    return buffer.raw[:count]


@act("map another's file into memory", "mmap of an image", PRIVATE, _OPEN, _OPEN)
def map_file(aims: Aims) -> bytes:
    with step("open"):
        descriptor = os.open(aims["private"], os.O_RDONLY)
    try:
        with mmap.mmap(descriptor, 0, prot=mmap.PROT_READ) as memory:
            return memory[:]
    finally:
        os.close(descriptor)


@act("open again what a path descriptor names", "O_PATH, then /proc/self/fd", PRIVATE, _OPEN, _OPEN)
def reopen_path_descriptor(aims: Aims) -> bytes:
    # Such a descriptor can be had for any file; it opens nothing yet.
    with step("open O_PATH"):
        descriptor = os.open(aims["private"], os.O_PATH)
    try:
        return read(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)


@act("go through /proc/self/root", "the same file by another path", PRIVATE, _OPEN, _OPEN)
def read_through_own_root(aims: Aims) -> bytes:
    return read(f"/proc/self/root{aims['private']}")


@act("go up from the own folder", "../../.. and down again", PRIVATE, _OPEN)
def read_through_parent_folders(aims: Aims) -> bytes:
    return read(f"{aims['own']}/../../../../../../../../{aims['private']}")


@act("enter another's folder", "chdir there, and open by a short name", PRIVATE, system_calls("chdir"), _OPEN)
def read_from_its_folder(aims: Aims) -> bytes:
    with step("open O_PATH"):
        back = os.open(".", os.O_PATH)
    try:
        with step("chdir"):
            os.chdir(aims["data"])
        try:
            return read(Path(aims["private"]).name)
        finally:
            os.fchdir(back)
    finally:
        os.close(back)


@act("open beside a path descriptor", "openat with O_PATH of the folder", PRIVATE, _OPEN, _OPEN)
def read_beside_path_descriptor(aims: Aims) -> bytes:
    with step("open O_PATH"):
        folder = os.open(aims["data"], os.O_PATH | os.O_DIRECTORY)
    try:
        with step("open"):
            descriptor = os.open(Path(aims["private"]).name, os.O_RDONLY, dir_fd=folder)
        with os.fdopen(descriptor, "rb") as file:
            return file.read()
    finally:
        os.close(folder)


@act("read from a new thread", "a thread that began after the confinement", PRIVATE, _OPEN, _OPEN)
def read_from_thread(aims: Aims) -> bytes:
    found: list[bytes | StoppedError] = []

    def work() -> None:
        try:
            found.append(read(aims["private"]))
        except StoppedError as error:
            found.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    if isinstance(found[0], StoppedError):
        raise found[0]
    return found[0]


@act("follow a link that it made", "a symbolic link in its state", PRIVATE, system_calls("symlink"), files("symlink"))
def follow_new_link(aims: Aims) -> bytes:
    link = Path(aims["own"]) / "new-link"
    with step("symlink"):
        os.symlink(aims["private"], link)
    try:
        return read(str(link))
    finally:
        link.unlink()


@act("follow a link that was planted", "a symbolic link somebody left in its state", PRIVATE, _OPEN, _OPEN)
def follow_planted_link(aims: Aims) -> bytes:
    return read(f"{aims['own']}/planted-link")


@act("link another's file here", "a hard link in its state", PRIVATE, system_calls("link"), files("link", "EXDEV"))
def link_here(aims: Aims) -> bytes:
    link = Path(aims["own"]) / "hard-link"
    with step("link"):
        os.link(aims["private"], link)
    try:
        return read(str(link))
    finally:
        link.unlink()


# Landlock checks both folders, and names the error of the first that fails.
@act(
    "move another's file here",
    "rename into its state",
    PRIVATE,
    files("rename", "EACCES", "EXDEV"),
    files("rename", "EACCES", "EXDEV"),
    users("rename"),
)
def move_here(aims: Aims) -> bytes:
    here = Path(aims["own"]) / "moved"
    with step("rename"):
        os.rename(aims["movable"], here)
    try:
        return read(str(here))
    finally:
        os.rename(here, aims["movable"])


@act(
    "exchange another's file for one of its own",
    "renameat2 with RENAME_EXCHANGE",
    PRIVATE,
    system_calls("renameat2"),
    system_calls("renameat2"),
)
def exchange(aims: Aims) -> bytes:
    here = Path(aims["own"]) / "exchanged"
    here.write_bytes(b"x")
    arguments = _AT_FDCWD, aims["movable"].encode(), _AT_FDCWD, os.fsencode(here), 2
    call("renameat2", *arguments)
    try:
        return read(str(here))
    finally:
        call("renameat2", *arguments)
        here.unlink()


@act(
    "win a race with a link",
    "two of its folders swapped again and again, one of which holds a file and one a planted link, while it is opened",
    PRIVATE,
    _OPEN,
    _OPEN,
)
def race_with_link(aims: Aims) -> bytes:
    """The open is refused only when the race was run: harmless reads and refusals have both been seen."""
    folder = Path(aims["own"]) / "race"
    over, failed = threading.Event(), list[OSError]()

    def swap() -> None:
        now, names = folder / "now", [folder / "harmless", folder / "planted"]
        try:
            while not over.is_set():
                names[0].rename(now)
                now.rename(names[0])
                names.reverse()
        except OSError as error:
            failed.append(error)

    thread = threading.Thread(target=swap)
    thread.start()
    refused: list[StoppedError] = []
    harmless, deadline = 0, time.monotonic() + _RACE
    try:
        while time.monotonic() < deadline and not failed and min(harmless, len(refused)) < _REFUSALS:
            try:
                found = read(str(folder / "now" / "file"))
            except StoppedError as error:
                refused += [] if error.error == "ENOENT" else [error]
                continue
            if found != b"harmless":
                return found
            harmless += 1
    finally:
        over.set()
        thread.join()
    if failed:
        raise StoppedError("rename", failed[0])
    if min(harmless, len(refused)) == 0:
        raise RuntimeError(f"no race was run: {harmless} harmless reads, {len(refused)} refusals")
    raise refused[0]


@act(
    "open by a file's handle",
    "name_to_handle_at, open_by_handle_at",
    PRIVATE,
    system_calls("name_to_handle_at"),
    system_calls("name_to_handle_at"),
    lacks=root_only,
)
def open_by_handle(aims: Aims) -> bytes:
    handle, mount = ctypes.create_string_buffer(struct.pack("=Ii", 128, 0), 136), ctypes.c_int()
    call("name_to_handle_at", _AT_FDCWD, aims["private"].encode(), handle, ctypes.byref(mount), 0)
    near = os.open(aims["own"], os.O_RDONLY | os.O_DIRECTORY)
    try:
        with os.fdopen(call("open_by_handle_at", near, handle, os.O_RDONLY), "rb") as file:
            return file.read()
    finally:
        os.close(near)


@act(
    "open by a handle that it guessed",
    "open_by_handle_at alone: a handle is an inode's number and its generation",
    PRIVATE,
    system_calls("open_by_handle_at"),
    system_calls("open_by_handle_at"),
    lacks=lambda stage: root_only(stage) or ("" if stage.handle else "this file system gives no handles"),
)
def open_guessed_handle(aims: Aims) -> bytes:
    handle = bytes.fromhex(aims["handle"])
    near = os.open(aims["own"], os.O_RDONLY | os.O_DIRECTORY)
    try:
        with os.fdopen(call("open_by_handle_at", near, handle, os.O_RDONLY), "rb") as file:
            return file.read()
    finally:
        os.close(near)


_CLOSED = launcher("lseek", "EBADF")


@act("read an inherited descriptor", "one that was left open at its start", PRIVATE, _CLOSED, _CLOSED)
def read_inherited(aims: Aims) -> bytes:
    """Read a descriptor of another's file that the starter of this process left open."""
    with step("lseek"):
        os.lseek(int(aims["inherited"]), 0, os.SEEK_SET)
    with step("read"):
        return os.read(int(aims["inherited"]), 4096)


@act(
    "read the operator's environment",
    "a variable of the shell that it was started from",
    gets(lambda stage: stage.operators.encode()),
    launcher("getenv", "absent"),
    launcher("getenv", "absent"),
)
def read_operators_environment(aims: Aims) -> bytes:
    found = os.environ.get(aims["variable"])
    if found is None:
        raise StoppedError("getenv", "absent")
    return found.encode()
