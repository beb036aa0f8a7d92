"""Paths of the sockets of a simulated run, which nodes and couriers both compute."""

import contextlib
import os
import re
import tempfile
from pathlib import Path

from protocol.confinement.guards import OPEN_TO_ALL
from protocol.errors import InputError
from protocol.transport.local_socket import MAX_PATH_BYTES


def short_temporary_folder(below: str) -> Path:
    """The user's folder for temporary files (``TMPDIR``), or another one of the machine's if its path is too long for a
    socket below it.

    Args:
        below: the longest path of a socket below the folder.

    Raises:
        InputError: there is no folder that is short enough and can be written.
    """
    bases = [base for base in OPEN_TO_ALL if os.access(base, os.W_OK | os.X_OK)]
    with contextlib.suppress(FileNotFoundError):  # what tempfile says if no folder can be written
        bases.insert(0, tempfile.gettempdir())
    for base in bases:
        if len(os.fsencode(f"{base}/{below}")) <= MAX_PATH_BYTES:
            return Path(base)
    raise InputError(
        f"no folder for temporary files has a path short enough for sockets ({', '.join(OPEN_TO_ALL)} cannot be "
        "written); set TMPDIR to one"
    )


def simulation_folder(flower_run: int) -> Path:
    """The folder of a simulated run's sockets: both sides compute it, and the relay never sends it."""
    own = f"learngene-{os.getuid()}/{flower_run}"
    return short_temporary_folder(f"{own}/{'9' * 6}.sock") / own


def simulation_paths(flower_run: int, partition: int) -> tuple[Path, Path]:
    """Socket and secret of one partition of a simulated run."""
    folder = simulation_folder(flower_run)
    return folder / f"{partition}.sock", folder / f"{partition}.secret"


def is_simulated(path: Path) -> bool:
    """Whether a socket lies where :func:`simulation_paths` puts those of a run, of any user."""
    return re.fullmatch(r".*/learngene-[0-9]+/[0-9]+/[0-9]+\.sock", os.fspath(path), re.DOTALL) is not None
