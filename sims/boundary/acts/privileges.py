"""Privileges and the kernel: users, groups, capabilities, and calls that change the machine."""

import contextlib
import ctypes
import os
import socket
import stat
import struct
import sys
import time
from typing import TYPE_CHECKING

from .act import DONE, Aims, Seen, StoppedError, act, call, checked, in_child, libc, step
from .expectation import NO_EFFECT, files, privileges, system_calls
from .programs import run
from .seen import GRANTED, gets, root_only, setting

if TYPE_CHECKING:
    from sims.boundary.stage import Stage

_TELL_CAPABILITIES = (
    "import ctypes, struct; d = ctypes.create_string_buffer(24);"
    "ctypes.CDLL(None).capget(struct.pack('=Ii', 0x20080522, 0), d); print('capabilities', any(d.raw))"
)
_SU = "/usr/bin/su"


@act(
    "get root's capabilities back",
    "by starting a program as user 0",
    gets(lambda stage: b"capabilities True"),
    system_calls("fork"),
    privileges("execve", NO_EFFECT),
    lacks=root_only,
)
def regain_capabilities(aims: Aims) -> bytes:
    """Root's capabilities come back with the next program, unless they are forbidden."""
    found = run(sys.executable, "-c", _TELL_CAPABILITIES)
    if found == b"capabilities False\n":
        raise StoppedError("execve", NO_EFFECT)
    return found


@act(
    "use a capability",
    "capset: takes up what only root has",
    GRANTED,
    system_calls("capset"),
    privileges("capset"),
    lacks=root_only,
)
def take_capability(aims: Aims) -> bytes:
    """Take CAP_KILL, which root has everywhere."""

    def work() -> bytes:
        one = struct.pack("=6I", *[1 << 5] * 2, 0, 0, 0, 0)
        checked(libc.capset(struct.pack("=Ii", 0x20080522, 0), one), "capset")
        return DONE

    return in_child(work)


@act(
    "become another user",
    "starts a set-user-id program that somebody left it",
    gets(lambda stage: b"65534"),
    system_calls("fork"),
    files("execve"),
    lacks=root_only,
)
def run_set_user_id(aims: Aims) -> bytes:
    return run(aims["set_user_id"], "-u")


def _lacks_su(stage: "Stage") -> str:
    if os.geteuid() == 0:
        return "root gains nothing by a set-user-id program of root's"
    return "" if os.access(_SU, os.X_OK) else "this machine has no su"


@act(
    "become another user by a program of the system's",
    "starts su, which is set-user-id root: the loader shows whether that counted",
    Seen(evidence=lambda stage, evidence: evidence == b"privileged"),
    system_calls("fork"),
    privileges("execve", NO_EFFECT),
    lacks=_lacks_su,
)
def run_set_user_id_of_system(aims: Aims) -> bytes:
    """A loader that gains privileges shows nothing of what the kernel told it (ld.so(8), LD_SHOW_AUXV)."""
    said = run(_SU, "--version", environment={"LD_SHOW_AUXV": "1"})
    if b"AT_EUID" not in said:
        return b"privileged"
    raise StoppedError("execve", NO_EFFECT)


@act(
    "go on as another user",
    "setresuid",
    GRANTED,
    system_calls("setresuid"),
    privileges("setresuid"),
    lacks=root_only,
)
def change_user(aims: Aims) -> bytes:
    def work() -> bytes:
        with step("setresuid"):
            os.setresuid(int(aims["group"]), int(aims["group"]), int(aims["group"]))
        return DONE

    return in_child(work)


@act("join another group", "setgroups", GRANTED, system_calls("setgroups"), privileges("setgroups"), lacks=root_only)
def join_group(aims: Aims) -> bytes:
    def work() -> bytes:
        with step("setgroups"):
            os.setgroups([0, int(aims["group"])])
        return DONE

    return in_child(work)


