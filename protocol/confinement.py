"""What the operating system enforces on this process.

This version only looks: it reports what the kernel offers and enforces nothing, so a node starts only where its
operator accepted that.
"""

import ctypes
import platform
from dataclasses import dataclass
from pathlib import Path

from protocol.errors import RunFailedError

_SYS_LANDLOCK_CREATE_RULESET = 444
_LANDLOCK_CREATE_RULESET_VERSION = 1


@dataclass(frozen=True)
class Confinement:
    """What the kernel offers and what holds for this process.

    Attributes:
        landlock_abi: version of Landlock's interface; 0 where the kernel has none.
        seccomp: whether the kernel filters system calls on request.
        enforced: whether this process is confined.
    """

    landlock_abi: int
    seccomp: bool
    enforced: bool = False

    @property
    def line(self) -> str:
        """One line for logs and reports."""
        kernel = f"Landlock ABI {self.landlock_abi}" if self.landlock_abi else "no Landlock"
        filters = "seccomp" if self.seccomp else "no seccomp"
        return f"{'confined' if self.enforced else 'unconfined'} (this kernel offers {kernel}, {filters})"


def probe() -> Confinement:
    """Ask the kernel what it offers; changes nothing."""
    abi = 0
    if platform.system() == "Linux":
        libc = ctypes.CDLL(None, use_errno=True)
        abi = max(
            0,
            int(libc.syscall(_SYS_LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), _LANDLOCK_CREATE_RULESET_VERSION)),
        )
    return Confinement(landlock_abi=abi, seccomp=Path("/proc/sys/kernel/seccomp/actions_avail").exists())


def apply(*, unconfined: bool, configuration: Path) -> Confinement:
    """Confine this process, which must still have one thread only; children inherit it.

    Args:
        unconfined: the operator accepts to run without.
        configuration: the node's file, to name it in the message.

    Raises:
        RunFailedError: this process cannot be confined and the operator did not accept that.
    """
    found = probe()
    if not unconfined:
        raise RunFailedError(
            "this version does not confine a node process to its own folders; to start all the same, set "
            f"unconfined = true under [node] in {configuration} or pass --unconfined"
        )
    return found
