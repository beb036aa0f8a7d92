"""The system calls that a node, its warden and a courier may make, and their arguments; all others are refused.

The lists were made by running every role, profile and method under a tracer (``strace -f``). They hold the calls of a
confined node, and the same calls' other forms on other machines and C libraries. A missing call appears as a line in
the node's log. The list for CUDA could not be recorded yet: it is written after the driver's published interface, and
said to be unmeasured.
"""

import errno
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field

_ALL_BITS = 0xFFFFFFFF
#: O_CREAT and __O_TMPFILE; set-user-id, set-group-id and sticky bit.
_MAKES, _SPECIAL_BITS = 0x400040, 0o7000
#: Clocks of the machine and of the caller; larger numbers are clocks of other processes and threads (clock_getres(2)).
_CLOCKS = range(12)
#: FUTEX_WAIT, WAKE, REQUEUE, CMP_REQUEUE, WAKE_OP, WAIT_BITSET, WAKE_BITSET, private or not. Locks with an owner (PI)
#: reveal whether a process with some number exists.
_FUTEXES, _FUTEX_COMMAND = (0, 1, 3, 4, 5, 9, 10), 0xFFFFFE7F


@dataclass(frozen=True)
class Check:
    """A condition on the low 32 bits of one argument: after ``mask``, it is one of ``values``.

    The kernel itself takes 32 bits of every argument that is checked here.
    """

    argument: int
    values: tuple[int, ...]
    mask: int = _ALL_BITS


#: Checks that must all hold, in each of several alternatives; ``ALWAYS``: whatever the arguments.
Alternatives = tuple[tuple[Check, ...], ...]
ALWAYS: Alternatives = ((),)


@dataclass(frozen=True)
class CallPolicy:
    """The answers of a filter of system calls.

    Attributes:
        allowed: by name, the allowed arguments.
        answers: by name, the error number that is answered at once and without a line in the log; 0: nothing is done,
            but success is reported. For calls that libraries make but do not need.
    """

    allowed: Mapping[str, Alternatives]
    answers: Mapping[str, int] = field(default_factory=dict)

    def __or__(self, other: "CallPolicy") -> "CallPolicy":
        """Both together; if both name a call, ``other`` decides."""
        answers = {name: number for name, number in self.answers.items() if name not in other.allowed}
        allowed = {name: checks for name, checks in self.allowed.items() if name not in other.answers}
        return CallPolicy({**allowed, **other.allowed}, {**answers, **other.answers})


def _any(names: str) -> dict[str, Alternatives]:
    return dict.fromkeys(names.split(), ALWAYS)


def _answered(names: str, error: int) -> dict[str, int]:
    return dict.fromkeys(names.split(), error)


def _where(argument: int, *values: int, mask: int = _ALL_BITS) -> Alternatives:
    return ((Check(argument, values, mask),),)


def _made_plainly(flags: int) -> Alternatives:
    """Opening an existing file, or making a file with a plain mode; ``flags``: the argument in front of the mode."""
    return (*_where(flags, 0, mask=_MAKES), *_where(flags + 1, 0, mask=_SPECIAL_BITS))


# --- What is allowed with some arguments only ------------------------------------------------------------------------

#: CLONE_VM, FS, FILES, SIGHAND, THREAD, SYSVSEM, SETTLS, PARENT_SETTID, CHILD_CLEARTID: a thread, exactly as the C
#: libraries make it (pthread_create). CLONE_DETACHED, which does nothing, is set by one of them.
THREAD_FLAGS = 0x003D0F00
_CLONE_DETACHED = 0x00400000
#: CLONE_NEWTIME, NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET.
NEW_NAMESPACES = 0x80 | 0x00020000 | 0x02000000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000
_CLONE_PARENT = 0x8000
_SOCKET_TYPE = 0xF

