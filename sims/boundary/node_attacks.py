"""Attacks from inside a node process whose program is the attacker's; the control is the same process, unconfined."""

import contextlib
import os
import socket
import sysconfig
from collections.abc import Iterator, Mapping
from pathlib import Path

import protocol
from protocol.confinement import confine
from protocol.errors import RunFailedError
from protocol.socket import Frame
from sims.boundary.attempt import Attack
from sims.boundary.hostile_acts import Outcome
from sims.boundary.hostile_program import ATTACK
from sims.boundary.sites import HOSTILE, Site, started
from sims.boundary.stage import (
    GRANTED,
    HEARD,
    MEMORY,
    PRIVATE,
    STOPPED,
    Attacker,
    Reached,
    Stage,
    Trial,
    attacks_of,
    attributes,
    changes,
    family,
    gets,
    root_only,
    set_stage,
    setting,
    tracing,
    writable,
)

_SAME_METADATA = (
    "the kernel tells name, size and times of a file to whoever may pass through the folders above it, and no filter "
    "sees whose file is asked about; where the parties are two users, the folder's mode (0700) stops it"
)
_SHARED_MACHINE = (
    "whatever two processes both see can carry bits between them; it takes two that were taken over, and only "
    "machines of their own end it"
)
_TERMINAL = (
    "a terminal is one file for what is printed and what is typed, and is open when the process starts; start it as a "
    "service, or with < /dev/null > log 2>&1"
)
# A token and the end of its line.
_TYPED_BYTES = 33
_PROCESS_THERE = (
    "that a process with a number exists, and whose it is, shows in /proc by a name alone; mount /proc with hidepid=2 "
    "and run the parties as two users"
)


def _presence(stage: Stage, evidence: bytes) -> bool:
    return evidence == b"10"


def _unlike(name: str, read: str) -> Reached:
    """By a file of the victim's that no longer holds what it held."""

    def changed(stage: Stage, token: str) -> bool:
        path = stage.victim.data / name
        now = path.read_bytes() if path.exists() else None
        before = stage.victim.marker + b"\n"
        return {
            "grew": now is not None and token.encode() in now,
            "shrank": now == b"",
            "gone": now is None,
            "other": now is not None and now != before,
        }[read]

    return changes(changed)


def _own_changed(name: str) -> Reached:
    """By the token in a file of a site, whichever the attacker's is."""
    return changes(
        lambda stage, token: any(token.encode() in (site.folder / name).read_bytes() for site in stage.sites.all)
    )


def _mode(stage: Stage) -> int:
    return (stage.victim.data / "chmodable").stat().st_mode & 0o7777


_GROUP_CHANGED = changes(lambda stage, token: (stage.victim.data / "chmodable").stat().st_gid == 65534)

