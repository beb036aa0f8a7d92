"""Work in a thread that reaches only one folder: for files that another process may exchange while they are opened.

Landlock holds only for the thread that asks for it.
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
    """Call a function, and return its result or raise its error; it cannot read, change or remove a file outside the
    folder. In a confined process, and on a kernel without Landlock, no thread is used.
    """
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
    """Whether this process has a Landlock domain: then it may not open the root folder, which every user may. There is
    no other test, because a confined node's filter refuses further domains and logs the attempt.
    """
    try:
        os.close(os.open("/", os.O_RDONLY | os.O_DIRECTORY))
    except PermissionError:
        return True
    return False