#: FIONCLEX, FIOCLEX, FIONBIO; TCGETS, by which a program asks whether a file is a terminal.
IOCTLS = (0x5450, 0x5451, 0x5421, 0x5401)
#: F_DUPFD, GETFD, SETFD, GETFL, SETFL; locks of one's own files, by which SQLite works: GETLK, SETLK, SETLKW;
#: DUPFD_CLOEXEC; the same locks of an open file: OFD_GETLK, OFD_SETLK, OFD_SETLKW. Not here: F_SETLEASE, F_NOTIFY,
#: F_SETOWN, F_SETSIG, F_ADD_SEALS, F_SETPIPE_SZ.
FCNTLS = (0, 1, 2, 3, 4, 5, 6, 7, 36, 37, 38, 1030)
#: PR_SET_NAME, GET_NAME, GET_NO_NEW_PRIVS, and PR_SET_VMA, by which the C library names its memory.
PRCTLS = (15, 16, 39, 0x53564D41)
#: Requests of a GPU's driver carry a letter in their second byte: F of NVIDIA's (``nv-ioctl.h``), K and d of AMD's
#: (``kfd_ioctl.h``, ``drm.h``). Those of NVIDIA's shared memory (``uvm_ioctl.h``) are numbers below 256 and two large
#: ones.
_DRIVER_LETTERS = (0x4600, 0x4B00, 0x6400)
_SHARED_MEMORY = (0x30000001, 0x30000002)


def node_policy(pid: int, *, cuda: bool = False) -> CallPolicy:
    """The list of a node process.

    Args:
        pid: its number: it may signal and query only itself.
        cuda: also allow what computing on a GPU needs; not recorded on a real one.
    """
    own: dict[str, Alternatives] = {
        "tgkill": _where(0, pid),
        # Only of itself: for another process it would reveal that it exists.
        "sched_getaffinity": _where(0, 0, pid),
    }
    return NODE | CallPolicy(own) | (CUDA if cuda else CallPolicy({}))


#: Reading, writing, and the files beneath the paths that Landlock opens.
_FILES = _any(
    "read write readv writev pread64 pwrite64 preadv pwritev lseek close close_range dup dup2 dup3 pipe pipe2 "
    "stat lstat fstat newfstatat statx access faccessat faccessat2 readlink readlinkat getdents64 getcwd "
    "rmdir unlink unlinkat rename renameat ftruncate fsync fdatasync fadvise64"
) | {
    # What it makes is private (umask 077, which it cannot change), and has no set-user-id bit or the like.
    "open": _made_plainly(1),
    "openat": _made_plainly(2),
    "mkdir": _where(1, 0, mask=_SPECIAL_BITS),
    "mkdirat": _where(2, 0, mask=_SPECIAL_BITS),
}
#: The process's own memory, and its place on the machine.
_MEMORY = _any("mmap munmap mremap mprotect madvise brk mbind get_mempolicy set_mempolicy")
#: Clocks of the machine and of the process, and waiting for another thread.
TIME_AND_WAITING: dict[str, Alternatives] = {
    **dict.fromkeys(("clock_gettime", "clock_getres", "clock_nanosleep"), _where(0, *_CLOCKS)),
    "futex": _where(1, *_FUTEXES, mask=_FUTEX_COMMAND),
}
#: Threads, waiting, signals to itself, and queries about itself and the time.
_THREADS = (
    _any(
        "set_robust_list rseq membarrier sched_yield sched_getaffinity sched_get_priority_max sched_get_priority_min "
        "rt_sigaction rt_sigprocmask rt_sigreturn sigaltstack restart_syscall poll ppoll select pselect6 nanosleep "
        "gettimeofday time getcpu exit exit_group getpid gettid getppid getuid "
        "geteuid getgid getegid uname getrandom set_tid_address arch_prctl"
    )
    | TIME_AND_WAITING
)
#: Its one door, which is already bound and listening; plain bytes need no call that could carry a descriptor.
_DOOR = _any("accept accept4 recvfrom sendto getsockname getpeername shutdown")

NODE = CallPolicy(
    {
        **_FILES,
        **_MEMORY,
        **_THREADS,
        **_DOOR,
        "clone": _where(0, THREAD_FLAGS, THREAD_FLAGS | _CLONE_DETACHED),
        "ioctl": _where(1, *IOCTLS),
        "fcntl": _where(1, *FCNTLS),
        "prctl": _where(0, *PRCTLS),
        # Only for itself: 0 stands for the caller.
        "sched_setaffinity": _where(0, 0),
        "prlimit64": _where(0, 0),
        # Renaming as ``rename`` does; not the exchange of two names.
        "renameat2": _where(4, 0),
    },
    {
        # Its flags lie in memory, where a filter cannot look; the C library then takes clone.
        "clone3": errno.ENOSYS,
        # As root, SQLite gives its files to their folder's owner, and goes on if it cannot.
        "fchown": errno.EPERM,
        # The standard library looks for shared libraries by running a program (ctypes.util), but does not need it.
        "vfork": errno.EPERM,
    },
)

