"""Work in a thread that reaches one folder only: for files that another process may exchange while they are opened.

Landlock holds for the thread that asks for it, and for nothing else of the process.
"""

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from protocol.confinement import landlock
from protocol.confinement.landlock import OWN, Access

T = TypeVar("T")


def within(folder: Path, work: Callable[[], T]) -> T:
    """Do it, and return what it returns or raise what it raises; no file outside the folder is read, changed or removed
    meanwhile. Done without a thread in a process that is confined already, and where the kernel has no Landlock."""
    if _confined() or not landlock.abi():
        return work()
    done: list[T] = []
    failed: list[BaseException] = []

    def alone() -> None:
        try:
            landlock.restrict({folder: OWN, Path("/dev/urandom"): Access.READ_FILE}, tcp=False)
            done.append(work())
        except BaseException as error:  # raised again below
            failed.append(error)

    thread = threading.Thread(target=alone, name="one folder")
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return done[0]


def _confined() -> bool:
    """A process that may not open the root folder, which every user may, has a Landlock domain. A confined node is not
    asked in another way, as its filter refuses further domains and notes that."""
    try:
        os.close(os.open("/", os.O_RDONLY | os.O_DIRECTORY))
    except PermissionError:
        return True
    return False
