"""The reader of all files that hold a secret: keys, key files, the socket's secret."""

import errno
import os
import stat
from collections.abc import Collection
from pathlib import Path

from protocol.errors import InputError
from protocol.visible_text import visible_name


def read_private(
    path: Path, what: str, *, max_bytes: int, owners: Collection[int] = (), group: int | None = None
) -> bytes:
    """The content of a secret file. A symbolic link is not followed, and a pipe does not block.

    The file must belong to this user, and no other user may read or write it. Two exceptions can be allowed, for a
    secret that two processes share:

    Args:
        path: the file.
        what: what it is, for messages: ``the private key``.
        max_bytes: the limit on its size.
        owners: numbers of further users who may own it.
        group: number of the group that may read it, and not write it.

    Raises:
        InputError: one line that begins with ``what``: the file cannot be read, is something else than a file, is
            open to others, belongs to another user, or is too large.
    """
    name = f"{what} {visible_name(path)}"
    try:
        # Without O_NONBLOCK, a pipe with that name would hold the program up.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise InputError(f"{name} is a symbolic link; give the file itself") from error
        raise InputError(f"cannot read {name}: {error.strerror}") from error
    try:
        # Check the open file, not the name, which may lead elsewhere by now.
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"{name} is not a file")
        shared = group is not None and status.st_gid == group
        if status.st_uid not in (os.geteuid(), *owners) or status.st_mode & (0o037 if shared else 0o077):
            or_theirs = f", or to the node's user, and 640 for the group {group}" if shared else ""
            raise InputError(f"{name} must belong to you alone: chown it to yourself and chmod 600{or_theirs}")
        data = os.read(descriptor, max_bytes + 1)
    except OSError as error:
        raise InputError(f"cannot read {name}: {error.strerror}") from error
    finally:
        os.close(descriptor)
    if len(data) > max_bytes:
        raise InputError(f"{name} has more than {max_bytes} bytes; this is another file")
    return data
