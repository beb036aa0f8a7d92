"""Tests of what this machine's operating system enforces for nodes and couriers; nothing is changed."""

import ctypes
import os
import platform
import tempfile
from collections.abc import Iterator
from pathlib import Path

from protocol.commands.doctor_findings import Finding, Verdict, failure
from protocol.commands.doctor_trial import Trial, try_confined
from protocol.confinement import landlock, namespaces, seccomp
from protocol.confinement.guards import COURIER, GUARDS, NODE
from protocol.encoding.calendar import moment, unix_seconds
from protocol.errors import RunFailedError
from protocol.node import confine
from protocol.node.reachable_files import courier_rules, gpu_rules, program_rules

_KERNEL_ADVICE = "use Linux 6.12 or newer with lsm=landlock, or accept it with unconfined = true"
_CLOCK_NOT_SET = 5  # TIME_ERROR of adjtimex(2)


def examine_machine(*, gpu: bool) -> list[Finding]:
    """Examine what this machine offers to nodes and couriers that this user starts. ``gpu``: also compute on it."""
    found = [kernel(stops=True)]
    with tempfile.TemporaryDirectory(prefix="learngene-doctor-") as name:
        folder = Path(name)
        rules = program_rules(["protocol"]) | gpu_rules() | {folder: landlock.OWN}
        child = try_confined(rules, folder, NODE, gpu=gpu)
        found += guard_findings(child, "node: ", stops=True)
        found += guard_findings(try_confined(courier_rules(folder, ()), folder, COURIER), "courier: ", stops=False)
    root = os.geteuid() == 0
    found.append(Finding("user", "ok", f"{os.geteuid()}" + (", root: [node] user lets a node go on as another" * root)))
    return [*found, simulation(), *gpu_findings(child, "auto", gpu), clock()]


def simulation() -> Finding:
    """Whether ``learngene run`` gets a network of its own here, which no other user of this machine reaches."""
    refused = namespaces.offered()
    if not refused:
        return Finding("simulation", "ok", "a run works in a network of its own")
    advice = "other users of this machine are refused, but can connect; allow user namespaces to keep them out"
    return Finding("simulation", "not enforced", f"a run works on the machine's loopback: {refused}", advice)


def clock() -> Finding:
    """Whether the kernel's clock is synchronised; messages allow a difference of 300 s."""
    # A struct timex that only reads.
    state = ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(512))
    said = moment(unix_seconds())
    if state in (-1, _CLOCK_NOT_SET):
        advice = "have it set by a time service (timedatectl set-ntp true); messages more than 300 s off are refused"
        return Finding("clock", "not enforced", f"{said}, and nothing is known to keep it right", advice)
    return Finding("clock", "ok", said)


def kernel(*, stops: bool) -> Finding:
    version = landlock.abi()
    filters = "seccomp" if seccomp.offered() else "no seccomp filter for this machine"
    found = f"Linux {platform.release()}, {platform.machine()}, Landlock ABI {version or 'none'}, {filters}"
    if confine.offered():
        return Finding("kernel", "ok", found)
    return Finding("kernel", "not enforced", found, _KERNEL_ADVICE, stops)


def guard_findings(child: Trial, prefix: str, *, stops: bool) -> list[Finding]:
    if child.error:
        # Nothing was tried, so nothing is known about any guard.
        return [failure(f"{prefix}confinement", RunFailedError(child.error))]
    found = [
        Finding(f"{prefix}{name}", "ok", GUARDS[name])
        if enforced
        else Finding(f"{prefix}{name}", "not enforced", f"nothing sees to it: {GUARDS[name]}", _KERNEL_ADVICE, stops)
        for name, enforced in child.guards.items()
    ]
    if child.trained:
        refused = f"; refused meanwhile: {', '.join(child.refused)}" if child.refused else ""
        found.append(Finding(f"{prefix}training", "ok", f"a step of training went well{refused}"))
    found += [
        Finding(
            "folders", "wrong", f"the confined node cannot read {path}: {reason}", "give it to the node's user", True
        )
        for path, reason in child.unread.items()
    ]
    return found


def gpu_findings(child: Trial, device: str, computed: bool) -> Iterator[Finding]:
    if device == "cpu":
        yield Finding("GPU", "ok", "not used: device is cpu")
        return
    closed = [f"{path}: {reason}" for path, reason in child.devices.items() if reason]
    needed = device.startswith("cuda")
    if closed:
        advice = "put the node's user into the group of these files (ls -l), or set device to cpu"
        yield Finding("GPU", "wrong", f"the confined node cannot open {', '.join(closed)}", advice, needed)
    elif not child.devices:
        verdict: Verdict = "wrong" if needed else "ok"
        yield Finding("GPU", verdict, "this machine has none", "set device to cpu or auto" if needed else "", needed)
    else:
        how = (
            f"{child.computed} computes under confinement" if computed and child.computed else "open under confinement"
        )
        yield Finding("GPU", "ok", f"{', '.join(child.devices)}: {how}")
