"""seccomp: a process gives up, for itself and all its children, the system calls that lead out of its confinement.

Landlock does not stop a Unix socket's ``connect`` by path, UDP, or other families of sockets; this filter does. It is a
small program for the kernel's classic BPF machine (Linux kernel documentation, ``userspace-api/seccomp_filter``).
"""

import ctypes
import errno
import os
import platform
import socket
import struct
from pathlib import Path

from protocol.errors import RunFailedError

_SET_SECCOMP, _MODE_FILTER = 22, 2
_ALLOW, _ERRNO, _KILL_PROCESS = 0x7FFF0000, 0x00050000, 0x80000000

# Offsets in struct seccomp_data: number, architecture, arguments (the low half of each, little-endian).
_NUMBER, _ARCHITECTURE = 0, 4
_LOAD, _AND, _JUMP_EQUAL, _JUMP_GREATER_EQUAL, _JUMP_SET, _RETURN = 0x20, 0x54, 0x15, 0x35, 0x45, 0x06

#: machine: (audit architecture, column of ``FORBIDDEN``).
_MACHINES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}
# Numbers with this bit belong to x86-64's x32, a second way to every call.
_X32_BIT = 0x40000000

#: System calls that fail with EPERM, unless the network stays allowed: name: (x86-64, arm64). They are ways to other
#: processes by a socket; a node's own listens already. Through the last four descriptors travel (SCM_RIGHTS, unix(7)):
#: a courier could hand a node a socket that is connected already. Plain bytes need send and recv alone.
NETWORK = {
    "connect": (42, 203),
    "bind": (49, 200),
    "listen": (50, 201),
    "sendmsg": (46, 211),
    "recvmsg": (47, 212),
    "sendmmsg": (307, 269),
    "recvmmsg": (299, 243),
}
#: Changes of what lies about a file beside its content, whoever's it is: Landlock leaves them to the file's owner, who
#: is the same user where two parties share one. They fail with EPERM in a node, which needs none. With the network they
#: are said to be done and are not: Flower gives its copies of files modes and times, and fails where it cannot.
CHANGES_OF_METADATA = {
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "fchmodat2": (452, 452),
    "fchown": (93, 55),
    "fchownat": (260, 54),
    "utimensat": (280, 88),
    "file_setattr": (469, 469),
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
    "setxattrat": (463, 463),
    "removexattr": (197, 14),
    "lremovexattr": (198, 15),
    "fremovexattr": (199, 16),
    "removexattrat": (466, 466),
}
#: Attributes of files, which are content by another name: there are none, is the answer.
ATTRIBUTES = {
    "getxattr": (191, 8),
    "lgetxattr": (192, 9),
    "getxattrat": (464, 464),
    "listxattr": (194, 11),
    "llistxattr": (195, 12),
    "listxattrat": (465, 465),
}
#: System calls that fail with EPERM.
FORBIDDEN = {
    # A second entrance to system calls, past this filter.
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    # Other processes' memory and descriptors.
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "kcmp": (312, 272),
    "pidfd_getfd": (438, 438),
    "move_pages": (279, 239),
    "migrate_pages": (256, 238),
    # How another process is scheduled.
    "setpriority": (141, 140),
    "ioprio_set": (251, 30),
    # Memory and queues that have a number or a name, and no path that Landlock would look at.
    "shmget": (29, 194),
    "shmat": (30, 196),
    "shmctl": (31, 195),
    "msgget": (68, 186),
    "msgsnd": (69, 189),
    "msgrcv": (70, 188),
    "msgctl": (71, 187),
    "semget": (64, 190),
    "semop": (65, 193),
    "semtimedop": (220, 192),
    "semctl": (66, 191),
    "mq_open": (240, 180),
    "mq_unlink": (241, 181),
    # Being told of changes in any folder.
    "inotify_add_watch": (254, 27),
    # Files past their paths.
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "mknodat": (259, 33),
    # Another view of the file system.
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "unshare": (272, 97),
    "setns": (308, 268),
    "open_tree": (428, 428),
    "open_tree_attr": (467, 467),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    # The kernel itself, its keys and its clocks.
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "acct": (163, 89),
    "quotactl": (179, 60),
    "syslog": (103, 116),
    "clock_settime": (227, 112),
    "settimeofday": (164, 170),
    "fanotify_init": (300, 262),
}
#: Older forms of the same, which x86-64 has beside them.
X86_FORBIDDEN = {"mknod": 133}
X86_CHANGES_OF_METADATA = {"chmod": 90, "chown": 92, "lchown": 94, "utime": 132, "utimes": 235, "futimesat": 261}
#: System calls that a process may make for itself only: their first argument is 0 then.
FOR_ITSELF = {
    "prlimit64": (302, 261),
    "sched_setaffinity": (203, 122),
    "sched_setscheduler": (144, 119),
    "sched_setparam": (142, 118),
    "sched_setattr": (314, 274),
}
_IOCTL = (16, 29)
#: Requests of ioctl that are refused: typing into a terminal (TIOCSTI, TIOCLINUX), flags of a file that can be read
#: (FS_IOC_SETFLAGS, FS_IOC_FSSETXATTR).
IOCTLS = (0x5412, 0x541C, 0x40086602, 0x401C5820)
_SOCKET, _SOCKETPAIR = (41, 198), (53, 199)
_CLONE, _CLONE3 = (56, 220), (435, 435)
# CLONE_NEWTIME, NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET.
_NEW_NAMESPACES = 0x80 | 0x00020000 | 0x02000000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000
_SOCKET_TYPE = 0xF


