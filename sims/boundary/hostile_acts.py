"""What a hostile process does: a function for each attack. Stands alone: in a courier it runs as a script.

Every act gets its aims (paths, process ids, ports) by name. It returns what it got hold of, or ``DONE`` where the
attack lies in the doing; what stops it is an OSError. Whether it reached anything is judged from outside.
"""

import base64
import ctypes
import errno
import fcntl
import json
import mmap
import os
import platform
import select
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

Aims = Mapping[str, str]
Act = Callable[[Aims], bytes]

#: The system did what it was asked for, and there is nothing more to bring home.
DONE = b"done"

# Numbers of system calls: (x86-64, arm64).
_NUMBERS = {
    "bpf": (321, 280),
    "add_key": (248, 217),
    "keyctl": (250, 219),
    "fchmodat2": (452, 452),
    "inotify_add_watch": (254, 27),
    "inotify_init1": (294, 26),
    "io_uring_setup": (425, 425),
    "ioprio_get": (252, 31),
    "ioprio_set": (251, 30),
    "kcmp": (312, 272),
    "mount": (165, 40),
    "move_pages": (279, 239),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "open_tree": (428, 428),
    "openat2": (437, 437),
    "perf_event_open": (298, 241),
    "pidfd_getfd": (438, 438),
    "pidfd_open": (434, 434),
    "pidfd_send_signal": (424, 424),
    "pivot_root": (155, 41),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "ptrace": (101, 117),
    "renameat2": (316, 276),
    "rt_sigqueueinfo": (129, 138),
    "setns": (308, 268),
    "tkill": (200, 130),
    "unshare": (272, 97),
    "userfaultfd": (323, 282),
}
_COLUMN = 1 if platform.machine() == "aarch64" else 0
_AT_FDCWD = -100
_SECONDS = 3.0
_NEW_MOUNTS, _NEW_USER = 0x00020000, 0x10000000
_BIND, _RECURSIVE, _PRIVATE = 4096, 16384, 1 << 18
_libc = ctypes.CDLL(None, use_errno=True)

ACTS: dict[str, Act] = {}


def _act(function: Act) -> Act:
    ACTS[function.__name__] = function
    return function


def _call(name: str, *arguments: object) -> int:
    """A system call by its number, past the C library."""
    result = int(_libc.syscall(_NUMBERS[name][_COLUMN], *(_word(argument) for argument in arguments)))
    if result < 0:
        raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")
    return result


def _word(argument: object) -> object:
    # An int would be passed as 32 bits.
    return ctypes.c_long(argument) if isinstance(argument, int) else argument


def _checked(result: int, name: str) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")
    return result


