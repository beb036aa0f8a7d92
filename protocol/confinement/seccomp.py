"""seccomp: a process gives up, for itself and all its children, every system call but those that a policy allows.

Landlock does not stop a Unix socket's ``connect`` by path, UDP, leases, or other families of sockets; this filter does.
It is a small program for the kernel's classic BPF machine (Linux kernel documentation,
``userspace-api/seccomp_filter``).
"""

import ctypes
import errno
import os
import platform
import socket
import struct
from collections.abc import Iterable
from pathlib import Path

from protocol.confinement import system_calls
from protocol.confinement.allowed_calls import ALWAYS, Alternatives, CallPolicy, Check
from protocol.errors import RunFailedError

_SET_MODE_FILTER, _NEW_LISTENER = 1, 1 << 3
_ALLOW, _ERRNO, _NOTIFY = 0x7FFF0000, 0x00050000, 0x7FC00000

# Offsets in struct seccomp_data: number, architecture, arguments (the low half of each, little-endian).
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16
_LOAD, _AND, _JUMP_EQUAL, _JUMP_GREATER_EQUAL, _RETURN = 0x20, 0x54, 0x15, 0x35, 0x06
# Numbers with this bit belong to x86-64's x32, a second way to every call.
_X32_BIT = 0x40000000

REFUSE = _ERRNO | errno.EPERM


def offered() -> bool:
    """Whether the kernel filters system calls on request, on a machine whose calls are known here."""
    return platform.machine() in system_calls.ARCHITECTURES and Path("/proc/sys/kernel/seccomp/actions_avail").exists()


def restrict(policy: CallPolicy) -> None:
    """Install the filter of a policy: calls that it does not allow fail with EPERM. ``no_new_privs`` must hold already.

    Raises:
        RunFailedError: the kernel refused, or this machine's system calls are not known here.
    """
    _install(filter_program(policy, _machine()))


def restrict_noting(policy: CallPolicy, warden: socket.socket) -> None:
    """As :func:`restrict`, but calls that the policy does not allow go to the warden, which logs them and answers
    EPERM.

    Args:
        warden: socket through which the listener's descriptor is sent, in the last message that this process can send.
            Through a message any descriptor could travel (SCM_RIGHTS, unix(7)), and a filter of its own could keep
            calls from the warden or write into the machine's log: a second filter closes both ways.

    Raises:
        RunFailedError: as :func:`restrict`.
    """
    one_message: dict[str, Alternatives] = {
        "sendmsg": ((Check(0, (warden.fileno(),)),),),
        "seccomp": ((Check(0, (_SET_MODE_FILTER,)), Check(1, (0,))),),
    }
    listener = _install(filter_program(policy | CallPolicy(one_message), _machine(), otherwise=_NOTIFY), _NEW_LISTENER)
    try:
        socket.send_fds(warden, [b"\0"], [listener])
    except OSError as error:
        raise RunFailedError("the warden of this process has ended; start it again") from error
    finally:
        # Close it: while it is open anywhere, a refused call waits for an answer.
        os.close(listener)
    _install(_refusing(("sendmsg", "seccomp"), _machine()))


def filter_program(policy: CallPolicy, machine: str, *, otherwise: int = REFUSE) -> bytes:
    """The filter of a policy: instructions of eight bytes for the kernel's BPF machine.

    Args:
        machine: ``x86_64`` or ``aarch64``.
        otherwise: verdict on calls that the policy does not allow. Calls newer than ``system_calls`` are reported as
            missing: a C library then uses an older one.
    """
    program = _start(machine)
    for name, answer in policy.answers.items():
        program += _when(name, machine, [_instruction(_RETURN, _ERRNO | answer)])
    for name, alternatives in policy.allowed.items():
        program += _when(name, machine, _checking(alternatives, otherwise))
    newest = max(system_calls.NUMBERS[machine].values())
    program += [
        _instruction(_JUMP_GREATER_EQUAL, newest + 1, 0, 1),
        _instruction(_RETURN, _ERRNO | errno.ENOSYS),
        _instruction(_RETURN, otherwise),
    ]
    return b"".join(program)


def _refusing(names: Iterable[str], machine: str) -> bytes:
    """A filter that refuses some calls and allows the others."""
    body = [part for name in names for part in _when(name, machine, [_instruction(_RETURN, REFUSE)])]
    return b"".join([*_start(machine), *body, _instruction(_RETURN, _ALLOW)])


def _machine() -> str:
    machine = platform.machine()
    if machine not in system_calls.ARCHITECTURES:
        known = ", ".join(system_calls.ARCHITECTURES)
        raise RunFailedError(f"no system call filter is written for {machine}; there is one for: {known}")
    return machine


def _install(program: bytes, flags: int = 0) -> int:
    """Install a filter; the listener's descriptor if ``flags`` ask for one, else 0."""
    instructions = ctypes.create_string_buffer(program, len(program))
    head = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(instructions))
    number = system_calls.number("seccomp")
    libc = ctypes.CDLL(None, use_errno=True)
    result = int(libc.syscall(number, _SET_MODE_FILTER, ctypes.c_uint(flags), ctypes.c_char_p(head)))
    if result < 0:
        raise RunFailedError(f"seccomp did not confine this process: {os.strerror(ctypes.get_errno())}")
    return result


def _start(machine: str) -> list[bytes]:
    """Refuse the calls of another architecture, deny that x32 exists, and load the call's number."""
    program = [
        _instruction(_LOAD, _ARCHITECTURE),
        _instruction(_JUMP_EQUAL, system_calls.ARCHITECTURES[machine], 1, 0),
        # Ending the process would write its name, which it chooses, into the machine's log.
        _instruction(_RETURN, REFUSE),
        _instruction(_LOAD, _NUMBER),
    ]
    if machine == "x86_64":
        program += [
            _instruction(_JUMP_GREATER_EQUAL, _X32_BIT, 0, 1),
            _instruction(_RETURN, _ERRNO | errno.ENOSYS),
        ]
    return program


def _checking(alternatives: Alternatives, otherwise: int) -> list[bytes]:
    """Allow the call if all checks of one alternative hold. It overwrites the loaded value, so every branch returns."""
    if alternatives == ALWAYS:
        return [_instruction(_RETURN, _ALLOW)]
    program: list[bytes] = []
    for checks in alternatives:
        block = [_instruction(_RETURN, _ALLOW)]
        for check in reversed(checks):
            block = [*_check(check, failed=len(block)), *block]
        program += block
    return [*program, _instruction(_RETURN, otherwise)]


def _check(check: Check, *, failed: int) -> list[bytes]:
    """Continue if the check holds, else skip ``failed`` further instructions."""
    last = len(check.values) - 1
    return [
        _instruction(_LOAD, _ARGUMENTS + 8 * check.argument),
        _instruction(_AND, check.mask),
        *(
            _instruction(_JUMP_EQUAL, value, last - place, failed if place == last else 0)
            for place, value in enumerate(check.values)
        ),
    ]


def _when(name: str, machine: str, body: list[bytes]) -> list[bytes]:
    """``body`` for the system call of this name, if the machine has it; every branch of ``body`` must return."""
    number = system_calls.number(name, machine)
    return [] if number is None else [_instruction(_JUMP_EQUAL, number, 0, len(body)), *body]


def _instruction(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)
