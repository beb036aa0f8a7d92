"""Signals to the other node, its limits, and how it is scheduled."""

import contextlib
import ctypes
import fcntl
import os
import resource
import struct

from .act import DONE, Aims, act, call, otherwise, step
from .expectation import scopes, system_calls, users
from .seen import GRANTED, STOPPED

_SIGSTOP, _F_SETSIG = 19, 10


@act("stop the other node by a signal", "kill", STOPPED, system_calls("kill"), scopes("kill"), users("kill", "EPERM"))
def stop_by_signal(aims: Aims) -> bytes:
    with step("kill"):
        os.kill(int(aims["pid"]), _SIGSTOP)
    return DONE


# A node cannot have a descriptor of a process at all: the filter refuses the call before it looks at that.
@act(
    "stop the other node through a descriptor",
    "pidfd_send_signal",
    STOPPED,
    system_calls("pidfd_send_signal"),
    scopes("pidfd_send_signal"),
)
def stop_by_descriptor(aims: Aims) -> bytes:
    pidfd = otherwise(-1, "pidfd_open", int(aims["pid"]), 0)
    try:
        call("pidfd_send_signal", pidfd, _SIGSTOP, None, 0)
    finally:
        if pidfd >= 0:
            os.close(pidfd)
    return DONE


@act("stop the other node's first thread", "tkill", STOPPED, system_calls("tkill"), scopes("tkill"))
def stop_thread(aims: Aims) -> bytes:
    call("tkill", int(aims["pid"]), _SIGSTOP)
    return DONE


@act("queue a signal for the other node", "rt_sigqueueinfo", STOPPED, system_calls("rt_sigqueueinfo"))
def queue_signal(aims: Aims) -> bytes:
    call("rt_sigqueueinfo", int(aims["pid"]), _SIGSTOP, struct.pack("=iii", _SIGSTOP, 0, -1) + bytes(116))
    return DONE


@act(
    "let the kernel signal the other node",
    "F_SETOWN and F_SETSIG on a pipe of its own",
    STOPPED,
    *[system_calls("fcntl F_SETOWN")] * 2,
)
def stop_by_owner(aims: Aims) -> bytes:
    """As the owner of a pipe in which something arrives."""
    reading, writing = os.pipe()
    try:
        with step("fcntl F_SETOWN"):
            fcntl.fcntl(reading, fcntl.F_SETOWN, int(aims["pid"]))
        with step("fcntl F_SETSIG"):
            fcntl.fcntl(reading, _F_SETSIG, _SIGSTOP)
        with step("fcntl F_SETFL"):
            fcntl.fcntl(reading, fcntl.F_SETFL, fcntl.fcntl(reading, fcntl.F_GETFL) | os.O_ASYNC)
        with step("write"):
            os.write(writing, b"x")
    finally:
        os.close(reading)
        os.close(writing)
    return DONE


@act("have a timer send signals", "timer_create", GRANTED, system_calls("timer_create"))
def set_timer(aims: Aims) -> bytes:
    timer = ctypes.c_int()
    # SIGEV_SIGNAL with SIGURG, which does nothing; it is never started.
    call("timer_create", 1, struct.pack("=qii", 0, 23, 0) + bytes(48), ctypes.byref(timer))
    return DONE


_PRLIMIT = system_calls("prlimit")


@act("change the other node's limits", "prlimit", GRANTED, _PRLIMIT, _PRLIMIT, users("prlimit", "EPERM"))
def limit_other(aims: Aims) -> bytes:
    """The limits that it has, once more."""
    pid = int(aims["pid"])
    with step("prlimit"):
        limits = resource.prlimit(pid, resource.RLIMIT_CORE)
        resource.prlimit(pid, resource.RLIMIT_CORE, limits)
    return DONE


@act("choose the other node's processors", "sched_setaffinity", GRANTED, *[system_calls("sched_setaffinity")] * 2)
def pin_other(aims: Aims) -> bytes:
    processors = os.sched_getaffinity(0)
    with step("sched_setaffinity"):
        os.sched_setaffinity(int(aims["pid"]), processors)
    return DONE


@act(
    "choose how the other node is scheduled",
    "sched_setscheduler",
    GRANTED,
    *[system_calls("sched_setscheduler")] * 2,
)
def schedule_other(aims: Aims) -> bytes:
    with step("sched_setscheduler"):
        os.sched_setscheduler(int(aims["pid"]), os.SCHED_BATCH, os.sched_param(0))
    return DONE


_SETPRIORITY = system_calls("setpriority")


@act(
    "change the other node's priority",
    "setpriority",
    GRANTED,
    _SETPRIORITY,
    _SETPRIORITY,
    users("setpriority", "EPERM"),
)
def slow_other(aims: Aims) -> bytes:
    priority = 0
    with contextlib.suppress(OSError):
        priority = os.getpriority(os.PRIO_PROCESS, int(aims["pid"]))
    with step("setpriority"):
        os.setpriority(os.PRIO_PROCESS, int(aims["pid"]), priority)
    return DONE


@act("change the other node's priority at the disk", "ioprio_set", GRANTED, *[system_calls("ioprio_set")] * 2)
def slow_its_disk(aims: Aims) -> bytes:
    priority = otherwise(0, "ioprio_get", 1, int(aims["pid"]))
    call("ioprio_set", 1, int(aims["pid"]), priority)
    return DONE
