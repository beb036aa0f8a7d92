"""What a decoder that was taken over would try, each attempt with its outcome on standard output; the argument says
whether the process confines itself first, as a decoder does."""

import contextlib
import ctypes
import json
import mmap
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path

from protocol.pictures import decoder

folder = Path(sys.argv[2])
libc = ctypes.CDLL(None, use_errno=True)


def call(name: str, *arguments: object) -> None:
    if getattr(libc, name)(*arguments) < 0:
        raise OSError(ctypes.get_errno(), name)


def fork() -> None:
    if os.fork() == 0:
        os._exit(0)
    os.wait()


def start() -> None:
    os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0)


def become() -> None:
    # Of a name that is not there: this process must go on to tell of it.
    with contextlib.suppress(FileNotFoundError):
        os.execv(folder / "no program", ["x"])


def run_memory() -> None:
    mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_EXEC).close()


def more_files() -> None:
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


ATTEMPTS: dict[str, Callable[[], object]] = {
    "read a file": lambda: os.open("/etc/passwd", os.O_RDONLY),
    "read its own program": lambda: os.open(decoder.__file__, os.O_RDONLY),
    "write a file": lambda: os.open(folder / "written", os.O_WRONLY | os.O_CREAT),
    "list a folder": lambda: os.listdir("/"),
    "look for a file": lambda: os.stat("/etc/passwd"),
    "remove a file": lambda: os.unlink(folder / "there"),
    "open the terminal": lambda: os.open("/dev/tty", os.O_RDWR),
    "a Unix socket": lambda: socket.socket(socket.AF_UNIX),
    "an internet socket": lambda: socket.socket(socket.AF_INET),
    "a pair of sockets": socket.socketpair,
    "another pipe": os.pipe,
    "a file in memory": lambda: os.memfd_create("x"),
    "another process": fork,
    "another program": start,
    "another program in its place": become,
    "memory that can be run": run_memory,
    "a signal to its parent": lambda: os.kill(os.getppid(), 0),
    "a signal to itself": lambda: os.kill(os.getpid(), signal.SIGCONT),
    "trace itself": lambda: call("ptrace", 0, 0, None, None),
    "other limits": more_files,
    "its own name": lambda: call("prctl", 15, b"x", 0, 0, 0),
    "the processors of another process": lambda: os.sched_getaffinity(1),
    "a namespace": lambda: call("unshare", 0),
}

outcomes = {}
if sys.argv[1] == "confined":
    outcomes["confined"] = str(decoder.confine_itself())
for name, attempt in ATTEMPTS.items():
    try:
        attempt()
        outcomes[name] = "done"
    except OSError as error:
        outcomes[name] = os.strerror(error.errno or 0)
os.write(1, json.dumps(outcomes).encode())
os._exit(0)
