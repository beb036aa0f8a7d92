"""Filters of system calls: an independent reading of what the kernel would do with them."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.confinement import seccomp, system_calls
from protocol.confinement.allowed_calls import COURIER, NODE, WARDEN, CallPolicy, node_policy

ALLOW, EPERM, ENOSYS = 0x7FFF0000, 0x00050001, 0x00050026
MACHINES = ["x86_64", "aarch64"]
PID = 4321
POLICIES = {
    "node": node_policy(PID),
    "node with a GPU": node_policy(PID, cuda=True),
    "warden": WARDEN,
    "courier": COURIER,
}


class Machine:
    """The kernel's machine for filter programs, as its documentation describes it: an independent reading of them."""

    def __init__(self, program: bytes) -> None:
        self.instructions = [
            (int.from_bytes(program[i : i + 2], "little"), program[i + 2], program[i + 3],
             int.from_bytes(program[i + 4 : i + 8], "little"))
            for i in range(0, len(program), 8)
        ]  # fmt: skip

    def verdict(self, architecture: int, number: int, *arguments: int) -> int:
        values = [*arguments, *([0] * (6 - len(arguments)))]
        data = number.to_bytes(4, "little") + architecture.to_bytes(4, "little") + bytes(8)
        data += b"".join(value.to_bytes(8, "little") for value in values)
        accumulator, at = 0, 0
        while True:
            code, if_true, if_false, value = self.instructions[at]
            at += 1
            if code == 0x20:
                accumulator = int.from_bytes(data[value : value + 4], "little")
            elif code == 0x54:
                accumulator &= value
            elif code == 0x06:
                return value
            else:
                holds = {0x15: accumulator == value, 0x35: accumulator >= value}[code]
                at += if_true if holds else if_false


def meant(policy: CallPolicy, name: str, arguments: tuple[int, ...]) -> int:
    """What a policy says of a call, read off its fields."""
    if name in policy.answers:
        return 0x00050000 | policy.answers[name]
    for checks in policy.allowed.get(name, ()):
        if all((arguments[check.argument] & check.mask & 0xFFFFFFFF) in check.values for check in checks):
            return ALLOW
    return EPERM


def telling(policy: CallPolicy) -> list[int]:
    """Values that the checks of a policy ask about, their neighbours, and the same behind a high half."""
    values = {
        value
        for alternatives in policy.allowed.values()
        for checks in alternatives
        for check in checks
        for value in (*check.values, check.mask)
    }
    return sorted({0, 1, 2, *values, *(value | 1 << 32 for value in values), *(value ^ 1 for value in values)})


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("policy", POLICIES)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_filter_says_what_its_policy_says(machine: str, policy: str, data: st.DataObject) -> None:
    chosen = POLICIES[policy]
    filters = Machine(seccomp.filter_program(chosen, machine))
    architecture = system_calls.ARCHITECTURES[machine]
    argument = st.sampled_from(telling(chosen)) | st.integers(0, 2**64 - 1)
    arguments = data.draw(st.tuples(*[argument] * 6))
    for name, number in system_calls.NUMBERS[machine].items():
        assert filters.verdict(architecture, number, *arguments) == meant(chosen, name, arguments), name


@pytest.mark.parametrize("machine", MACHINES)
def test_what_no_policy_can_name_does_not_exist_and_another_architecture_makes_no_call(machine: str) -> None:
    filters = Machine(seccomp.filter_program(NODE, machine))
    architecture, known = system_calls.ARCHITECTURES[machine], set(system_calls.NUMBERS[machine].values())
    for number in range(max(known) + 1, max(known) + 100):
        assert filters.verdict(architecture, number) == ENOSYS
    for number in set(range(max(known))) - known:
        assert filters.verdict(architecture, number) == EPERM
    assert {filters.verdict(0x40000003, number) for number in range(500)} == {EPERM}
    if machine == "x86_64":
        # x32's numbers are a second way to every call.
        assert {filters.verdict(architecture, number | 0x40000000) for number in known} == {ENOSYS}


