"""Paths of the sockets of a simulated run, which nodes and couriers both compute."""

import os
import re
import tempfile
from pathlib import Path

from protocol.errors import InputError
from protocol.transport.local_socket import MAX_PATH_BYTES


def simulation_folder(flower_run: int) -> Path:
    """The folder of a simulated run's sockets: both sides compute it, and the relay never sends it."""
    longest = f"learngene-{os.getuid()}/{flower_run}/{'9' * 6}.sock"
    for base in (tempfile.gettempdir(), "/tmp"):
        if len(os.fsencode(f"{base}/{longest}")) <= MAX_PATH_BYTES:
            return Path(base) / f"learngene-{os.getuid()}" / str(flower_run)
    raise InputError(f"the temporary folder {tempfile.gettempdir()} has too long a path for sockets; set TMPDIR=/tmp")


def simulation_paths(flower_run: int, partition: int) -> tuple[Path, Path]:
    """Socket and secret of one partition of a simulated run."""
    folder = simulation_folder(flower_run)
    return folder / f"{partition}.sock", folder / f"{partition}.secret"


def is_simulated(path: Path) -> bool:
    """Whether a socket lies where :func:`simulation_paths` puts those of a run, of any user."""
    return re.fullmatch(r".*/learngene-[0-9]+/[0-9]+/[0-9]+\.sock", os.fspath(path), re.DOTALL) is not None
