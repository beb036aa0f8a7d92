"""Attacks on the other node's process: its memory, its entries in /proc, its open files."""

import ctypes
import os
import struct

from .act import DONE, Aims, Seen, act, call, in_child, otherwise, read, step
from .expectation import Open, files, scopes, system_calls, users
from .seen import GRANTED, MEMORY, PRIVATE, changes, gets, root_only, tracing

_OPEN, _OTHERS = files("open"), users("open")
_PROCESS_THERE = Open(
    "that a process with a number exists, and whose it is, shows in /proc by a name alone; mount /proc with hidepid=2 "
    "and run the parties as two users"
)


@act("read the other node's memory as a file", "/proc/PID/mem", MEMORY, _OPEN, _OPEN, _OTHERS, lacks=tracing)
def read_memory_file(aims: Aims) -> bytes:
    with step("open"):
        descriptor = os.open(f"/proc/{aims['pid']}/mem", os.O_RDONLY)
    with os.fdopen(descriptor, "rb", buffering=0) as memory:
        memory.seek(int(aims["environment"]))
        return memory.read(int(aims["environment_size"]))


_READV = system_calls("process_vm_readv")


@act(
    "read the other node's memory by a call",
    "process_vm_readv",
    MEMORY,
    _READV,
    _READV,
    users("process_vm_readv", "EPERM"),
    lacks=tracing,
)
def read_memory_by_call(aims: Aims) -> bytes:
    size = int(aims["environment_size"])
    here = ctypes.create_string_buffer(size)
    local = struct.pack("=QQ", ctypes.addressof(here), size)
    remote = struct.pack("=QQ", int(aims["environment"]), size)
    call("process_vm_readv", int(aims["pid"]), local, 1, remote, 1, 0)
    return here.raw


_WRITEV = system_calls("process_vm_writev")


@act(
    "write the other node's memory",
    "process_vm_writev",
    changes(lambda stage, token: token.encode() in stage.scratch()),
    _WRITEV,
    _WRITEV,
    lacks=tracing,
)
def write_memory(aims: Aims) -> bytes:
    """Into its environment, which it has read long ago."""
    text = aims["token"].encode()
    here = ctypes.create_string_buffer(text, len(text))
    local = struct.pack("=QQ", ctypes.addressof(here), len(text))
    remote = struct.pack("=QQ", int(aims["scratch"]), len(text))
    call("process_vm_writev", int(aims["pid"]), local, 1, remote, 1, 0)
    return DONE


_PTRACE = system_calls("ptrace")


@act(
    "trace the other node",
    "ptrace: attach, read words",
    MEMORY,
    _PTRACE,
    _PTRACE,
    users("ptrace", "EPERM"),
    lacks=tracing,
)
def trace(aims: Aims) -> bytes:
    def work() -> bytes:
        pid, address, word = int(aims["pid"]), int(aims["environment"]), ctypes.c_long()
        call("ptrace", 16, pid, 0, 0)
        os.waitpid(pid, 0)
        found = b""
        for offset in range(0, int(aims["environment_size"]), 8):
            call("ptrace", 2, pid, address + offset, ctypes.byref(word))
            found += struct.pack("=q", word.value)
        call("ptrace", 17, pid, 0, 0)
        return found

    return in_child(work)


@act("read the other node's environment", "/proc/PID/environ", MEMORY, _OPEN, _OPEN, _OTHERS)
def read_environment(aims: Aims) -> bytes:
    return read(f"/proc/{aims['pid']}/environ")


@act("read the map of the other node's memory", "/proc/PID/maps", gets(lambda stage: b"[stack]"), _OPEN, None, _OTHERS)
def read_maps(aims: Aims) -> bytes:
    return read(f"/proc/{aims['pid']}/maps")


@act("read the other node's command line", "/proc/PID/cmdline", gets(lambda stage: b"individual_node"), _OPEN)
def read_command_line(aims: Aims) -> bytes:
    return read(f"/proc/{aims['pid']}/cmdline")


@act("go through the other node's root folder", "/proc/PID/root", PRIVATE, _OPEN, _OPEN, _OTHERS)
def read_through_its_root(aims: Aims) -> bytes:
    return read(f"/proc/{aims['pid']}/root{aims['private']}")


@act(
    "find the other node's working folder",
    "/proc/PID/cwd",
    gets(lambda stage: os.fsencode(os.readlink(f"/proc/{stage.pid}/cwd"))),
    # No file is opened: what refuses is that the other process is out of its domain.
    scopes("readlink", "EACCES"),
    None,
    users("readlink"),
)
def read_its_working_folder(aims: Aims) -> bytes:
    with step("readlink"):
        return os.readlink(f"/proc/{aims['pid']}/cwd").encode()