def _in_child(work: Callable[[], bytes]) -> bytes:
    """Do it in a child process, for what changes the process that does it."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            answer = b"+" + work()
        except OSError as error:
            answer = f"-{error.errno or 0} {error}".encode()
        except BaseException as error:
            answer = f"!{type(error).__name__}: {error}".encode()
        os.write(writing, answer)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as answers:
        answer = answers.read()
    os.waitpid(child, 0)
    if answer[:1] == b"+":
        return answer[1:]
    if answer[:1] == b"-":
        number, _, text = answer[1:].decode().partition(" ")
        raise OSError(int(number), text)
    raise RuntimeError(answer[1:].decode() or "the child was killed")


def _read(path: str) -> bytes:
    return Path(path).read_bytes()


def _run(*command: str) -> bytes:
    done = subprocess.run(command, capture_output=True, timeout=30, check=False)
    if done.returncode:
        raise PermissionError(errno.EACCES, done.stderr.decode(errors="replace").strip()[-200:])
    return done.stdout


# --- The other party's files ---------------------------------------------------------------------------------------


@_act
def read_file(aims: Aims) -> bytes:
    return _read(aims["private"])


@_act
def read_key(aims: Aims) -> bytes:
    return _read(aims["key"])


@_act
def read_key_file(aims: Aims) -> bytes:
    return _read(aims["key_file"])


@_act
def read_secret(aims: Aims) -> bytes:
    return _read(aims["secret"])


@_act
def read_log(aims: Aims) -> bytes:
    return _read(aims["log"])


@_act
def read_ledger(aims: Aims) -> bytes:
    return _read(aims["ledger"])


@_act
def list_folder(aims: Aims) -> bytes:
    return "\n".join(os.listdir(aims["data"])).encode()


@_act
def read_accounts(aims: Aims) -> bytes:
    return _read("/etc/passwd")


@_act
def read_by_raw_call(aims: Aims) -> bytes:
    how = struct.pack("=QQQ", os.O_RDONLY, 0, 0)
    descriptor = _call("openat2", _AT_FDCWD, aims["private"].encode(), how, len(how))
    with os.fdopen(descriptor, "rb") as file:
        return file.read()


@_act
def read_by_c_library(aims: Aims) -> bytes:
    _libc.fopen.restype = ctypes.c_void_p
    file = _libc.fopen(aims["private"].encode(), b"rb")
    if not file:
        raise OSError(ctypes.get_errno(), "fopen")
    buffer = ctypes.create_string_buffer(4096)
    count = _libc.fread(buffer, 1, 4096, ctypes.c_void_p(file))
    _libc.fclose(ctypes.c_void_p(file))
    return buffer.raw[:count]


@_act
def map_file(aims: Aims) -> bytes:
    descriptor = os.open(aims["private"], os.O_RDONLY)
    try:
        with mmap.mmap(descriptor, 0, prot=mmap.PROT_READ) as memory:
            return memory[:]
    finally:
        os.close(descriptor)


@_act
def reopen_path_descriptor(aims: Aims) -> bytes:
    # Such a descriptor can be had for any file; it opens nothing yet.
    descriptor = os.open(aims["private"], os.O_PATH)
    try:
        return _read(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)


@_act
def read_through_own_root(aims: Aims) -> bytes:
    return _read(f"/proc/self/root{aims['private']}")


@_act
def read_through_parent_folders(aims: Aims) -> bytes:
    return _read(f"{aims['own']}/../../../../../../../../{aims['private']}")


@_act
def read_from_thread(aims: Aims) -> bytes:
    found: list[bytes | OSError] = []

    def work() -> None:
        try:
            found.append(_read(aims["private"]))
        except OSError as error:
            found.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    if isinstance(found[0], OSError):
        raise found[0]
    return found[0]


@_act
def read_from_child(aims: Aims) -> bytes:
    return _in_child(lambda: _read(aims["private"]))


@_act
def read_by_program(aims: Aims) -> bytes:
    return _run("cat", aims["private"])


@_act
def read_by_shell(aims: Aims) -> bytes:
    return _run("/bin/sh", "-c", 'while IFS= read -r line; do echo "$line"; done < "$0"', aims["listed"])


@_act
def read_by_program_in_memory(aims: Aims) -> bytes:
    program = os.memfd_create("cat")
    os.write(program, Path("/usr/bin/cat").read_bytes())
    out_reading, out_writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.dup2(out_writing, 1)
        try:
            os.execve(program, ["cat", aims["private"]], {})
        finally:
            os._exit(1)
    os.close(out_writing)
    with os.fdopen(out_reading, "rb") as answers:
        found = answers.read()
    status = os.waitpid(child, 0)[1]
    os.close(program)
    if status:
        raise PermissionError(errno.EACCES, "the program in memory failed")
    return found


@_act
def run_dropped_program(aims: Aims) -> bytes:
    path = Path(aims["own"]) / "dropped"
    path.write_bytes(Path("/usr/bin/cat").read_bytes())
    # As it is made: to make it executable later is another matter.
    path.unlink()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o700)
    os.write(descriptor, Path("/usr/bin/cat").read_bytes())
    os.close(descriptor)
    try:
        done = subprocess.run([str(path)], input=DONE, capture_output=True, timeout=30, check=True)
        return done.stdout
    finally:
        path.unlink()


@_act
def follow_new_link(aims: Aims) -> bytes:
    link = Path(aims["own"]) / "new-link"
    os.symlink(aims["private"], link)
    try:
        return link.read_bytes()
    finally:
        link.unlink()


@_act
def follow_planted_link(aims: Aims) -> bytes:
    return _read(f"{aims['own']}/planted-link")


@_act
def link_here(aims: Aims) -> bytes:
    link = Path(aims["own"]) / "hard-link"
    os.link(aims["private"], link)
    try:
        return link.read_bytes()
    finally:
        link.unlink()


@_act
def move_here(aims: Aims) -> bytes:
    here = Path(aims["own"]) / "moved"
    os.rename(aims["movable"], here)
    try:
        return here.read_bytes()
    finally:
        os.rename(here, aims["movable"])


@_act
def exchange(aims: Aims) -> bytes:
    here = Path(aims["own"]) / "exchanged"
    here.write_bytes(b"x")
    arguments = _AT_FDCWD, aims["movable"].encode(), _AT_FDCWD, os.fsencode(here), 2
    _call("renameat2", *arguments)
    try:
        return here.read_bytes()
    finally:
        _call("renameat2", *arguments)
        here.unlink()


@_act
def race_with_link(aims: Aims) -> bytes:
    """Swap a harmless file and a link while the file is opened again and again."""
    folder = Path(aims["own"]) / "race"
    over = threading.Event()
    not_swapped: list[OSError] = []

    def swap() -> None:
        names = os.fsencode(folder / "file"), os.fsencode(folder / "link")
        while not over.is_set():
            try:
                _call("renameat2", _AT_FDCWD, names[0], _AT_FDCWD, names[1], 2)
            except OSError as error:
                not_swapped.append(error)
                return

    thread = threading.Thread(target=swap)
    thread.start()
    refused: OSError | None = None
    deadline = time.monotonic() + _SECONDS
    try:
        while time.monotonic() < deadline and not not_swapped:
            try:
                found = (folder / "file").read_bytes()
            except OSError as error:
                refused = error
                continue
            if found != b"harmless":
                return found
    finally:
        over.set()
        thread.join()
    if not_swapped or refused is not None:
        raise not_swapped[0] if refused is None else refused
    raise RuntimeError("the swap was never seen")


@_act
def open_by_handle(aims: Aims) -> bytes:
    handle, mount = ctypes.create_string_buffer(struct.pack("=Ii", 128, 0), 136), ctypes.c_int()
    _call("name_to_handle_at", _AT_FDCWD, aims["private"].encode(), handle, ctypes.byref(mount), 0)
    near = os.open(aims["own"], os.O_RDONLY | os.O_DIRECTORY)
    try:
        with os.fdopen(_call("open_by_handle_at", near, handle, os.O_RDONLY), "rb") as file:
            return file.read()
    finally:
        os.close(near)


# --- Another view of the file system -------------------------------------------------------------------------------


def _own_mounts() -> None:
    """A mount table of this process's own, where it may have one, so that nothing stays behind."""
    if _libc.unshare(_NEW_MOUNTS) == 0:
        _libc.mount(b"none", b"/", None, ctypes.c_ulong(_RECURSIVE | _PRIVATE), None)