TRIALS = [
    # Reading the other party's files, each way in.
    Trial("read the other party's images", "read_file", "opens a file in its data folder", PRIVATE),
    Trial("list the other party's images", "list_folder", "lists its data folder", gets(lambda stage: b"private.bin")),
    Trial(
        "read the other party's signing key",
        "read_key",
        "opens its signing.key",
        gets(lambda stage: stage.victim.node.key.read_bytes()),
    ),
    Trial(
        "read what opens the other party's keys",
        "read_key_file",
        "opens its key.secret",
        gets(lambda stage: (stage.victim.folder / "key.secret").read_bytes()),
    ),
    Trial(
        "read the secret of the other party's socket",
        "read_secret",
        "opens its socket.secret",
        gets(lambda stage: stage.victim.node.secret.read_bytes()),
    ),
    Trial("read the other party's log", "read_log", "opens its node.log", gets(lambda stage: b"individual-1 starts")),
    Trial(
        "read the other party's ledger", "read_ledger", "opens its ledger.db", gets(lambda stage: b"SQLite format 3")
    ),
    Trial("read the machine's accounts", "read_accounts", "opens /etc/passwd", gets(lambda stage: b"root:")),
    Trial("open by a raw system call", "read_by_raw_call", "openat2 by its number, with ctypes", PRIVATE),
    Trial("open by the C library", "read_by_c_library", "fopen and fread, with ctypes", PRIVATE),
    Trial("map another's file into memory", "map_file", "mmap of an image", PRIVATE),
    Trial("open again what a path descriptor names", "reopen_path_descriptor", "O_PATH, then /proc/self/fd", PRIVATE),
    Trial("go through /proc/self/root", "read_through_own_root", "the same file by another path", PRIVATE),
    Trial("go up from the own folder", "read_through_parent_folders", "../../.. and down again", PRIVATE),
    Trial("read from a new thread", "read_from_thread", "a thread that began after the confinement", PRIVATE),
    Trial("read from a child process", "read_from_child", "fork", PRIVATE),
    Trial("read by another program", "read_by_program", "starts cat", PRIVATE),
    Trial(
        "read by a shell",
        "read_by_shell",
        "starts /bin/sh, which reads by itself",
        gets(lambda stage: stage.victim.marker.hex().encode()),
    ),
    Trial("read by a program that lies in memory", "read_by_program_in_memory", "memfd_create and fexecve", PRIVATE),
    Trial("run a program that it wrote", "run_dropped_program", "an executable file in its state", GRANTED),
    Trial("follow a link that it made", "follow_new_link", "a symbolic link in its state", PRIVATE),
    Trial(
        "follow a link that was planted", "follow_planted_link", "a symbolic link somebody left in its state", PRIVATE
    ),
    Trial("link another's file here", "link_here", "a hard link in its state", PRIVATE),
    Trial("move another's file here", "move_here", "rename into its state", PRIVATE),
    Trial("exchange another's file for one of its own", "exchange", "renameat2 with RENAME_EXCHANGE", PRIVATE),
    Trial("win a race with a link", "race_with_link", "a file and a link swapped while one is opened", PRIVATE),
    Trial(
        "open by a file's handle", "open_by_handle", "name_to_handle_at, open_by_handle_at", PRIVATE, lacks=root_only
    ),
    Trial("read an inherited descriptor", "read_inherited", "one that was left open at its start", PRIVATE),
    # Another view of the file system.
    Trial("change the root folder", "change_root", "chroot into the other's data", PRIVATE, lacks=root_only),
    Trial("mount another's folder here", "mount_here", "a bind mount in its state", PRIVATE, lacks=root_only),
    Trial("clone a mount", "clone_mount", "open_tree of the other's data", PRIVATE, lacks=root_only),
    Trial("put another's folder in place of the root", "pivot_root", "pivot_root", PRIVATE, lacks=root_only),
    Trial("make namespaces", "new_namespaces", "unshare: users and mounts of its own", GRANTED, lacks=root_only),
    Trial("start a child in namespaces", "clone_into_namespace", "clone with new users", GRANTED, lacks=root_only),
    Trial("join the other node's namespace", "join_namespace", "setns to its mounts", GRANTED, lacks=root_only),
    Trial("make a device file", "make_device", "mknod in its state", GRANTED, lacks=root_only),
    # Code that comes as data.
    Trial("code in a checkpoint", "load_pickle", "torch.load runs it; it opens an image of the other's", PRIVATE),
    Trial("code in a TorchScript archive", "load_script", "torch.jit.load; it opens an image of the other's", PRIVATE),
    # Writing where others read.
    Trial(
        "leave a file in the other's data",
        "drop_in_data",
        "makes a file there",
        changes(lambda stage, token: (stage.victim.data / "dropped").exists()),
    ),
    Trial(
        "change its own data",
        "drop_in_own_data",
        "makes a file among the images that it learns from",
        changes(
            lambda stage, token: any(
                (site.data / "dropped").exists() for site in (stage.sites.collective, stage.sites.unprotected)
            )
        ),
    ),
    Trial("write to another's file", "write_file", "appends to an image", _unlike("writable", "grew")),
    Trial("cut another's file", "cut_file", "truncate by path", _unlike("cuttable", "shrank")),
    Trial("remove another's file", "remove_file", "unlink", _unlike("removable", "gone")),
    Trial("replace another's file", "replace_file", "rename over an image", _unlike("replaceable", "other")),
    Trial(
        "leave a file in /tmp",
        "drop_in_temporary",
        "where every process reads",
        changes(lambda stage, token: stage.dropped(Path(os.environ.get("TMPDIR", "/tmp")), token)),
    ),
    Trial(
        "leave a file in /dev/shm",
        "drop_in_shared_memory",
        "memory that every process shares",
        changes(lambda stage, token: stage.dropped(Path("/dev/shm"), token)),
    ),
    Trial(
        "leave code in site-packages",
        "drop_in_site_packages",
        "a .pth file there runs in every later process",
        GRANTED,
        lacks=writable(lambda: sysconfig.get_path("purelib")),
    ),
    Trial(
        "leave code in the project's package",
        "drop_in_package",
        "a file beside protocol/__init__.py",
        GRANTED,
        lacks=writable(lambda: str(Path(protocol.__file__).parent)),
    ),
    Trial(
        "leave code in the interpreter's library",
        "drop_in_interpreter",
        "a file beside os.py",
        GRANTED,
        lacks=writable(lambda: sysconfig.get_path("stdlib")),
    ),
    Trial(
        "change its own configuration",
        "change_own_configuration",
        "unconfined = true would hold from the next start",
        _own_changed("config.toml"),
    ),
    Trial("change its own trust store", "change_own_trust", "appends to trust.json", _own_changed("trust.json")),
    # What lies about a file beside its content.
    Trial(
        "open another's file to all",
        "change_mode",
        "chmod",
        changes(lambda stage, token: _mode(stage) == 0o666),
    ),
    Trial(
        "open another's file to all, by a new call",
        "change_mode_by_new_call",
        "fchmodat2",
        changes(lambda stage, token: _mode(stage) == 0o646),
        lacks=lambda stage: "" if _kernel() >= (6, 6) else "this kernel has no fchmodat2 (Linux 6.6)",
    ),
    Trial(
        "change the mode of a system's file",
        "change_mode_of_readable",
        "fchmod of a file that it may read",
        GRANTED,
        lacks=root_only,
    ),
    Trial(
        "give another's file to a group",
        "change_owner",
        "chown",
        _GROUP_CHANGED,
        lacks=root_only,
    ),
    Trial(
        "give it by a descriptor that opens nothing",
        "change_owner_by_descriptor",
        "fchownat of O_PATH",
        _GROUP_CHANGED,
        lacks=root_only,
    ),
    Trial(
        "leave a bit in another's times",
        "change_time",
        "utimensat",
        changes(lambda stage, token: (stage.victim.data / "chmodable").stat().st_atime == 1),
    ),
    Trial(
        "leave an attribute on another's file",
        "set_attribute",
        "setxattr",
        changes(
            lambda stage, token: (
                "user.note" in os.listxattr(stage.victim.data / "chmodable")
                and os.getxattr(stage.victim.data / "chmodable", "user.note") == token.encode()
            )
        ),
        lacks=attributes,
    ),
    Trial("read an attribute of another's file", "get_attribute", "getxattr", MEMORY, lacks=attributes),
    Trial("be told of changes in another's folder", "watch_folder", "inotify", GRANTED),
    Trial("read where another's link leads", "read_link", "readlink", MEMORY, unstoppable=_SAME_METADATA),
    Trial(
        "ask for the size of another's file",
        "ask_size",
        "stat",
        gets(lambda stage: str((stage.victim.data / "listed").stat().st_size).encode()),
        unstoppable=_SAME_METADATA,
    ),
    Trial(
        "ask whether another's file is there",
        "ask_presence",
        "access of a name that exists and of one that does not",
        Reached(evidence=_presence),
        unstoppable=_SAME_METADATA,
    ),
    Trial(
        "tell a refusal from an absence",
        "time_presence",
        "open of a name that exists and of one that does not: by the kind of error, or its time",
        Reached(evidence=_presence),
        unstoppable=_SAME_METADATA,
    ),
    Trial(
        "ask how full the other's disk is",
        "ask_space",
        "statfs",
        gets(lambda stage: str(os.statvfs(stage.victim.data).f_blocks).encode()),
        unstoppable=_SAME_METADATA,
    ),
    # The other node's process.
    Trial("read the other node's memory as a file", "read_memory_file", "/proc/PID/mem", MEMORY, lacks=tracing),
    Trial("read the other node's memory by a call", "read_memory_by_call", "process_vm_readv", MEMORY, lacks=tracing),
    Trial(
        "write the other node's memory",
        "write_memory",
        "process_vm_writev",
        changes(lambda stage, token: token.encode() in stage.scratch()),
        lacks=tracing,
    ),
    Trial("trace the other node", "trace", "ptrace: attach, read words", MEMORY, lacks=tracing),
    Trial("read the other node's environment", "read_environment", "/proc/PID/environ", MEMORY),
    Trial("read the map of the other node's memory", "read_maps", "/proc/PID/maps", gets(lambda stage: b"[stack]")),
    Trial(
        "read the other node's command line",
        "read_command_line",
        "/proc/PID/cmdline",
        gets(lambda stage: b"individual_node"),
    ),
    Trial("go through the other node's root folder", "read_through_its_root", "/proc/PID/root", PRIVATE),
    Trial(
        "find the other node's working folder",
        "read_its_working_folder",
        "/proc/PID/cwd",
        gets(lambda stage: os.fsencode(stage.victim.node.state)),
    ),
    Trial("list the other node's open files", "list_descriptors", "/proc/PID/fd", gets(lambda stage: b"node.log")),
    Trial("take an open file of the other node", "take_descriptor", "pidfd_getfd", GRANTED, lacks=tracing),
    Trial(
        "compare itself with the other node",
        "compare_processes",
        "kcmp",
        Reached(evidence=lambda stage, evidence: True),
    ),
    Trial("ask for the other node's pages", "move_memory", "move_pages", GRANTED),
    Trial("list all processes", "list_processes", "the folder /proc", gets(lambda stage: str(stage.pid).encode())),
    Trial(
        "ask whether a process is there",
        "ask_process",
        "stat of /proc/PID",
        gets(lambda stage: str(os.stat(f"/proc/{stage.pid}").st_uid).encode()),
        unstoppable=_PROCESS_THERE,
    ),
    Trial("stop the other node by a signal", "stop_by_signal", "kill", STOPPED),
    Trial("stop the other node through a descriptor", "stop_by_descriptor", "pidfd_send_signal", STOPPED),
    Trial("stop the other node's first thread", "stop_thread", "tkill", STOPPED),
    Trial("queue a signal for the other node", "queue_signal", "rt_sigqueueinfo", STOPPED),
    Trial(
        "let the kernel signal the other node", "stop_by_owner", "F_SETOWN and F_SETSIG on a socket of its own", STOPPED
    ),
    Trial("change the other node's limits", "limit_other", "prlimit", GRANTED),
    Trial("choose the other node's processors", "pin_other", "sched_setaffinity", GRANTED),
    Trial("choose how the other node is scheduled", "schedule_other", "sched_setscheduler", GRANTED),
    Trial("change the other node's priority", "slow_other", "setpriority", GRANTED),
    Trial("change the other node's priority at the disk", "slow_its_disk", "ioprio_set", GRANTED),
    # Privileges and the kernel.
    Trial(
        "get root's capabilities back",
        "regain_capabilities",
        "by starting a program as user 0",
        gets(lambda stage: b"capabilities True"),
        lacks=root_only,
    ),
    Trial(
        "become another user",
        "run_set_user_id",
        "starts a set-user-id program",
        gets(lambda stage: b"65534"),
        lacks=root_only,
    ),
    Trial("join another group", "join_group", "setgroups", GRANTED, lacks=root_only),
    Trial("put a program into the kernel", "load_kernel_program", "bpf", GRANTED, lacks=root_only),
    Trial("count another's events", "count_events", "perf_event_open", GRANTED, lacks=root_only),
    Trial("handle page faults", "handle_faults", "userfaultfd", GRANTED, lacks=root_only),
    Trial(
        "call past the filter",
        "ring_of_calls",
        "io_uring",
        GRANTED,
        lacks=setting("kernel.io_uring_disabled", ("0",)),
    ),
    Trial("leave a key in the kernel", "leave_key", "add_key in the user's keyring", GRANTED),
    Trial(
        "read the kernel's log", "read_kernel_log", "syslog", Reached(evidence=lambda s, e: bool(e)), lacks=root_only
    ),
    Trial(
        "type into the operator's terminal",
        "type_into_terminal",
        "TIOCSTI on the standard input that it was started with",
        changes(lambda stage, token: stage.typed(token)),
        lacks=setting("dev.tty.legacy_tiocsti", ("1",)),
    ),
    Trial(
        "read the operator's terminal",
        "read_terminal",
        "the standard input that it was started with",
        Reached(evidence=lambda stage, evidence: len(evidence) == _TYPED_BYTES),
        unstoppable=_TERMINAL,
        prepare=lambda stage, token: stage.type(token),
    ),
    # Ways between processes without a file or a socket.
    Trial(
        "share a memory segment",
        "shared_segment",
        "shmget",
        Reached(evidence=lambda stage, evidence: evidence.isdigit()),
    ),
    Trial("attach another's memory segment", "existing_segment", "shmat of a number that is guessed", MEMORY),
    Trial("share a message queue", "message_queue", "msgget, msgsnd", GRANTED),
    Trial("share a semaphore", "semaphore", "semget", GRANTED),
    Trial("share a named queue", "named_queue", "mq_open", GRANTED),
    Trial("lock a file that both may read", "lock_shared_file", "flock", GRANTED, unstoppable=_SHARED_MACHINE),
    Trial(
        "watch how busy the machine is", "read_load", "/proc/stat", gets(lambda s: b"cpu"), unstoppable=_SHARED_MACHINE
    ),
    Trial(
        "watch what others read", "probe_page_cache", "mincore of a shared file", GRANTED, unstoppable=_SHARED_MACHINE
    ),
    # The network.
    Trial("connect by TCP", "connect_tcp", "to 127.0.0.1", HEARD),
    Trial(
        "connect by TCP over IPv6",
        "connect_tcp6",
        "to ::1",
        HEARD,
        lacks=lambda stage: "" if "tcp6" in stage.listeners.addresses else "this machine has no IPv6",
    ),
    Trial("connect from a child process", "connect_by_child", "fork, then TCP", HEARD),
    Trial("connect by another program", "connect_by_shell", "starts an interpreter, which connects by TCP", HEARD),
    Trial("send by UDP", "send_udp", "sendto, which needs no connection", HEARD),
    Trial("find a host by its name", "find_name", "getaddrinfo of localhost", gets(lambda stage: b"127.0.0.1")),
    Trial("listen by TCP", "listen_tcp", "a door of its own", GRANTED),
    Trial("speak to the other node", "connect_other_node", "its socket", gets(lambda stage: b"learngene socket")),
    Trial("connect by a Unix path", "connect_unix_path", "to a listener", HEARD),
    Trial("send to a Unix path", "send_unix_path", "sendto, which needs no connection", HEARD),
    Trial("send with one of a pair", "send_unix_pair", "sendto on a datagram socketpair", HEARD),
    Trial("connect to an abstract socket", "connect_abstract", "no path, so no file's mode", HEARD),
    Trial("send to an abstract socket", "send_abstract", "sendto", HEARD),
    Trial("listen on an abstract socket", "listen_abstract", "a door that no folder's mode guards", GRANTED),
    Trial("open a second door", "listen_in_own_folder", "a Unix socket in its state", GRANTED),
    Trial("take a socket that its courier opened", "receive_descriptor", "recvmsg with SCM_RIGHTS", GRANTED),
    Trial("hand an open file to its courier", "send_descriptor", "sendmsg with SCM_RIGHTS", GRANTED),
    Trial("ask the kernel about the network", "open_netlink", "a netlink socket", GRANTED),
    Trial("send raw packets", "open_raw", "a raw socket", GRANTED, lacks=family(socket.AF_INET, socket.SOCK_RAW, 1)),
    Trial("listen to the wire", "open_packet", "a packet socket", GRANTED, lacks=family(17, socket.SOCK_DGRAM)),
    Trial("reach the hypervisor", "open_vsock", "a vsock socket", GRANTED, lacks=family(40, socket.SOCK_STREAM)),
    Trial(
        "use the kernel's ciphers",
        "open_kernel_cipher",
        "an AF_ALG socket",
        GRANTED,
        lacks=family(38, socket.SOCK_SEQPACKET),
    ),
]


