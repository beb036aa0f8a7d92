"""What a node that was taken over may leave where a file of its state should be, and that nobody is held up by it."""

import contextlib
import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

TERABYTE = 1 << 40
DEEP = b"[" * 200_000


def _link(path: Path, victim: Path) -> None:
    path.symlink_to(victim)


def _hard_link(path: Path, victim: Path) -> None:
    os.link(victim, path)


def _pipe(path: Path, victim: Path) -> None:
    os.mkfifo(path)


def _folder(path: Path, victim: Path) -> None:
    (path / "in it").mkdir(parents=True)


def _socket(path: Path, victim: Path) -> None:
    # Its path may be longer than a socket's may be.
    with socket.socket(socket.AF_UNIX) as made:
        descriptor = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
        try:
            made.bind(f"/proc/self/fd/{descriptor}/{path.name}")
        finally:
            os.close(descriptor)


def _endless(path: Path, victim: Path) -> None:
    with path.open("wb") as file:
        file.truncate(TERABYTE)


def _garbage(path: Path, victim: Path) -> None:
    path.write_bytes(b"\x00\xff\x1b]0;owned\x07" * 500)


def _deep(path: Path, victim: Path) -> None:
    path.write_bytes(DEEP)


#: What is put in a file's place, by its name. What is no file at all, or somebody else's, comes first.
NO_FILE: dict[str, Callable[[Path, Path], None]] = {
    "a link": _link,
    "a hard link": _hard_link,
    "a pipe": _pipe,
    "a folder": _folder,
    "a socket": _socket,
}
ANY: dict[str, Callable[[Path, Path], None]] = {
    **NO_FILE,
    "a terabyte of nothing": _endless,
    "garbage": _garbage,
    "deep JSON": _deep,
}


def plant(kind: str, path: Path, victim: Path) -> None:
    """Put something in the place of a file; ``victim``: another party's file, for what is to lead there."""
    if path.is_dir() and not path.is_symlink():
        for below in sorted(path.rglob("*"), reverse=True):
            below.rmdir() if below.is_dir() else below.unlink()
        path.rmdir()
    else:
        path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    ANY[kind](path, victim)


@contextlib.contextmanager
def within(seconds: int) -> Iterator[None]:
    """Fail where the work inside takes longer: it hangs."""

    def late(number: int, frame: FrameType | None) -> None:
        raise AssertionError(f"it hangs: {seconds} s have passed")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