#: Named exception: a node that computes on a GPU. Unmeasured: written after the driver's headers.
CUDA = CallPolicy(
    {
        **_any("mlock munlock mlock2 mincore eventfd2 sysinfo sched_getscheduler sched_getparam timerfd_create"),
        "ioctl": (
            *_where(1, *IOCTLS),
            *_where(1, *_DRIVER_LETTERS, mask=0xFF00),
            *_where(1, 0, mask=0xFFFFFF00),
            *_where(1, *_SHARED_MEMORY),
        ),
    }
)

#: The calls of a node's warden: it reads refusals, answers them, writes lines, and removes the node's socket.
WARDEN = CallPolicy(
    {
        **_any(
            "read write poll ppoll recvmsg close mmap munmap mremap mprotect madvise brk rt_sigaction "
            "rt_sigprocmask rt_sigreturn restart_syscall gettimeofday time getpid gettid unlink unlinkat "
            "exit exit_group"
        ),
        **TIME_AND_WAITING,
        # SECCOMP_IOCTL_NOTIF_RECV and SECCOMP_IOCTL_NOTIF_SEND.
        "ioctl": _where(1, 0xC0502100, 0xC0182101),
    }
)

#: Programs that Flower runs at a courier: they reach the network and start further ones.
COURIER = NODE | CallPolicy(
    {
        **_any(
            "socketpair connect bind listen setsockopt getsockopt sendmsg recvmsg sendmmsg recvmmsg "
            "epoll_create epoll_create1 epoll_ctl epoll_wait epoll_pwait epoll_pwait2 eventfd eventfd2 "
            "timerfd_create timerfd_settime timerfd_gettime signalfd4 "
            "fork vfork execve wait4 waitid kill tgkill tkill getpgid getpgrp setpgid getsid setsid rt_sigsuspend "
            "rt_sigtimedwait rt_sigpending pidfd_open pidfd_send_signal getrlimit setrlimit getresuid getresgid "
            "getgroups getrusage times sysinfo alarm setitimer getitimer pause chdir fchdir truncate link linkat "
            "symlink symlinkat statfs fstatfs sendfile copy_file_range fallocate flock getdents sync_file_range msync "
            "mincore mlock munlock capget umask"
        ),
        # TCP, UDP, this machine's own sockets, and the kernel's tables of addresses (getaddrinfo asks them).
        "socket": (
            (
                Check(0, (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6)),
                Check(1, (socket.SOCK_STREAM, socket.SOCK_DGRAM), _SOCKET_TYPE),
            ),
            (Check(0, (socket.AF_NETLINK,)), Check(2, (0,))),
        ),
        # Only for itself.
        "sched_getscheduler": _where(0, 0),
        "sched_getparam": _where(0, 0),
        "getpriority": _where(1, 0),
        # A child or a thread, in no namespace of its own and under no other parent.
        "clone": _where(0, 0, mask=NEW_NAMESPACES | _CLONE_PARENT),
        # Besides: how many bytes wait (FIONREAD), a terminal's size (TIOCGWINSZ), the group in front (TIOCGPGRP).
        "ioctl": _where(1, *IOCTLS, 0x541B, 0x5413, 0x540F),
        # PR_SET_PDEATHSIG, GET_PDEATHSIG, GET_DUMPABLE, SET_DUMPABLE, SET_NO_NEW_PRIVS, CAPBSET_READ, GET_SECUREBITS,
        # SET_CHILD_SUBREAPER, GET_CHILD_SUBREAPER besides.
        "prctl": _where(0, *PRCTLS, 1, 2, 3, 4, 38, 23, 27, 36, 37),
    },
    {
        # Flower gives its copies of files modes, owners and times, and fails if it cannot. Whoever owns the file,
        # nothing is changed.
        **_answered(
            "chmod fchmod fchmodat fchmodat2 chown fchown lchown fchownat utime utimes futimesat utimensat "
            "setxattr lsetxattr fsetxattr removexattr lremovexattr fremovexattr",
            0,
        ),
        # Attributes of files could carry content, so the answer is that there are none.
        **_answered("getxattr lgetxattr listxattr llistxattr fgetxattr flistxattr", errno.EOPNOTSUPP),
    },
)
