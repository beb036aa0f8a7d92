"""Folders of this user's own: closed to all others, or open to one group."""

import os
import stat
from pathlib import Path

from protocol.errors import InputError
from protocol.files.atomic import make_folder


def socket_folder(folder: Path, group: int | None) -> None:
    """Make the folder of a socket if there is none: this user's (0700), or for a group to enter as well (0750).

    Raises:
        InputError: it is a link, another user's, or open to others.
    """
    if group is None:
        private_folder(folder)
    else:
        _group_folder(folder, group)


def private_folder(folder: Path) -> Path:
    """Make a folder (0700) if there is none, and make sure that it is this user's and closed to all others.

    Raises:
        InputError: it is a link, another user's, or open to others.
    """
    if _own_folder(folder).st_mode & 0o077:
        raise InputError(f"{folder} is open to other users; close it with: chmod 700 {folder}")
    return folder


def open_to_group(path: Path, group: int, mode: int) -> None:
    """Give a file of this user's to a group, with this mode.

    Raises:
        InputError: the file is another user's, or this user is not in that group.
    """
    try:
        os.chown(path, -1, group)
        os.chmod(path, mode)
    except OSError as error:
        raise InputError(
            f"cannot give {path} to the group {group}: {error.strerror}; it must belong to the node's user, and that"
            " user to the group: usermod --append --groups GROUP USER"
        ) from error


def _group_folder(folder: Path, group: int) -> None:
    """Make a folder of this user's if there is none, and let a group enter it (0750).

    Raises:
        InputError: it is a link or another user's, or this user is not in that group.
    """
    _own_folder(folder)
    open_to_group(folder, group, 0o750)


def _own_folder(folder: Path) -> os.stat_result:
    """Make a folder if there is none, and make sure that it is this user's."""
    try:
        make_folder(folder)
        status = folder.lstat()
    except OSError as error:
        raise InputError(f"cannot make the folder {folder}: {error.strerror or error}") from error
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
        raise InputError(f"{folder} must be a folder of your own, not a link or somebody else's")
    return status