@_act
def change_root(aims: Aims) -> bytes:
    def work() -> bytes:
        os.chroot(aims["data"])
        return _read("/" + Path(aims["private"]).name)

    return _in_child(work)


@_act
def mount_here(aims: Aims) -> bytes:
    def work() -> bytes:
        _own_mounts()
        here = Path(aims["own"]) / "mount"
        here.mkdir(exist_ok=True)
        _call("mount", aims["data"].encode(), os.fsencode(here), None, _BIND, None)
        return (here / Path(aims["private"]).name).read_bytes()

    return _in_child(work)


@_act
def clone_mount(aims: Aims) -> bytes:
    def work() -> bytes:
        tree = _call("open_tree", _AT_FDCWD, aims["data"].encode(), 1 | os.O_CLOEXEC)
        with os.fdopen(os.open(Path(aims["private"]).name, os.O_RDONLY, dir_fd=tree), "rb") as file:
            return file.read()

    return _in_child(work)


@_act
def pivot_root(aims: Aims) -> bytes:
    def work() -> bytes:
        _own_mounts()
        folder = aims["data"].encode()
        _libc.mount(folder, folder, None, ctypes.c_ulong(_BIND), None)
        os.chdir(folder)
        _call("pivot_root", b".", b".")
        return _read("/" + Path(aims["private"]).name)

    return _in_child(work)


@_act
def new_namespaces(aims: Aims) -> bytes:
    def work() -> bytes:
        _call("unshare", _NEW_USER | _NEW_MOUNTS)
        return DONE

    return _in_child(work)


@_act
def clone_into_namespace(aims: Aims) -> bytes:
    """The same by clone, as a container runtime does it."""
    arguments = _NEW_USER | 17, None, None, None, None
    child = _libc.syscall(56 if _COLUMN == 0 else 220, *(_word(one) for one in arguments))
    if child == 0:
        os._exit(0)
    if child < 0:
        raise OSError(ctypes.get_errno(), "clone")
    os.waitpid(child, 0)
    return DONE


@_act
def join_namespace(aims: Aims) -> bytes:
    def work() -> bytes:
        pidfd = _call("pidfd_open", int(aims["pid"]), 0)
        _call("setns", pidfd, _NEW_MOUNTS)
        return DONE

    return _in_child(work)


@_act
def make_device(aims: Aims) -> bytes:
    path = Path(aims["own"]) / "device"
    os.mknod(path, 0o600 | 0o020000, os.makedev(1, 5))
    path.unlink()
    return DONE


# --- Code that data brings along -----------------------------------------------------------------------------------


@_act
def load_pickle(aims: Aims) -> bytes:
    """A checkpoint that runs code when it is loaded without ``weights_only``."""
    import torch

    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return _read, (aims["private"],)

    path = Path(aims["own"]) / "evil.pt"
    torch.save(Evil(), path)
    try:
        found = torch.load(path, weights_only=False)
    finally:
        path.unlink()
    assert isinstance(found, bytes)
    return found


