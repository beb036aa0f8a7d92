"""Starting children and programs, and running code of its own."""

import contextlib
import ctypes
import mmap
import os
import platform
import socket
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from .act import DONE, Aims, Seen, StoppedError, act, call, libc, otherwise, read, step
from .expectation import files, system_calls
from .seen import GRANTED, HEARD, PRIVATE, changes, gets, needs

_NO_FORK = system_calls("fork")
_AT_FDCWD = -100
_SIGCHLD, _CLONE_PARENT, _SET_NAME = 17, 0x00008000, 15
_X86 = platform.machine() == "x86_64"
_LOADER = "/lib64/ld-linux-x86-64.so.2" if _X86 else "/lib/ld-linux-aarch64.so.1"
_CAT = "/usr/bin/cat"
#: The C library's messages for errors, in the locale C.
_SAYS = {b"Permission denied": "EACCES", b"Operation not permitted": "EPERM"}
# A function of four arguments that makes the system call openat with them.
_OPENAT_CODE = "b801010000 4989ca 0f05 c3" if _X86 else "080780d2 010000d4 c0035fd6"


def fork() -> int:
    """Start a child, by the system call that the C library uses."""
    with step("fork"):
        return os.fork()


def run(*command: str, environment: Mapping[str, str] | None = None, program: int | str = "") -> bytes:
    """Start a program by fork and execve, and return its output.

    Args:
        program: descriptor or path of the program, if it is not the first word.

    Raises:
        StoppedError: fork was refused, or execve, or (as the program says) its opening of a file.
    """
    pipes = [*os.pipe(), *os.pipe()]
    reading, writing, failures, failing = pipes
    try:
        child = fork()
    except StoppedError:
        for descriptor in pipes:
            os.close(descriptor)
        raise
    if child == 0:
        try:
            os.dup2(writing, 1)
            os.dup2(writing, 2)
            os.execve(program or command[0], command, {"LC_ALL": "C", **(environment or {})})
        except OSError as error:
            os.write(failing, str(error.errno or 0).encode())
        finally:
            os._exit(127)
    os.close(writing)
    os.close(failing)
    with os.fdopen(reading, "rb") as answers, os.fdopen(failures, "rb") as why:
        failed, said = why.read(), answers.read()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if failed:
        raise StoppedError("execve", int(failed))
    if status:
        for text, name in _SAYS.items():
            if text in said:
                raise StoppedError("open", name, said.decode(errors="replace").strip()[-200:])
        raise RuntimeError(f"the program ended with {status}: {said[-200:]!r}")
    return said


def _dropped(aims: Aims, content: bytes) -> str:
    """A program that it wrote, executable as it is made: to change the mode later is another matter."""
    path = f"{aims['own']}/dropped"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o700)
    os.write(descriptor, content)
    os.close(descriptor)
    return path


@act("start a child", "fork", GRANTED, _NO_FORK)
def start_child(aims: Aims) -> bytes:
    child = fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    return DONE


@act(
    "start a sibling",
    "clone with CLONE_PARENT: a child of whoever started it, which is not ended with it",
    changes(lambda stage, token: stage.sibling(token)),
    system_calls("clone"),
)
def start_sibling(aims: Aims) -> bytes:
    name = aims["token"][:15].encode()
    # The interpreter's lock stays held, so that the copy of this thread has it.
    holding = ctypes.PyDLL(None, use_errno=True)
    number = 56 if _X86 else 220
    child = holding.syscall(number, ctypes.c_long(_CLONE_PARENT | _SIGCHLD), *[ctypes.c_long(0)] * 4)
    if child == 0:
        holding.prctl(_SET_NAME, name, 0, 0, 0)
        time.sleep(3.0)
        os._exit(0)
    if child < 0:
        raise StoppedError("clone", ctypes.get_errno())
    return DONE


@act(
    "leave a process behind",
    "forks twice: the orphan outlives its node, and keeps what it had open, such as the lock of the state",
    Seen(evidence=lambda stage, evidence: stage.orphan(int(evidence))),
    _NO_FORK,
)
def leave_orphan(aims: Aims) -> bytes:
    reading, writing = os.pipe()
    try:
        child = fork()
    except StoppedError:
        os.close(reading)
        os.close(writing)
        raise
    if child == 0:
        os.setsid()
        if os.fork() == 0:
            os.write(writing, str(os.getpid()).encode())
            os.close(writing)
            time.sleep(5.0)
        os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    with os.fdopen(reading, "rb") as answers:
        return answers.read(16)


@act("read from a child process", "fork, then open", PRIVATE, _NO_FORK, files("open"))
def read_from_child(aims: Aims) -> bytes:
    reading, writing = os.pipe()
    try:
        child = fork()
    except StoppedError:
        os.close(reading)
        os.close(writing)
        raise
    if child == 0:
        try:
            os.write(writing, b"+" + read(aims["private"]))
        except StoppedError as error:
            os.write(writing, b"-" + error.error.encode())
        finally:
            os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    with os.fdopen(reading, "rb") as answers:
        answer = answers.read()
    if answer[:1] == b"-":
        raise StoppedError("open", answer[1:].decode())
    return answer[1:]


@act("read by another program", "starts cat", PRIVATE, _NO_FORK, files("open"))
def read_by_program(aims: Aims) -> bytes:
    return run(_CAT, aims["private"])