@pytest.mark.parametrize("machine", MACHINES)
def test_a_nodes_filter_lets_nothing_lead_out(machine: str) -> None:
    filters = Machine(seccomp.filter_program(node_policy(PID), machine))
    architecture, numbers = system_calls.ARCHITECTURES[machine], system_calls.NUMBERS[machine]
    out = """
        socket socketpair connect bind listen sendmsg recvmsg sendmmsg recvmmsg fork execve execveat ptrace bpf mount
        unshare setns chroot pivot_root io_uring_setup process_vm_readv process_vm_writev pidfd_open pidfd_getfd kill
        tkill memfd_create userfaultfd perf_event_open keyctl add_key shmget msgget semget mq_open inotify_init1 flock
        fanotify_init name_to_handle_at open_by_handle_at splice tee vmsplice timer_create setpriority ioprio_set kcmp
        process_madvise chmod fchmod fchmodat chown fchownat utimensat setxattr getxattr link linkat symlink symlinkat
        mknod mknodat setuid setgid setgroups capset personality seccomp landlock_create_ruleset clock_settime
        init_module reboot swapon
    """
    for name in out.split():
        if name in numbers:
            assert filters.verdict(architecture, numbers[name]) == EPERM, name

    def verdict(name: str, *arguments: int) -> int:
        return filters.verdict(architecture, numbers[name], *arguments)

    # A thread as the C library makes it, and no child, no namespace, no other parent.
    assert verdict("clone", 0x3D0F00) == ALLOW
    for flags in (0x11, 0x1200011, 0x3D0F00 | 0x10000000, 0x3D0F00 | 0x8000, 0x4111, 0x3D0F00 & ~0x10000):
        assert verdict("clone", flags) == EPERM, hex(flags)
    assert verdict("clone3") == ENOSYS
    # Signals to itself.
    assert [verdict("tgkill", pid, pid, 9) for pid in (PID, PID + 1, 1)] == [ALLOW, EPERM, EPERM]
    # Leases, notices of changes, owners of signals; the kernel takes the low 32 bits.
    assert {verdict("fcntl", 3, command) for command in (1024, 1026, 8, 10, 15, 1033, 1031, 1 << 32 | 1024)} == {EPERM}
    assert {verdict("fcntl", 3, command) for command in (1, 2, 3, 4, 6, 1030)} == {ALLOW}
    # TIOCSTI, TIOCSWINSZ, TCSETS, TIOCSETD, TIOCSCTTY, TIOCLINUX, SIOCGIFCONF, FS_IOC_SETFLAGS, FICLONE.
    requests = (0x5412, 0x5414, 0x5402, 0x5423, 0x540E, 0x541C, 0x8912, 0x40086602, 0x40049409)
    assert {verdict("ioctl", 0, request) for request in requests} == {EPERM}
    assert {verdict("sched_setaffinity", pid) for pid in (1, PID)} == {EPERM}
    assert {verdict("prlimit64", pid) for pid in (1, PID)} == {EPERM}
    # Clocks of the machine and its own; none of another process, which are negative (clock_getres(2)).
    other = (~PID << 3 | 2) & 0xFFFFFFFF
    for call in ("clock_gettime", "clock_getres", "clock_nanosleep"):
        assert [verdict(call, clock) for clock in (0, 1, 2, 3, other)] == [ALLOW] * 4 + [EPERM]
    # FUTEX_WAIT, private WAKE, WAIT_BITSET; LOCK_PI asks whether a process is there.
    assert [verdict("futex", 0, operation) for operation in (0, 129, 9, 6, 134, 8)] == [ALLOW] * 3 + [EPERM] * 3
    # A new file with a plain mode, and what is there already; no set-user-id program.
    made = 0x40 | 1
    assert [verdict("openat", 0, 0, *given) for given in ((made, 0o600), (0, 0o7777), (made, 0o4755))] == [
        ALLOW,
        ALLOW,
        EPERM,
    ]
    assert [verdict("mkdirat", 0, 0, mode) for mode in (0o700, 0o1777)] == [ALLOW, EPERM]
    assert verdict("umask", 0) == EPERM
    # Only a name that is free, or a file that is replaced: no exchange.
    assert [verdict("renameat2", 0, 0, 0, 0, flags) for flags in (0, 1, 2)] == [ALLOW, EPERM, EPERM]


@pytest.mark.parametrize("machine", MACHINES)
def test_a_gpu_opens_a_terminal_to_nobody(machine: str) -> None:
    filters = Machine(seccomp.filter_program(node_policy(PID, cuda=True), machine))
    architecture, numbers = system_calls.ARCHITECTURES[machine], system_calls.NUMBERS[machine]
    for request in (0x5412, 0x5414, 0x5402, 0x5423, 0x540E, 0x541C, 0x8912):
        assert filters.verdict(architecture, numbers["ioctl"], 0, request) == EPERM
    # NV_ESC_RM_ALLOC, UVM_INITIALIZE, a small request of UVM.
    for request in (0xC020462B, 0x30000001, 0x25):
        assert filters.verdict(architecture, numbers["ioctl"], 0, request) == ALLOW


@pytest.mark.parametrize(
    ("machine", "header", "prefix"),
    [("x86_64", "x86_64-linux-gnu/asm/unistd_64.h", "__NR_"), ("aarch64", "asm-generic/unistd.h", "__NR")],
)
def test_names_and_numbers_agree_with_the_kernels_headers(machine: str, header: str, prefix: str) -> None:
    path = Path("/usr/include") / header
    if not path.exists():
        pytest.skip(f"the kernel's header {header} is not installed")
    found = {
        words[1].removeprefix(prefix).removeprefix("3264").removeprefix("_"): int(words[2])
        for words in map(str.split, path.read_text().splitlines())
        if len(words) == 3 and words[0] == "#define" and words[1].startswith(prefix) and words[2].isdigit()
    }
    ours = system_calls.NUMBERS[machine]
    # The same call under the name that 64-bit machines have for it.
    found = {{"fstatat": "newfstatat"}.get(name, name): number for name, number in found.items()}
    known = {name: number for name, number in ours.items() if name in found}
    assert len(known) > 250
    assert known == {name: found[name] for name in known}


def test_every_name_is_a_call_of_some_machine() -> None:
    for policy in POLICIES.values():
        for name in (*policy.allowed, *policy.answers):
            assert any(system_calls.number(name, machine) is not None for machine in MACHINES), name
