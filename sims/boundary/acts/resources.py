"""Taking more than its share: disk, descriptors, limits."""

import os
import resource

from .act import DONE, Aims, act, step
from .expectation import Open, privileges
from .seen import GRANTED

_MEGABYTE = 1 << 20
_OWN_DISK = Open(
    "what lies in a node's state is its own, and may be all that the disk has; give the state a quota or a file system "
    "of its own"
)


@act("fill the disk", "writes on and on into its own state", GRANTED, _OWN_DISK, _OWN_DISK)
def fill_disk(aims: Aims) -> bytes:
    """Writes some megabytes; no quota limits them."""
    path = f"{aims['own']}/filling"
    try:
        with step("write"), open(path, "wb") as file:
            for _ in range(8):
                file.write(bytes(_MEGABYTE))
    finally:
        if os.path.exists(path):
            os.unlink(path)
    return DONE


def _lacks_limits(stage: object) -> str:
    """Why this act cannot be tried here; empty if a hard limit may be raised."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard + 1))
    except (OSError, ValueError):
        return "nobody here may raise a hard limit"
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return ""


@act(
    "raise its own limits",
    "setrlimit above what it was given",
    GRANTED,
    *[privileges("setrlimit")] * 2,
    lacks=_lacks_limits,
)
def raise_limits(aims: Aims) -> bytes:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        with step("setrlimit"):
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard + 1))
    except ValueError as error:
        # The module's error for EPERM, above the hard limit.
        with step("setrlimit"):
            raise PermissionError(1, str(error)) from None
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return DONE
