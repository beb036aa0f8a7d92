"""Ways between processes without a file or a socket."""

import ctypes
import fcntl
import mmap
import os
import struct

from .act import DONE, Aims, Seen, StoppedError, act, call, checked, libc, step
from .expectation import Open, files, system_calls
from .seen import GRANTED, MEMORY, changes, gets

SHARED_MACHINE = Open(
    "whatever two processes both see can carry bits between them; it takes two that were taken over, and only "
    "machines of their own end it"
)
_SHMGET, _SHMAT = system_calls("shmget"), system_calls("shmat")
_SECONDS = 2.0


@act(
    "share a memory segment",
    "shmget",
    Seen(evidence=lambda stage, evidence: evidence.isdigit()),
    _SHMGET,
    _SHMGET,
)
def shared_segment(aims: Aims) -> bytes:
    segment = checked(libc.shmget(int(aims["ipc_key"]), 4096, 0o1600), "shmget")
    libc.shmat.restype = ctypes.c_void_p
    address = libc.shmat(segment, None, 0)
    if address in (None, ctypes.c_void_p(-1).value):
        raise StoppedError("shmat", ctypes.get_errno())
    text = aims["token"].encode()
    ctypes.memmove(address, text, len(text))
    libc.shmdt(ctypes.c_void_p(address))
    libc.shmctl(segment, 0, None)
    return str(segment).encode()


@act("attach another's memory segment", "shmat of a number that is guessed", MEMORY, _SHMAT, _SHMAT)
def existing_segment(aims: Aims) -> bytes:
    """A segment that another process made; its number is known or guessed."""
    libc.shmat.restype = ctypes.c_void_p
    address = libc.shmat(int(aims["segment"]), None, 0)
    if address in (None, ctypes.c_void_p(-1).value):
        raise StoppedError("shmat", ctypes.get_errno())
    found = ctypes.string_at(address, 64)
    libc.shmdt(ctypes.c_void_p(address))
    return found


@act("share a message queue", "msgget, msgsnd", GRANTED, *[system_calls("msgget")] * 2)
def message_queue(aims: Aims) -> bytes:
    queue = checked(libc.msgget(int(aims["ipc_key"]), 0o1600), "msgget")
    text = aims["token"].encode()
    checked(libc.msgsnd(queue, struct.pack("=q", 1) + text, len(text), 0), "msgsnd")
    libc.msgctl(queue, 0, None)
    return DONE


@act("share a semaphore", "semget", GRANTED, *[system_calls("semget")] * 2)
def semaphore(aims: Aims) -> bytes:
    found = checked(libc.semget(int(aims["ipc_key"]), 1, 0o1600), "semget")
    libc.semctl(found, 0, 0)
    return DONE


@act("share a named queue", "mq_open", GRANTED, *[system_calls("mq_open")] * 2)
def named_queue(aims: Aims) -> bytes:
    name = f"/{aims['token'][:16]}".encode()
    queue = checked(libc.mq_open(name, os.O_CREAT | os.O_RDWR, 0o600, None), "mq_open")
    os.close(queue)
    libc.mq_unlink(name)
    return DONE


@act(
    "share memory without a name",
    "memfd_create, for whoever it can be handed to",
    GRANTED,
    system_calls("memfd_create"),
)
def nameless_memory(aims: Aims) -> bytes:
    os.close(call("memfd_create", b"boundary", 0))
    return DONE


@act("move pages into a pipe", "vmsplice, without a copy", GRANTED, system_calls("vmsplice"))
def give_pages(aims: Aims) -> bytes:
    reading, writing = os.pipe()
    content = ctypes.create_string_buffer(b"x" * 16)
    try:
        call("vmsplice", writing, struct.pack("=QQ", ctypes.addressof(content), 16), 1, 0)
    finally:
        os.close(reading)
        os.close(writing)
    return DONE


@act(
    "move a file's pages into a pipe", "splice: pages of a file that it may only read", GRANTED, system_calls("splice")
)
def splice_file(aims: Aims) -> bytes:
    reading, writing = os.pipe()
    descriptor = os.open(aims["package_file"], os.O_RDONLY)
    try:
        call("splice", descriptor, None, writing, None, 16, 0)
    finally:
        for number in (reading, writing, descriptor):
            os.close(number)
    return DONE