def offered() -> bool:
    """Whether the kernel filters system calls on request, on a machine that this module knows."""
    return platform.machine() in _MACHINES and Path("/proc/sys/kernel/seccomp/actions_avail").exists()


def restrict(*, network: bool = False) -> None:
    """Install the filter. ``no_new_privs`` must hold already. ``network``: see :func:`filter_program`.

    Raises:
        RunFailedError: the kernel refused, or this machine's system calls are not known here.
    """
    machine = platform.machine()
    if machine not in _MACHINES:
        raise RunFailedError(
            f"no system call filter is written for {machine}; there is one for: {', '.join(_MACHINES)}"
        )
    program = filter_program(machine, network=network)
    instructions = ctypes.create_string_buffer(program, len(program))
    head = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(instructions))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_SET_SECCOMP, _MODE_FILTER, ctypes.c_char_p(head), 0, 0) != 0:
        raise RunFailedError(f"seccomp did not confine this process: {os.strerror(ctypes.get_errno())}")


def filter_program(machine: str, *, network: bool = False) -> bytes:
    """The filter: instructions of eight bytes for the kernel's BPF machine, default allow.

    Args:
        machine: ``x86_64`` or ``aarch64``.
        network: the filter of a program that reaches the network: sockets of every kind stay as they are.
    """
    architecture, column = _MACHINES[machine]
    refuse, missing = _ERRNO | errno.EPERM, _ERRNO | errno.ENOSYS
    # With the error 0, the kernel does nothing and says that it went well.
    unchanged = _ERRNO if network else refuse
    program = [
        _instruction(_LOAD, _ARCHITECTURE),
        _instruction(_JUMP_EQUAL, architecture, 1, 0),
        _instruction(_RETURN, _KILL_PROCESS),
        _instruction(_LOAD, _NUMBER),
    ]
    if machine == "x86_64":
        program += [_instruction(_JUMP_GREATER_EQUAL, _X32_BIT, 0, 1), _instruction(_RETURN, missing)]
        for number in X86_FORBIDDEN.values():
            program += _returning(number, refuse)
        for number in X86_CHANGES_OF_METADATA.values():
            program += _returning(number, unchanged)
    for numbers in (FORBIDDEN if network else NETWORK | FORBIDDEN).values():
        program += _returning(numbers[column], refuse)
    for numbers in CHANGES_OF_METADATA.values():
        program += _returning(numbers[column], unchanged)
    for numbers in ATTRIBUTES.values():
        program += _returning(numbers[column], _ERRNO | errno.EOPNOTSUPP)
    for numbers in FOR_ITSELF.values():
        program += _when(
            numbers[column],
            [
                _instruction(_LOAD, _argument(0)),
                _instruction(_JUMP_EQUAL, 0, 1, 0),
                _instruction(_RETURN, refuse),
                _instruction(_RETURN, _ALLOW),
            ],
        )
    program += _when(
        _IOCTL[column],
        [
            _instruction(_LOAD, _argument(1)),
            *(
                instruction
                for request in IOCTLS
                for instruction in (_instruction(_JUMP_EQUAL, request, 0, 1), _instruction(_RETURN, refuse))
            ),
            _instruction(_RETURN, _ALLOW),
        ],
    )
    # Its flags lie in memory, where a filter cannot look; the C library then takes clone.
    program += _returning(_CLONE3[column], missing)
    program += _when(
        _CLONE[column],
        [
            _instruction(_LOAD, _argument(0)),
            _instruction(_JUMP_SET, _NEW_NAMESPACES, 0, 1),
            _instruction(_RETURN, refuse),
            _instruction(_RETURN, _ALLOW),
        ],
    )
    # Unix sockets with a connection only: a datagram could be sent to a path without connect.
    for call in () if network else (_SOCKET, _SOCKETPAIR):
        program += _when(
            call[column],
            [
                _instruction(_LOAD, _argument(0)),
                _instruction(_JUMP_EQUAL, socket.AF_UNIX, 1, 0),
                _instruction(_RETURN, refuse),
                _instruction(_LOAD, _argument(1)),
                _instruction(_AND, _SOCKET_TYPE),
                _instruction(_JUMP_EQUAL, socket.SOCK_STREAM, 1, 0),
                _instruction(_RETURN, refuse),
                _instruction(_RETURN, _ALLOW),
            ],
        )
    return b"".join([*program, _instruction(_RETURN, _ALLOW)])


def _instruction(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)


def _returning(number: int, verdict: int) -> list[bytes]:
    return _when(number, [_instruction(_RETURN, verdict)])


def _when(number: int, body: list[bytes]) -> list[bytes]:
    """``body`` for the system call of this number; it must return in all its branches."""
    return [_instruction(_JUMP_EQUAL, number, 0, len(body)), *body]


def _argument(index: int) -> int:
    return 16 + 8 * index
