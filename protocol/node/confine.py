"""Confinement of a process by the operating system, applied before its first thread and tested at once.

Landlock limits a process to named paths, seccomp to the system calls that it needs.
"""

import os
import signal
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from protocol.confinement import landlock, privileges, seccomp
from protocol.confinement.allowed_calls import COURIER as COURIER_CALLS
from protocol.confinement.allowed_calls import node_policy
from protocol.confinement.guards import (
    NODE,
    Confinement,
    Profile,
    bystander,
    connected_pair,
    not_confined,
    try_guards,
    try_privileges,
)
from protocol.confinement.landlock import Access
from protocol.confinement.warden import Warden
from protocol.errors import InputError, RunFailedError, StorageFailedError
from protocol.files import state_files
from protocol.node.configuration import NodeTable
from protocol.node.reachable_files import check_apart, computes_on_gpu, node_rules


def apply(
    node: NodeTable,
    packages: Iterable[str],
    *,
    unconfined: bool,
    warden: Warden | None = None,
    notes: Iterable[str] = (),
    configuration: Path | None = None,
) -> Confinement:
    """Confine a node's process; called before its second thread.

    Args:
        configuration: the file that it is started with.
        packages: this project's packages that the node runs.
        unconfined: the operator accepts that nothing is enforced; then nothing is.
        warden: records refused system calls; None: they are refused without a record.
        notes: notes on earlier steps, for :class:`Confinement`.

    Raises:
        InputError: its folders lie inside each other.
        RunFailedError: this kernel cannot confine it and the operator did not accept that.
    """
    # Check once more: the start may have waited for a passphrase, and links may lead elsewhere by now.
    check_apart(node, configuration)
    if unconfined:
        return not_confined()
    cuda = computes_on_gpu(node)
    found = confine(node_rules(node, packages), node.state, cuda=cuda, warden=warden)
    exceptions = ("exception: system calls that a GPU's driver needs, unmeasured",) if cuda else ()
    return replace(found, notes=(*notes, *exceptions))


def confine(
    rules: Mapping[Path, Access],
    own: Path,
    profile: Profile = NODE,
    *,
    apart: Iterable[Path] = (),
    cuda: bool = False,
    warden: Warden | None = None,
) -> Confinement:
    """Confine this process; its children and the program that it becomes inherit the confinement. A node must have only
    one thread, because others would stay unconfined. Other threads of a courier end when it becomes its program.

    Args:
        rules: the paths that it may reach, and how.
        own: the one folder that it may write to; its temporary and cache folders are made in it.
        apart: folders that it must not reach; this is tested if they exist.
        cuda: also allow the system calls that a GPU needs.
        warden: records the refused system calls of a node.

    Raises:
        RunFailedError: the kernel cannot confine it, a guard does not hold, or a node has a second thread; the process
            must then end.
    """
    check_offered(profile)
    found = restrict(rules, own, profile, apart=apart, cuda=cuda, warden=warden)
    if not found.enforced:
        raise RunFailedError(_too_old(found, profile))
    return found


def restrict(
    rules: Mapping[Path, Access],
    own: Path,
    profile: Profile = NODE,
    *,
    apart: Iterable[Path] = (),
    cuda: bool = False,
    warden: Warden | None = None,
) -> Confinement:
    """Confine as :func:`confine` does, as far as this kernel allows; the caller checks the result.

    Raises:
        RunFailedError: the kernel refused a protection that it offers, or a node has a second thread.
    """
    # Not by psutil: no foreign code is loaded before the process is confined.
    if profile is NODE and len(os.listdir("/proc/self/task")) != 1:
        raise RunFailedError("this process has a second thread already, which would stay unconfined; start it again")
    if profile is NODE:
        # A confined node may wait for no child, and has none but those made before: the kernel buries them.
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    privileges.drop_capabilities()
    apart = [folder for folder in apart if os.path.lexists(folder)]
    with bystander() as other, connected_pair() as pair:
        landlock.set_no_new_privileges()
        version, filters = landlock.abi(), seccomp.offered()
        if version:
            landlock.restrict(rules, tcp=profile.network)
        # Only a confined process touches the files that the last one left in its state.
        _own_temporary_folders(own)
        # Read this now: a confined process cannot.
        privileged = try_privileges()
        if filters and profile is not NODE:
            seccomp.restrict(COURIER_CALLS)
        elif filters and warden is not None:
            seccomp.restrict_noting(node_policy(os.getpid(), cuda=cuda), warden.channel)
        elif filters:
            seccomp.restrict(node_policy(os.getpid(), cuda=cuda))
        guards = try_guards(other, pair, profile, apart, privileged)
    if warden is not None:
        warden.begin()
    return Confinement(version, filters, guards)


def offered() -> bool:
    """Whether this kernel has all that ``confine`` needs. Only ``confine`` itself shows that it works."""
    return landlock.abi() >= landlock.ABI_SCOPES and seccomp.offered()


def check_offered(profile: Profile = NODE) -> None:
    """Check whether this kernel has what ``confine`` needs.

    Raises:
        RunFailedError: it has not.
    """
    if not offered():
        raise RunFailedError(_too_old(not_confined(profile), profile))


def _too_old(found: Confinement, profile: Profile) -> str:
    missing = ", ".join(guard.name for guard in found.guards if not guard.enforced)
    return (
        f"this kernel does not confine a {profile.name}: not enforced are {missing} (Landlock ABI {found.landlock_abi})"
        f"; it needs Linux 6.12 with Landlock and seccomp; to start all the same, {profile.accept}"
    )


def _own_temporary_folders(own: Path) -> None:
    """Temporary and cache folders of this process's own, empty and 0700, where libraries look for theirs."""
    folders = {"TMPDIR": own / "temporary", "XDG_CACHE_HOME": own / "cache"}
    for folder in folders.values():
        try:
            state_files.remove(folder)
            folder.mkdir(mode=0o700)
        except StorageFailedError as error:
            # An earlier process may have left folders that are thousands of levels deep.
            raise InputError(str(error)) from None
        except OSError as error:
            raise InputError(f"{folder} cannot be made: {error.strerror}; check who owns {own}") from None
    os.environ.update({name: str(folder) for name, folder in folders.items()})
    for name in ("CUDA_CACHE_PATH", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"):
        os.environ[name] = str(folders["XDG_CACHE_HOME"] / name.lower())
    # tempfile reads it once and keeps it.
    tempfile.tempdir = None