@act("copy a pipe's pages", "tee", GRANTED, system_calls("tee"))
def copy_pipe(aims: Aims) -> bytes:
    pipes = [*os.pipe(), *os.pipe()]
    os.write(pipes[1], b"x")
    try:
        call("tee", pipes[0], pipes[3], 1, 0)
    finally:
        for number in pipes:
            os.close(number)
    return DONE


# --- What nothing stops on one machine ------------------------------------------------------------------------------


@act(
    "lock a whole file that both may read",
    "flock: held or not is a bit",
    GRANTED,
    system_calls("flock"),
    SHARED_MACHINE,
)
def lock_whole_file(aims: Aims) -> bytes:
    descriptor = os.open(aims["system_file"], os.O_RDONLY)
    try:
        with step("flock"):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fcntl.flock(descriptor, fcntl.LOCK_UN)
    finally:
        os.close(descriptor)
    return DONE


@act("lock bytes of a file that both may read", "F_SETLK: SQLite needs it for its own", GRANTED, SHARED_MACHINE)
def lock_shared_file(aims: Aims) -> bytes:
    descriptor = os.open(aims["system_file"], os.O_RDONLY)
    try:
        with step("fcntl F_SETLK"):
            fcntl.lockf(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB, 1)
            fcntl.lockf(descriptor, fcntl.LOCK_UN, 1)
    finally:
        os.close(descriptor)
    return DONE


@act("watch how busy the machine is", "/proc/stat", gets(lambda stage: b"cpu"), *[files("open")] * 2)
def read_load(aims: Aims) -> bytes:
    """A covert channel of one bit a second: the sender makes the machine busy."""
    with step("open"):
        descriptor = os.open("/proc/stat", os.O_RDONLY)
    with os.fdopen(descriptor, "rb") as file:
        return file.read(200)


@act("watch what others read", "mincore of a shared file", GRANTED, system_calls("mincore"), SHARED_MACHINE)
def probe_page_cache(aims: Aims) -> bytes:
    """Find which pages of a shared library another process has read lately."""
    descriptor = os.open(aims["system_file"], os.O_RDONLY)
    size = min(os.fstat(descriptor).st_size, 1 << 20)
    libc.mmap.restype = ctypes.c_void_p
    address = libc.mmap(None, ctypes.c_size_t(size), 1, 1, descriptor, ctypes.c_long(0))
    os.close(descriptor)
    pages = ctypes.create_string_buffer((size + 4095) // 4096)
    try:
        checked(libc.mincore(ctypes.c_void_p(address), ctypes.c_size_t(size), pages), "mincore")
    finally:
        libc.munmap(ctypes.c_void_p(address), ctypes.c_size_t(size))
    return DONE


@act(
    "be woken by another process",
    "futex on a page of a file that both may read",
    Seen(evidence=lambda stage, evidence: evidence == b"woken"),
    SHARED_MACHINE,
    prepare=lambda stage, token: stage.wake(_SECONDS),
)
def wait_for_wake(aims: Aims) -> bytes:
    """A wait is named by the file and the place in it, whichever process maps it."""
    descriptor = os.open(aims["package_file"], os.O_RDONLY)
    libc.mmap.restype = ctypes.c_void_p
    place = libc.mmap(None, ctypes.c_size_t(mmap.PAGESIZE), 1, 1, descriptor, ctypes.c_long(0))
    os.close(descriptor)
    value = ctypes.c_uint32.from_address(place).value
    try:
        # FUTEX_WAIT, shared; the wait ends by itself after a while.
        call("futex", ctypes.c_void_p(place), 0, value, struct.pack("=qq", int(_SECONDS), 0), None, 0)
    finally:
        libc.munmap(ctypes.c_void_p(place), ctypes.c_size_t(mmap.PAGESIZE))
    return b"woken"


@act(
    "write on what ps shows",
    "its own name, which every process of the machine may read",
    changes(lambda stage, token: stage.named(token)),
    SHARED_MACHINE,
)
def rename_itself(aims: Aims) -> bytes:
    checked(libc.prctl(15, aims["token"][:15].encode(), 0, 0, 0), "prctl")
    return DONE
