"""Folders of one run: private, locked as long as the run goes on, and removed when no process holds them."""

import contextlib
import fcntl
import os
import shutil
import tempfile
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path

from protocol.errors import InputError
from protocol.files.atomic import make_folder
from protocol.files.private_folders import private_folder
from protocol.transport.simulation_paths import short_temporary_folder

#: The longest path of a socket that Ray binds, below its temporary folder.
_LONGEST_OF_RAY = "/ray/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"


@dataclass(frozen=True)
class OwnFolder:
    """A folder (0700) that belongs to the run that holds it."""

    path: Path
    _lock: TextIOWrapper

    def remove(self) -> None:
        """Remove the folder with all that is in it. May be called again."""
        shutil.rmtree(self.path, ignore_errors=True)
        self._lock.close()


def make_own_folder(parent: Path, prefix: str) -> OwnFolder:
    """Make a new folder in ``parent``, and remove folders with the same prefix that a killed command left.

    Raises:
        OSError: ``parent`` cannot be written.
    """
    make_folder(parent)
    with (parent / "lock").open("w") as gate:
        # One at a time, so that no folder without a lock yet is taken for an abandoned one.
        fcntl.flock(gate, fcntl.LOCK_EX)
        for folder in parent.glob(f"{prefix}*"):
            with contextlib.suppress(OSError), (folder / "lock").open("w") as abandoned:
                fcntl.flock(abandoned, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
        own = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        lock = (own / "lock").open("w")
        fcntl.flock(lock, fcntl.LOCK_EX)
    return OwnFolder(own, lock)


def make_temporary_folder() -> OwnFolder:
    """Make a folder for the temporary files of a run. Its path is short enough for Ray's sockets.

    Raises:
        InputError: the folder cannot be made, or another user has made it.
    """
    own = f"learngene-{os.getuid()}"
    parent = private_folder(short_temporary_folder(f"{own}/t-12345678{_LONGEST_OF_RAY}") / own)
    try:
        return make_own_folder(parent, "t-")
    except OSError as error:
        raise InputError(f"cannot write to the temporary folder {parent}: {error.strerror or error}") from error