@contextlib.contextmanager
def node_attacks(folder: Path) -> Iterator[list[Attack]]:
    """All attacks on the node, with everything that they need, which ends with the ``with``.

    Args:
        folder: new or empty, and short: sockets lie in it.
    """
    with set_stage(folder) as stage, contextlib.ExitStack() as stack:
        control = stack.enter_context(hostile_node(stage, stage.sites.unprotected, unconfined=True))
        confined: tuple[Attacker, Site, Path] | RunFailedError
        if confine.offered():
            confined = stack.enter_context(hostile_node(stage, stage.sites.collective, unconfined=False))
        else:
            confined = RunFailedError("this kernel does not confine a process")
        yield attacks_of(stage, TRIALS, "node", control, confined)


@contextlib.contextmanager
def hostile_node(stage: Stage, site: Site, *, unconfined: bool) -> Iterator[tuple[Attacker, Site, Path]]:
    """A node process with a hostile program: who makes its attacks, its site, and where it may write.

    It is started as a careless operator starts it: on a terminal, with a descriptor left open.
    """
    left_open = os.open(stage.victim.private, os.O_RDONLY)
    try:
        with started(site, unconfined=unconfined, module=HOSTILE, stdin=stage.terminal, inherited=(left_open,)):

            def attack(act: str, aims: Mapping[str, str]) -> Outcome:
                wish = Frame(ATTACK, words={**aims, "act": act, "inherited": str(left_open)})
                answer = site.ask(wish)
                if answer.word == "refused":
                    raise RunFailedError(f"the hostile node does not attack ({answer.words.get('code', '')})")
                return answer.word, answer.parts.get("evidence", b""), answer.numbers.get("errno", 0)

            yield attack, site, site.node.state / "work"
    finally:
        os.close(left_open)


def _kernel() -> tuple[int, int]:
    major, minor = os.uname().release.split(".")[:2]
    return int(major), int("".join(filter(str.isdigit, minor)) or 0)
