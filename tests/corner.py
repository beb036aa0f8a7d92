"""A corner like a container's: another user without an entry in passwd, and parts of the file system read-only.

A user namespace (user_namespaces(7)) gives it to every user: inside, the user has another number and the same rights
over its own files. ``python -m tests.corner USER READ-ONLY-FOLDER... -- COMMAND...`` becomes the command.
"""

import ctypes
import functools
import os
import pwd
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

_NEW_NAMESPACES = 0x10000000 | 0x00020000  # CLONE_NEWUSER | CLONE_NEWNS
_READ_ONLY, _REMOUNT, _BIND, _RECURSIVE, _PRIVATE = 1, 32, 4096, 16384, 1 << 18
#: Flags of a mount that a user namespace may not take away (mount_namespaces(7)): nosuid, nodev, noexec, noatime,
#: nodiratime, relatime; in statvfs(3) they have the same numbers, but for the last.
_KEPT, _RELATIME = 2 | 4 | 8 | 1024 | 2048, (4096, 1 << 21)


def in_corner(command: Sequence[str], *, read_only: Iterable[Path] = (), user: int | None = None) -> list[str]:
    """The command line that runs ``command`` in a corner.

    Args:
        read_only: folders that cannot be written there.
        user: its number; default: one that nobody has.
    """
    folders = [str(folder) for folder in read_only]
    program = [sys.executable, "-I", str(Path(__file__).resolve())]
    return [*program, str(a_number() if user is None else user), *folders, "--", *command]


def a_number() -> int:
    """The number of a user who has no entry in passwd; another one for each real user."""
    number = 100_000 + os.getuid()
    while _is_known(number):
        number += 100_000
    return number


def _is_known(number: int) -> bool:
    try:
        pwd.getpwuid(number)
    except KeyError:
        return False
    return True


@functools.cache
def refused() -> str:
    """Why this kernel gives no corner; empty if it gives one."""
    if sys.platform != "linux":
        return "only Linux has user namespaces"
    done = subprocess.run(in_corner(["true"], read_only=[Path("/usr")]), capture_output=True, text=True, check=False)
    return (done.stderr.strip().splitlines() or ["no corner"])[-1] if done.returncode else ""


def main() -> None:
    """Become the command, in a corner."""
    user, *rest = sys.argv[1:]
    divider = rest.index("--")
    folders, command = rest[:divider], rest[divider + 1 :]
    uid, gid = os.geteuid(), os.getegid()
    libc = ctypes.CDLL(None, use_errno=True)

    def call(name: str, *arguments: object) -> None:
        if getattr(libc, name)(*arguments) != 0:
            raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")

    call("unshare", _NEW_NAMESPACES)
    maps = (("setgroups", "deny"), ("uid_map", f"{user} {uid} 1"), ("gid_map", f"{user} {gid} 1"))
    for name, text in maps:
        Path("/proc/self", name).write_text(text, encoding="ascii")
    call("mount", None, b"/", None, _RECURSIVE | _PRIVATE, None)
    for folder in map(os.fsencode, folders):
        call("mount", folder, folder, None, _BIND | _RECURSIVE, None)
        flags = os.statvfs(folder).f_flag
        kept = flags & _KEPT | (_RELATIME[1] if flags & _RELATIME[0] else 0)
        call("mount", None, folder, None, _REMOUNT | _BIND | _READ_ONLY | kept, None)
    # It has no capability in the namespace any more: its number there is not 0.
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