@act(
    "read by a shell",
    "starts /bin/sh, which reads by itself",
    gets(lambda stage: stage.victim.marker.hex().encode()),
    _NO_FORK,
    files("open"),
)
def read_by_shell(aims: Aims) -> bytes:
    return run("/bin/sh", "-c", 'while IFS= read -r line; do echo "$line"; done < "$0"', aims["listed"])


def _become(program: str, *arguments: str) -> bytes:
    """Become a program, and return its output: in a child if one can be started; else in this process, which then ends
    if nothing stops it.
    """
    try:
        child = os.fork()
    except OSError:
        with step("execve"):
            os.execve(program, [program, *arguments], {})
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    return run(program, *arguments)


@act("become another program", "execve in its own place, without a child", PRIVATE, system_calls("execve"))
def become_program(aims: Aims) -> bytes:
    return _become(_CAT, aims["private"])


@act(
    "read by a program that lies in memory",
    "memfd_create and fexecve",
    PRIVATE,
    system_calls("memfd_create"),
    system_calls("memfd_create"),
)
def read_by_program_in_memory(aims: Aims) -> bytes:
    program = call("memfd_create", b"cat", 0)
    try:
        os.write(program, Path(_CAT).read_bytes())
        return run("cat", aims["private"], program=program)
    finally:
        os.close(program)


@act("run a program that it wrote", "an executable file in its state", PRIVATE, _NO_FORK, files("execve"))
def run_dropped_program(aims: Aims) -> bytes:
    return run(_dropped(aims, Path(_CAT).read_bytes()), aims["private"])


@act(
    "become a program that it wrote",
    "execve of an executable file in its state, in its own place",
    PRIVATE,
    system_calls("execve"),
)
def become_dropped_program(aims: Aims) -> bytes:
    return _become(_dropped(aims, Path(_CAT).read_bytes()), aims["private"])


@act(
    "become a program that lies in memory",
    "memfd_create and fexecve, in its own place",
    PRIVATE,
    # Where there is no memory file, the call is made on a file of its own: it is refused as such.
    system_calls("execveat"),
)
def become_program_in_memory(aims: Aims) -> bytes:
    program = otherwise(-1, "memfd_create", b"cat", 0)
    if program < 0:
        program = os.open(_dropped(aims, b""), os.O_RDWR)
    try:
        os.write(program, Path(_CAT).read_bytes())
        try:
            child = os.fork()
        except OSError:
            with step("execveat"):
                os.execve(program, ["cat", aims["private"]], {})
        if child == 0:
            os._exit(0)
        os.waitpid(child, 0)
        return run("cat", aims["private"], program=program)
    finally:
        os.close(program)


# Nothing stops the loader from mapping what may only be read: what holds for the process holds for what it runs.
@act(
    "have the loader run a program that it wrote",
    "ld.so FILE",
    PRIVATE,
    _NO_FORK,
    files("open"),
    lacks=needs(_LOADER, "loader of the C library where it is looked for"),
)
def read_by_loader(aims: Aims) -> bytes:
    return run(_LOADER, _dropped(aims, Path(_CAT).read_bytes()), aims["private"])


@act(
    "load code that it wrote",
    "maps a file of its own as code, as dlopen does, and opens an image by it",
    PRIVATE,
    files("openat"),
    files("openat"),
)
def read_by_own_code(aims: Aims) -> bytes:
    """Nothing stops the mapping, and code gains no right by being new: it is the open that is refused."""
    path = _dropped(aims, bytes.fromhex(_OPENAT_CODE).ljust(mmap.PAGESIZE, b"\0"))
    descriptor = os.open(path, os.O_RDONLY)
    libc.mmap.restype = ctypes.c_void_p
    rights = mmap.PROT_READ | mmap.PROT_EXEC
    code = libc.mmap(None, ctypes.c_size_t(mmap.PAGESIZE), rights, mmap.MAP_PRIVATE, descriptor, ctypes.c_long(0))
    os.close(descriptor)
    if code in (None, ctypes.c_void_p(-1).value):
        raise StoppedError("mmap", ctypes.get_errno())
    openat = ctypes.CFUNCTYPE(ctypes.c_long, ctypes.c_long, ctypes.c_char_p, ctypes.c_long, ctypes.c_long)(code)
    opened = int(openat(_AT_FDCWD, aims["private"].encode(), os.O_RDONLY, 0))
    libc.munmap(ctypes.c_void_p(code), ctypes.c_size_t(mmap.PAGESIZE))
    if opened < 0:
        raise StoppedError("openat", -opened)
    with os.fdopen(opened, "rb") as file:
        return file.read()


@act("connect from a child process", "fork, then TCP", HEARD, _NO_FORK)
def connect_by_child(aims: Aims) -> bytes:
    child = fork()
    if child == 0:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", int(aims["tcp"])), 3.0) as one:
            one.sendall(aims["token"].encode())
        os._exit(0)
    os.waitpid(child, 0)
    return DONE


@act("connect by another program", "starts an interpreter, which connects by TCP", HEARD, _NO_FORK)
def connect_by_program(aims: Aims) -> bytes:
    code = "import socket, sys; socket.create_connection(('127.0.0.1', int(sys.argv[1]))).sendall(sys.argv[2].encode())"
    return run(sys.executable, "-c", code, aims["tcp"], aims["token"]) or DONE