@act("list the other node's open files", "/proc/PID/fd", gets(lambda stage: b"node.log"), _OPEN, _OPEN, _OTHERS)
def list_descriptors(aims: Aims) -> bytes:
    folder = f"/proc/{aims['pid']}/fd"
    with step("open"):
        names = os.listdir(folder)
    return "\n".join(os.readlink(f"{folder}/{name}") for name in names).encode()


_GETFD = system_calls("pidfd_getfd")


@act("take an open file of the other node", "pidfd_getfd", GRANTED, _GETFD, _GETFD, lacks=tracing)
def take_descriptor(aims: Aims) -> bytes:
    pidfd = otherwise(-1, "pidfd_open", int(aims["pid"]), 0)
    os.close(call("pidfd_getfd", pidfd, 2, 0))
    os.close(pidfd)
    return DONE


@act("hold on to the other node", "pidfd_open: its end can be waited for", GRANTED, system_calls("pidfd_open"))
def hold_process(aims: Aims) -> bytes:
    os.close(call("pidfd_open", int(aims["pid"]), 0))
    return DONE


@act(
    "compare itself with the other node",
    "kcmp",
    Seen(evidence=lambda stage, evidence: True),
    *[system_calls("kcmp")] * 2,
    lacks=tracing,
)
def compare_processes(aims: Aims) -> bytes:
    call("kcmp", os.getpid(), int(aims["pid"]), 1, 0, 0)
    return DONE


@act("ask for the other node's pages", "move_pages", GRANTED, *[system_calls("move_pages")] * 2)
def move_memory(aims: Aims) -> bytes:
    """Where the other's pages lie: which of them it has touched."""
    page = int(aims["environment"]) & ~4095
    status = ctypes.c_int(-1)
    call("move_pages", int(aims["pid"]), 1, struct.pack("=Q", page), None, ctypes.byref(status), 0)
    return DONE


@act(
    "push the other node's memory out",
    "process_madvise with MADV_COLD",
    GRANTED,
    *[system_calls("process_madvise")] * 2,
    lacks=root_only,
)
def push_memory_out(aims: Aims) -> bytes:
    pidfd = otherwise(-1, "pidfd_open", int(aims["pid"]), 0)
    place = struct.pack("=QQ", int(aims["environment"]) & ~4095, 4096)
    call("process_madvise", pidfd, place, 1, 20, 0)
    os.close(pidfd)
    return DONE


@act(
    "ask where the other node keeps its locks",
    "get_robust_list, an address in its memory",
    GRANTED,
    system_calls("get_robust_list"),
    lacks=tracing,
)
def ask_locks(aims: Aims) -> bytes:
    head, size = ctypes.c_void_p(), ctypes.c_size_t()
    call("get_robust_list", int(aims["pid"]), ctypes.byref(head), ctypes.byref(size))
    return DONE


@act("list all processes", "the folder /proc", gets(lambda stage: str(stage.pid).encode()), _OPEN, _OPEN)
def list_processes(aims: Aims) -> bytes:
    with step("open"):
        return "\n".join(os.listdir("/proc")).encode()


@act(
    "list all processes by their groups",
    "cgroup.procs of every folder beneath /sys/fs/cgroup",
    gets(lambda stage: str(stage.pid).encode()),
    _OPEN,
    _OPEN,
    lacks=lambda stage: "" if stage.grouped else "no folder of /sys/fs/cgroup tells the processes here",
)
def list_grouped_processes(aims: Aims) -> bytes:
    with step("open"):
        os.listdir("/sys/fs/cgroup")
    found = b""
    for folder, _, names in os.walk("/sys/fs/cgroup"):
        if "cgroup.procs" in names:
            found += read(f"{folder}/cgroup.procs")
    return found


@act(
    "ask whether a process is there",
    "stat of /proc/PID",
    gets(lambda stage: str(os.stat(f"/proc/{stage.pid}").st_uid).encode()),
    _PROCESS_THERE,
)
def ask_process(aims: Aims) -> bytes:
    with step("stat"):
        return str(os.stat(f"/proc/{aims['pid']}").st_uid).encode()


@act(
    "ask for a process's session",
    "getsid, which is no file's matter",
    gets(lambda stage: str(os.getsid(stage.pid)).encode()),
    system_calls("getsid"),
    _PROCESS_THERE,
)
def ask_session(aims: Aims) -> bytes:
    with step("getsid"):
        return str(os.getsid(int(aims["pid"]))).encode()


@act(
    "ask on which processors another runs",
    "sched_getaffinity",
    gets(lambda stage: ",".join(map(str, sorted(os.sched_getaffinity(stage.pid)))).encode()),
    system_calls("sched_getaffinity"),
)
def ask_processors(aims: Aims) -> bytes:
    with step("sched_getaffinity"):
        return ",".join(map(str, sorted(os.sched_getaffinity(int(aims["pid"]))))).encode()
