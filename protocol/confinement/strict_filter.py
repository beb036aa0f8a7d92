"""A seccomp filter for a process that computes and does nothing else: it allows what is named, and refuses the rest.

Of memory it allows none that can be executed. Interface: ``userspace-api/seccomp_filter`` of the Linux kernel.
"""

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Iterable
from pathlib import Path

from protocol.errors import RunFailedError

#: Calls that can be allowed: name: (x86-64, arm64).
NUMBERS = {
    "read": (0, 63),
    "write": (1, 64),
    "mmap": (9, 222),
    "mprotect": (10, 226),
    "munmap": (11, 215),
    "brk": (12, 214),
    "rt_sigreturn": (15, 139),
    "mremap": (25, 216),
    "madvise": (28, 233),
    "exit": (60, 93),
    "futex": (202, 98),
    "clock_gettime": (228, 113),
    "exit_group": (231, 94),
}
#: Calls whose third argument says what memory is for.
_OF_MEMORY = ("mmap", "mprotect")
_PROT_EXEC = 4

_SET_SECCOMP, _MODE_FILTER = 22, 2
_ALLOW, _REFUSE, _KILL_PROCESS = 0x7FFF0000, 0x00050000 | errno.EPERM, 0x80000000
# Instructions of the kernel's classic BPF machine; offsets in struct seccomp_data.
_LOAD, _JUMP_EQUAL, _JUMP_SET, _RETURN = 0x20, 0x15, 0x45, 0x06
_NUMBER, _ARCHITECTURE, _THIRD_ARGUMENT = 0, 4, 16 + 2 * 8
#: machine: (audit architecture, column of ``NUMBERS``). A call of x86-64's second kind, x32, has another number.
_MACHINES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}


def offered() -> bool:
    """Whether the kernel filters system calls on request, on a machine that this module knows."""
    return platform.machine() in _MACHINES and Path("/proc/sys/kernel/seccomp/actions_avail").exists()


def install(allowed: Iterable[str]) -> None:
    """From now on, calls of this thread that are not ``allowed`` fail with EPERM. ``no_new_privs`` must hold already.

    Args:
        allowed: names out of ``NUMBERS``.

    Raises:
        RunFailedError: the kernel refused.
    """
    program = filter_program(platform.machine(), allowed)
    instructions = ctypes.create_string_buffer(program, len(program))
    head = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(instructions))
    if ctypes.CDLL(None, use_errno=True).prctl(_SET_SECCOMP, _MODE_FILTER, ctypes.c_char_p(head), 0, 0) != 0:
        raise RunFailedError(f"seccomp did not confine this process: {os.strerror(ctypes.get_errno())}")


def filter_program(machine: str, allowed: Iterable[str]) -> bytes:
    """The filter: instructions of eight bytes for the kernel's BPF machine, default EPERM.

    Args:
        machine: ``x86_64`` or ``aarch64``.
    """
    architecture, column = _MACHINES[machine]
    program = [
        _instruction(_LOAD, _ARCHITECTURE),
        _instruction(_JUMP_EQUAL, architecture, 1, 0),
        _instruction(_RETURN, _KILL_PROCESS),
        _instruction(_LOAD, _NUMBER),
    ]
    for name in allowed:
        body = [_instruction(_RETURN, _ALLOW)]
        if name in _OF_MEMORY:
            body = [
                _instruction(_LOAD, _THIRD_ARGUMENT),
                _instruction(_JUMP_SET, _PROT_EXEC, 0, 1),
                _instruction(_RETURN, _REFUSE),
                *body,
            ]
        program += [_instruction(_JUMP_EQUAL, NUMBERS[name][column], 0, len(body)), *body]
    return b"".join([*program, _instruction(_RETURN, _REFUSE)])


def _instruction(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)