@act("put a program into the kernel", "bpf", GRANTED, *[system_calls("bpf")] * 2, lacks=root_only)
def load_kernel_program(aims: Aims) -> bytes:
    attributes = struct.pack("=IIIII", 2, 4, 8, 1, 0) + bytes(108)
    os.close(call("bpf", 0, attributes, len(attributes)))
    return DONE


@act("count another's events", "perf_event_open", GRANTED, *[system_calls("perf_event_open")] * 2, lacks=root_only)
def count_events(aims: Aims) -> bytes:
    # Software counter of the processor's time, of the other process.
    attributes = struct.pack("=IIQ", 1, 112, 0) + bytes(96)
    os.close(call("perf_event_open", attributes, int(aims["pid"]), -1, -1, 0))
    return DONE


@act("handle page faults", "userfaultfd", GRANTED, *[system_calls("userfaultfd")] * 2, lacks=root_only)
def handle_faults(aims: Aims) -> bytes:
    os.close(call("userfaultfd", os.O_CLOEXEC))
    return DONE


@act(
    "call past the filter",
    "io_uring",
    GRANTED,
    *[system_calls("io_uring_setup")] * 2,
    lacks=setting("kernel.io_uring_disabled", ("0",)),
)
def ring_of_calls(aims: Aims) -> bytes:
    os.close(call("io_uring_setup", 1, ctypes.create_string_buffer(120)))
    return DONE


@act("leave a key in the kernel", "add_key in the user's keyring", GRANTED, *[system_calls("add_key")] * 2)
def leave_key(aims: Aims) -> bytes:
    """Leave a key in the user's keyring, where every process of that user finds it."""
    text = aims["token"].encode()
    key = call("add_key", b"user", b"boundary", text, len(text), -4)
    call("keyctl", 21, key)
    return DONE


@act("look through the kernel's keys", "keyctl: the user's keyring", GRANTED, *[system_calls("keyctl")] * 2)
def list_keys(aims: Aims) -> bytes:
    call("keyctl", 11, -4, ctypes.create_string_buffer(4096), 4096)
    return DONE


@act(
    "read the kernel's log",
    "syslog",
    Seen(evidence=lambda stage, evidence: bool(evidence)),
    *[system_calls("syslog")] * 2,
    lacks=root_only,
)
def read_kernel_log(aims: Aims) -> bytes:
    buffer = ctypes.create_string_buffer(1 << 16)
    return buffer.raw[: call("syslog", 3, buffer, len(buffer))]


@act("switch off what makes memory hard to guess", "personality", GRANTED, system_calls("personality"))
def change_personality(aims: Aims) -> bytes:
    def work() -> bytes:
        call("personality", 0x0040000)
        return DONE

    return in_child(work)


@act(
    "choose who gets a crashed process's memory",
    "/proc/sys/kernel/core_pattern",
    GRANTED,
    *[files("open")] * 2,
    lacks=lambda stage: "" if os.access("/proc/sys/kernel/core_pattern", os.W_OK) else "nobody can set it here",
)
def choose_crash_program(aims: Aims) -> bytes:
    """It is opened, and left as it is."""
    with step("open"):
        os.close(os.open("/proc/sys/kernel/core_pattern", os.O_WRONLY))
    return DONE


@act(
    "end the process that notes what is refused",
    "closes every way there, what it prints among them, and makes a call that is refused",
    GRANTED,
)
def end_warden(aims: Aims) -> bytes:
    """Made in a node that is not used afterwards (sims.boundary.start_attacks): later refusals would not be logged."""
    for number in range(3, 64):
        with contextlib.suppress(OSError):
            # One of a pair has no name; the node's door, and connections through it, have the door's name.
            if stat.S_ISSOCK(os.fstat(number).st_mode):
                with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, os.dup(number)) as found:
                    named = bool(found.getsockname())
                if not named:
                    os.close(number)
    with open(os.devnull, "wb") as nothing:
        for number in (1, 2):
            os.dup2(nothing.fileno(), number)
    time.sleep(0.3)
    os.close(call("memfd_create", b"boundary", 0))
    return DONE