@_act
def load_script(aims: Aims) -> bytes:
    """A TorchScript archive that opens a file when it is called: TorchScript knows ``from_file``."""
    import warnings

    import torch

    path = Path(aims["own"]) / "evil.ts"
    code = (
        "def forward(self, name: str, size: int) -> Tensor:\n"
        "    return torch.from_file(name, False, size, dtype=torch.uint8)\n"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = torch.jit.ScriptModule()
        module.define(code)
        module.save(str(path))
        loaded = torch.jit.load(str(path))
    try:
        size = os.stat(aims["private"]).st_size
        found = loaded(aims["private"], size)
    except RuntimeError as error:
        # It says why the file did not open, with the name of the error.
        if "Permission denied" in str(error) or "Operation not permitted" in str(error):
            raise PermissionError(errno.EACCES, "torch.from_file") from None
        raise
    finally:
        path.unlink()
    return bytes(found.tolist())


# --- Writing where others read -------------------------------------------------------------------------------------


def _drop(path: str, aims: Aims) -> bytes:
    with open(path, "xb") as file:
        file.write(aims["token"].encode())
    return DONE


@_act
def drop_in_data(aims: Aims) -> bytes:
    return _drop(f"{aims['data']}/dropped", aims)


@_act
def drop_in_own_data(aims: Aims) -> bytes:
    return _drop(f"{aims['own_data']}/dropped", aims)


@_act
def drop_in_temporary(aims: Aims) -> bytes:
    return _drop(aims["temporary_drop"], aims)


@_act
def drop_in_shared_memory(aims: Aims) -> bytes:
    return _drop(aims["shared_memory_drop"], aims)


@_act
def drop_in_site_packages(aims: Aims) -> bytes:
    return _nameless(aims["site_packages"])


@_act
def drop_in_package(aims: Aims) -> bytes:
    return _nameless(aims["package"])


@_act
def drop_in_interpreter(aims: Aims) -> bytes:
    return _nameless(aims["interpreter"])


def _nameless(folder: str) -> bytes:
    """A file without a name in that folder: whoever can make one could name it ``evil.pth``. Nothing stays behind."""
    os.close(os.open(folder, os.O_TMPFILE | os.O_WRONLY, 0o600))
    return DONE


@_act
def write_file(aims: Aims) -> bytes:
    with open(aims["writable"], "ab") as file:
        file.write(aims["token"].encode())
    return DONE


@_act
def cut_file(aims: Aims) -> bytes:
    os.truncate(aims["cuttable"], 0)
    return DONE


@_act
def remove_file(aims: Aims) -> bytes:
    os.unlink(aims["removable"])
    return DONE


@_act
def replace_file(aims: Aims) -> bytes:
    here = Path(aims["own"]) / "replacement"
    here.write_text(aims["token"])
    os.replace(here, aims["replaceable"])
    return DONE


@_act
def change_own_configuration(aims: Aims) -> bytes:
    """Whoever writes there starts unconfined next time."""
    with open(aims["own_config"], "ab") as file:
        file.write(f"# {aims['token']}\n".encode())
    return DONE


@_act
def change_own_trust(aims: Aims) -> bytes:
    with open(aims["own_trust"], "ab") as file:
        file.write(aims["token"].encode())
    return DONE


# --- What lies about a file, beside its content --------------------------------------------------------------------


@_act
def change_mode(aims: Aims) -> bytes:
    os.chmod(aims["chmodable"], 0o666)
    return DONE


@_act
def change_mode_by_new_call(aims: Aims) -> bytes:
    _call("fchmodat2", _AT_FDCWD, aims["chmodable"].encode(), 0o646, 0)
    return DONE


@_act
def change_mode_of_readable(aims: Aims) -> bytes:
    """Of a system's file, which may be opened to be read: set-user-id, say. Here it gets the mode that it has."""
    descriptor = os.open(aims["system_file"], os.O_RDONLY)
    try:
        os.fchmod(descriptor, os.fstat(descriptor).st_mode & 0o7777)
    finally:
        os.close(descriptor)
    return DONE


@_act
def change_owner(aims: Aims) -> bytes:
    os.chown(aims["chmodable"], -1, int(aims["group"]))
    return DONE


@_act
def change_owner_by_descriptor(aims: Aims) -> bytes:
    descriptor = os.open(aims["chmodable"], os.O_PATH)
    try:
        result = _libc.fchownat(descriptor, b"", -1, int(aims["group"]), 0x1000)
        _checked(result, "fchownat")
    finally:
        os.close(descriptor)
    return DONE


@_act
def change_time(aims: Aims) -> bytes:
    os.utime(aims["chmodable"], (1, int(aims["time"])))
    return DONE


@_act
def set_attribute(aims: Aims) -> bytes:
    os.setxattr(aims["chmodable"], "user.note", aims["token"].encode())
    return DONE


@_act
def get_attribute(aims: Aims) -> bytes:
    return os.getxattr(aims["attributed"], "user.note")


@_act
def read_link(aims: Aims) -> bytes:
    return os.readlink(aims["link"]).encode()


@_act
def ask_size(aims: Aims) -> bytes:
    return str(os.stat(aims["listed"]).st_size).encode()


@_act
def ask_presence(aims: Aims) -> bytes:
    """One name that is there and one that is not, told apart without opening either."""
    names = aims["listed"], aims["listed"] + "-missing"
    return "".join("01"[os.access(name, os.F_OK)] for name in names).encode()


@_act
def time_presence(aims: Aims) -> bytes:
    """The same by the time that a refusal takes: told by which error comes."""
    found = ""
    for name in (aims["listed"], aims["listed"] + "-missing"):
        try:
            open(name).close()
            found += "1"
        except FileNotFoundError:
            found += "0"
        except PermissionError:
            found += "1"
    return found.encode()


@_act
def ask_space(aims: Aims) -> bytes:
    return str(os.statvfs(aims["data"]).f_blocks).encode()


@_act
def watch_folder(aims: Aims) -> bytes:
    watching = _call("inotify_init1", os.O_NONBLOCK)
    try:
        # Every kind of event.
        _call("inotify_add_watch", watching, aims["data"].encode(), 0xFFF)
        return DONE
    finally:
        os.close(watching)


# --- Other processes ------------------------------------------------------------------------------------------------


@_act
def read_memory_file(aims: Aims) -> bytes:
    with open(f"/proc/{aims['pid']}/mem", "rb", buffering=0) as memory:
        memory.seek(int(aims["environment"]))
        return memory.read(int(aims["environment_size"]))


@_act
def read_memory_by_call(aims: Aims) -> bytes:
    size = int(aims["environment_size"])
    here = ctypes.create_string_buffer(size)
    local = struct.pack("=QQ", ctypes.addressof(here), size)
    remote = struct.pack("=QQ", int(aims["environment"]), size)
    _call("process_vm_readv", int(aims["pid"]), local, 1, remote, 1, 0)
    return here.raw


@_act
def write_memory(aims: Aims) -> bytes:
    """Into its environment, which it has read long ago."""
    text = aims["token"].encode()
    here = ctypes.create_string_buffer(text, len(text))
    local = struct.pack("=QQ", ctypes.addressof(here), len(text))
    remote = struct.pack("=QQ", int(aims["scratch"]), len(text))
    _call("process_vm_writev", int(aims["pid"]), local, 1, remote, 1, 0)
    return DONE


@_act
def trace(aims: Aims) -> bytes:
    def work() -> bytes:
        pid, address, word = int(aims["pid"]), int(aims["environment"]), ctypes.c_long()
        _call("ptrace", 16, pid, 0, 0)
        os.waitpid(pid, 0)
        found = b""
        for offset in range(0, int(aims["environment_size"]), 8):
            _call("ptrace", 2, pid, address + offset, ctypes.byref(word))
            found += struct.pack("=q", word.value)
        _call("ptrace", 17, pid, 0, 0)
        return found

    return _in_child(work)


@_act
def read_environment(aims: Aims) -> bytes:
    return _read(f"/proc/{aims['pid']}/environ")


@_act
def read_maps(aims: Aims) -> bytes:
    return _read(f"/proc/{aims['pid']}/maps")


@_act
def read_command_line(aims: Aims) -> bytes:
    return _read(f"/proc/{aims['pid']}/cmdline")


@_act
def read_through_its_root(aims: Aims) -> bytes:
    return _read(f"/proc/{aims['pid']}/root{aims['private']}")


@_act
def read_its_working_folder(aims: Aims) -> bytes:
    return os.readlink(f"/proc/{aims['pid']}/cwd").encode()


@_act
def list_descriptors(aims: Aims) -> bytes:
    folder = f"/proc/{aims['pid']}/fd"
    return "\n".join(os.readlink(f"{folder}/{name}") for name in os.listdir(folder)).encode()


@_act
def take_descriptor(aims: Aims) -> bytes:
    pidfd = _call("pidfd_open", int(aims["pid"]), 0)
    os.close(_call("pidfd_getfd", pidfd, 2, 0))
    os.close(pidfd)
    return DONE


@_act
def compare_processes(aims: Aims) -> bytes:
    _call("kcmp", os.getpid(), int(aims["pid"]), 1, 0, 0)
    return DONE


@_act
def move_memory(aims: Aims) -> bytes:
    """Where the other's pages lie: which of them it has touched."""
    page = int(aims["environment"]) & ~4095
    status = ctypes.c_int(-1)
    _call("move_pages", int(aims["pid"]), 1, struct.pack("=Q", page), None, ctypes.byref(status), 0)
    return DONE


@_act
def list_processes(aims: Aims) -> bytes:
    return "\n".join(os.listdir("/proc")).encode()


@_act
def ask_process(aims: Aims) -> bytes:
    return str(os.stat(f"/proc/{aims['pid']}").st_uid).encode()


@_act
def stop_by_signal(aims: Aims) -> bytes:
    os.kill(int(aims["pid"]), 19)
    return DONE


@_act
def stop_by_descriptor(aims: Aims) -> bytes:
    pidfd = _call("pidfd_open", int(aims["pid"]), 0)
    try:
        _call("pidfd_send_signal", pidfd, 19, None, 0)
    finally:
        os.close(pidfd)
    return DONE


@_act
def stop_thread(aims: Aims) -> bytes:
    _call("tkill", int(aims["pid"]), 19)
    return DONE


@_act
def queue_signal(aims: Aims) -> bytes:
    _call("rt_sigqueueinfo", int(aims["pid"]), 19, struct.pack("=iii", 19, 0, -1) + bytes(116))
    return DONE


@_act
def stop_by_owner(aims: Aims) -> bytes:
    """Let the kernel send it: as the owner of a socket on which something arrives."""
    one, other = socket.socketpair()
    with one, other:
        fcntl.fcntl(one, fcntl.F_SETOWN, int(aims["pid"]))
        fcntl.fcntl(one, 10, 19)
        fcntl.fcntl(one, fcntl.F_SETFL, fcntl.fcntl(one, fcntl.F_GETFL) | os.O_ASYNC)
        other.send(b"x")
    return DONE


@_act
def limit_other(aims: Aims) -> bytes:
    """The limits that it has, once more."""
    import resource

    pid = int(aims["pid"])
    resource.prlimit(pid, resource.RLIMIT_CORE, resource.prlimit(pid, resource.RLIMIT_CORE))
    return DONE


@_act
def pin_other(aims: Aims) -> bytes:
    os.sched_setaffinity(int(aims["pid"]), os.sched_getaffinity(int(aims["pid"])))
    return DONE


@_act
def schedule_other(aims: Aims) -> bytes:
    os.sched_setscheduler(int(aims["pid"]), os.SCHED_BATCH, os.sched_param(0))
    return DONE


@_act
def slow_other(aims: Aims) -> bytes:
    os.setpriority(os.PRIO_PROCESS, int(aims["pid"]), os.getpriority(os.PRIO_PROCESS, int(aims["pid"])))
    return DONE


@_act
def slow_its_disk(aims: Aims) -> bytes:
    _call("ioprio_set", 1, int(aims["pid"]), _call("ioprio_get", 1, int(aims["pid"])))
    return DONE


@_act
def type_into_terminal(aims: Aims) -> bytes:
    """What the operator's shell would read next, where the node was started on its terminal."""

    def work() -> bytes:
        os.setsid()
        fcntl.ioctl(0, 0x540E, 1)
        for letter in aims["token"].encode() + b"\n":
            fcntl.ioctl(0, 0x5412, bytes([letter]))
        return DONE

    return _in_child(work)


@_act
def read_terminal(aims: Aims) -> bytes:
    """What the operator types, where the node was started on its terminal."""
    if not select.select([0], [], [], _SECONDS)[0]:
        return b""
    return os.read(0, 4096)


@_act
def read_inherited(aims: Aims) -> bytes:
    """A descriptor of another's file that whoever started this process left open."""
    try:
        os.lseek(int(aims["inherited"]), 0, os.SEEK_SET)
    except OSError as error:
        if error.errno == errno.EBADF:
            return b""
        raise
    return os.read(int(aims["inherited"]), 4096)


# --- Privileges and the kernel --------------------------------------------------------------------------------------

_TELL_CAPABILITIES = (
    "import ctypes, struct; d = ctypes.create_string_buffer(24);"
    "ctypes.CDLL(None).capget(struct.pack('=Ii', 0x20080522, 0), d); print('capabilities', any(d.raw))"
)


@_act
def regain_capabilities(aims: Aims) -> bytes:
    """Root's capabilities come back with the next program, where nothing forbids it."""
    return _run(sys.executable, "-c", _TELL_CAPABILITIES)


@_act
def run_set_user_id(aims: Aims) -> bytes:
    return _run(aims["set_user_id"], "-u")


@_act
def join_group(aims: Aims) -> bytes:
    def work() -> bytes:
        os.setgroups([0, int(aims["group"])])
        return DONE

    return _in_child(work)


@_act
def load_kernel_program(aims: Aims) -> bytes:
    attributes = struct.pack("=IIIII", 2, 4, 8, 1, 0) + bytes(108)
    os.close(_call("bpf", 0, attributes, len(attributes)))
    return DONE


@_act
def count_events(aims: Aims) -> bytes:
    # Software counter of the processor's time, of the other process.
    attributes = struct.pack("=IIQ", 1, 112, 0) + bytes(96)
    os.close(_call("perf_event_open", attributes, int(aims["pid"]), -1, -1, 0))
    return DONE


@_act
def handle_faults(aims: Aims) -> bytes:
    os.close(_call("userfaultfd", os.O_CLOEXEC))
    return DONE


@_act
def ring_of_calls(aims: Aims) -> bytes:
    os.close(_call("io_uring_setup", 1, ctypes.create_string_buffer(120)))
    return DONE


@_act
def leave_key(aims: Aims) -> bytes:
    """In the user's keyring, where every process of that user finds it."""
    text = aims["token"].encode()
    key = _call("add_key", b"user", b"boundary", text, len(text), -4)
    _call("keyctl", 21, key)
    return DONE


@_act
def read_kernel_log(aims: Aims) -> bytes:
    buffer = ctypes.create_string_buffer(1 << 16)
    count = _checked(_libc.klogctl(3, buffer, len(buffer)), "klogctl")
    return buffer.raw[:count]


# --- Ways between processes -----------------------------------------------------------------------------------------


@_act
def shared_segment(aims: Aims) -> bytes:
    segment = _checked(_libc.shmget(int(aims["ipc_key"]), 4096, 0o1600), "shmget")
    _libc.shmat.restype = ctypes.c_void_p
    address = _libc.shmat(segment, None, 0)
    if address in (None, ctypes.c_void_p(-1).value):
        raise OSError(ctypes.get_errno(), "shmat")
    text = aims["token"].encode()
    ctypes.memmove(address, text, len(text))
    _libc.shmdt(ctypes.c_void_p(address))
    _libc.shmctl(segment, 0, None)
    return str(segment).encode()


@_act
def existing_segment(aims: Aims) -> bytes:
    """One that somebody else made and whose number is known or guessed."""
    _libc.shmat.restype = ctypes.c_void_p
    address = _libc.shmat(int(aims["segment"]), None, 0)
    if address in (None, ctypes.c_void_p(-1).value):
        raise OSError(ctypes.get_errno(), "shmat")
    found = ctypes.string_at(address, 64)
    _libc.shmdt(ctypes.c_void_p(address))
    return found


@_act
def message_queue(aims: Aims) -> bytes:
    queue = _checked(_libc.msgget(int(aims["ipc_key"]), 0o1600), "msgget")
    text = aims["token"].encode()
    _checked(_libc.msgsnd(queue, struct.pack("=q", 1) + text, len(text), 0), "msgsnd")
    _libc.msgctl(queue, 0, None)
    return DONE


@_act
def semaphore(aims: Aims) -> bytes:
    found = _checked(_libc.semget(int(aims["ipc_key"]), 1, 0o1600), "semget")
    _libc.semctl(found, 0, 0)
    return DONE


@_act
def named_queue(aims: Aims) -> bytes:
    name = f"/{aims['token'][:16]}".encode()
    queue = _checked(_libc.mq_open(name, os.O_CREAT | os.O_RDWR, 0o600, None), "mq_open")
    os.close(queue)
    _libc.mq_unlink(name)
    return DONE


@_act
def lock_shared_file(aims: Aims) -> bytes:
    """A lock on a file that both may read: held or not is a bit."""
    descriptor = os.open(aims["system_file"], os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(descriptor, fcntl.LOCK_UN)
    finally:
        os.close(descriptor)
    return DONE


@_act
def read_load(aims: Aims) -> bytes:
    """How busy the machine is: a bit a second, for whoever can make it busy."""
    return _read("/proc/stat")[:200]


@_act
def probe_page_cache(aims: Aims) -> bytes:
    """Which pages of a shared library somebody has read of late."""
    descriptor = os.open(aims["system_file"], os.O_RDONLY)
    size = min(os.fstat(descriptor).st_size, 1 << 20)
    _libc.mmap.restype = ctypes.c_void_p
    address = _libc.mmap(None, ctypes.c_size_t(size), 1, 1, descriptor, ctypes.c_long(0))
    os.close(descriptor)
    pages = ctypes.create_string_buffer((size + 4095) // 4096)
    _checked(_libc.mincore(ctypes.c_void_p(address), ctypes.c_size_t(size), pages), "mincore")
    _libc.munmap(ctypes.c_void_p(address), ctypes.c_size_t(size))
    return DONE


# --- The network ----------------------------------------------------------------------------------------------------


def _connect(family: int, kind: int, address: object, aims: Aims) -> bytes:
    with socket.socket(family, kind) as one:
        one.settimeout(_SECONDS)
        one.connect(address)  # type: ignore[arg-type]
        one.sendall(aims["token"].encode())
    return DONE


@_act
def connect_tcp(aims: Aims) -> bytes:
    return _connect(socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", int(aims["tcp"])), aims)


@_act
def connect_tcp6(aims: Aims) -> bytes:
    return _connect(socket.AF_INET6, socket.SOCK_STREAM, ("::1", int(aims["tcp6"])), aims)


@_act
def connect_by_child(aims: Aims) -> bytes:
    return _in_child(lambda: connect_tcp(aims))


@_act
def connect_by_shell(aims: Aims) -> bytes:
    code = "import socket, sys; socket.create_connection(('127.0.0.1', int(sys.argv[1]))).sendall(sys.argv[2].encode())"
    return _run(sys.executable, "-c", code, aims["tcp"], aims["token"]) or DONE


@_act
def send_udp(aims: Aims) -> bytes:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.sendto(aims["token"].encode(), ("127.0.0.1", int(aims["udp"])))
    return DONE


@_act
def find_name(aims: Aims) -> bytes:
    try:
        return str(socket.getaddrinfo("localhost", 80)).encode()
    except socket.gaierror:
        return b""


@_act
def listen_tcp(aims: Aims) -> bytes:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as one:
        one.bind(("127.0.0.1", 0))
        one.listen()
    return DONE


@_act
def connect_other_node(aims: Aims) -> bytes:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as one:
        one.settimeout(_SECONDS)
        one.connect(aims["socket"])
        return one.recv(64)


@_act
def connect_unix_path(aims: Aims) -> bytes:
    return _connect(socket.AF_UNIX, socket.SOCK_STREAM, aims["unix_stream"], aims)


@_act
def send_unix_path(aims: Aims) -> bytes:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as one:
        one.sendto(aims["token"].encode(), aims["unix_datagram"])
    return DONE


@_act
def send_unix_pair(aims: Aims) -> bytes:
    """By one of a pair of datagram sockets, which need no connection to send elsewhere."""
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with one, other:
        one.sendto(aims["token"].encode(), aims["unix_datagram"])
    return DONE


@_act
def connect_abstract(aims: Aims) -> bytes:
    return _connect(socket.AF_UNIX, socket.SOCK_STREAM, "\0" + aims["abstract_stream"], aims)


@_act
def send_abstract(aims: Aims) -> bytes:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as one:
        one.sendto(aims["token"].encode(), "\0" + aims["abstract_datagram"])
    return DONE


@_act
def listen_abstract(aims: Aims) -> bytes:
    """A second door, which no folder's mode guards."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as one:
        one.bind("\0" + aims["token"])
        one.listen()
    return DONE


@_act
def listen_in_own_folder(aims: Aims) -> bytes:
    path = f"{aims['own']}/door"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as one:
        one.bind(path)
        one.listen()
    os.unlink(path)
    return DONE


@_act
def send_descriptor(aims: Aims) -> bytes:
    one, other = socket.socketpair()
    with one, other:
        socket.send_fds(one, [b"x"], [one.fileno()])
    return DONE


@_act
def receive_descriptor(aims: Aims) -> bytes:
    """Take an open file from a message, as a courier could send a socket that is connected."""
    one, other = socket.socketpair()
    with one, other:
        try:
            socket.send_fds(other, [b"x"], [other.fileno()])
            sent = 1
        except PermissionError:
            # Who stands outside can send one all the same: what counts is whether such a message can be taken.
            other.sendall(b"x")
            sent = 0
        descriptors = socket.recv_fds(one, 1, 1)[1]
        for descriptor in descriptors:
            os.close(descriptor)
    if len(descriptors) != sent:
        raise RuntimeError("the descriptor was lost")
    return DONE


def _open_socket(family: int, kind: int, protocol: int = 0) -> bytes:
    socket.socket(family, kind, protocol).close()
    return DONE


@_act
def open_netlink(aims: Aims) -> bytes:
    return _open_socket(16, socket.SOCK_RAW)


@_act
def open_raw(aims: Aims) -> bytes:
    return _open_socket(socket.AF_INET, socket.SOCK_RAW, 1)


@_act
def open_packet(aims: Aims) -> bytes:
    return _open_socket(17, socket.SOCK_DGRAM)


@_act
def open_vsock(aims: Aims) -> bytes:
    return _open_socket(40, socket.SOCK_STREAM)


@_act
def open_kernel_cipher(aims: Aims) -> bytes:
    return _open_socket(38, socket.SOCK_SEQPACKET)


# --- How an act is asked for, and answers ---------------------------------------------------------------------------

Outcome = tuple[str, bytes, int]


def perform(name: str, aims: Aims) -> Outcome:
    """Make an attack: ``("done", what it got, 0)``, ``("stopped", why, errno)`` or ``("broken", why, 0)``."""
    try:
        return "done", ACTS[name](aims), 0
    except OSError as error:
        return "stopped", f"{type(error).__name__}: {error.strerror or error}".encode(), error.errno or 0
    except Exception as error:
        return "broken", f"{type(error).__name__}: {error}".encode(), 0


def _main(asked: str, answered: str) -> None:
    """As a script, between two pipes: a line of JSON with ``name`` and ``aims`` in, a line with the outcome out."""
    with open(asked) as questions, open(answered, "w") as answers:
        for line in questions:
            question = json.loads(line)
            word, evidence, number = perform(question["name"], question["aims"])
            answer = {"word": word, "evidence": base64.b64encode(evidence).decode(), "errno": number}
            print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    _main(*sys.argv[1:])
