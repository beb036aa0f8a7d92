"""What holds on this machine and at this node, tried out as the node itself would find it; nothing is changed.

What confinement forbids is tried in a child that confines itself as the node does, because nothing undoes that.
"""

import ctypes
import fcntl
import json
import os
import platform
import select
import shutil
import signal
import stat
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ValidationError

from protocol.confinement import guards, landlock, namespaces, privileges, seccomp, warden
from protocol.confinement.guards import COURIER, GUARDS, NODE, Profile
from protocol.confinement.landlock import Access
from protocol.confinement.privileges import User
from protocol.encoding.calendar import moment
from protocol.errors import LearngeneError, RunFailedError
from protocol.exchange.collective_ledger import CollectiveLedger
from protocol.exchange.endpoint import behind_line
from protocol.exchange.individual_ledger import IndividualLedger
from protocol.exchange.ledger_database import LEDGER
from protocol.files import state_files
from protocol.files.private_file import read_private
from protocol.keys.signing_key import key_identifier
from protocol.messages.payloads import SKEW
from protocol.node import confine, launcher
from protocol.node.access_rules import check_apart, courier_rules, gpu_devices, gpu_rules, node_rules, program_rules
from protocol.node.configuration import STRICT, NodeTable, OtherRoleError, check, node_table, read
from protocol.transport.local_socket import MAX_PATH_BYTES, load_secret
from protocol.transport.simulation_paths import is_simulated
from protocol.trust.policy_file import load_policy
from protocol.trust.trust_file import read_trust
from protocol.trust.trust_store import Role

Verdict = Literal["ok", "not enforced", "wrong"]

_KERNEL_ADVICE = "use Linux 6.12 or newer with lsm=landlock, or accept it with unconfined = true"
_MOST_KEY_BYTES, _MOST_LOG_BYTES = 16 * 1024, 64 * 1024
_DAY = 86_400
#: For a child; loading torch and waking a GPU takes long the first time.
_PATIENCE = 300.0
_CLOCK_NOT_SET = 5  # TIME_ERROR of adjtimex(2)


@dataclass(frozen=True)
class Finding:
    """One line of what was found.

    Attributes:
        subject: what was looked at.
        verdict: ``wrong`` is to be put right; ``not enforced`` is what the operating system does not see to here.
        found: in words.
        advice: what to do; empty where all is well.
        stops: whether a node does not start with it.
    """

    subject: str
    verdict: Verdict
    found: str
    advice: str = ""
    stops: bool = False


def starts(findings: Iterable[Finding]) -> bool:
    """Whether a node would start."""
    return not any(finding.stops for finding in findings)


def examine_machine(*, gpu: bool) -> list[Finding]:
    """What this machine offers to nodes and couriers that this user starts. ``gpu``: compute on it, too."""
    found = [_kernel(stops=True)]
    with tempfile.TemporaryDirectory(prefix="learngene-doctor-") as name:
        folder = Path(name)
        rules = program_rules(["protocol"]) | gpu_rules() | {folder: landlock.OWN}
        child = _confined(rules, folder, NODE, gpu=gpu)
        found += _guards(child, "node: ", stops=True)
        found += _guards(_confined(courier_rules(folder, ()), folder, COURIER), "courier: ", stops=False)
    root = os.geteuid() == 0
    found.append(Finding("user", "ok", f"{os.geteuid()}" + (", root: [node] user lets a node go on as another" * root)))
    return [*found, simulation(), *_gpu(child, "auto", gpu), clock()]


def simulation() -> Finding:
    """Whether ``learngene run`` gets a network of its own here, which no other user of this machine reaches."""
    refused = namespaces.offered()
    if not refused:
        return Finding("simulation", "ok", "a run works in a network of its own")
    advice = "other users of this machine are refused, but can connect; allow user namespaces to keep them out"
    return Finding("simulation", "not enforced", f"a run works on the machine's loopback: {refused}", advice)


def examine_node(path: Path, role: Role, model: str, *, gpu: bool, now: int) -> list[Finding]:
    """What holds for the node with this configuration file.

    Args:
        path: its configuration file.
        role: whose it must be.
        model: ``module:class`` of the party's own configuration.
        gpu: compute on the GPU, too.
        now: unix seconds.

    Raises:
        OtherRoleError: it is the other role's, so that nothing here concerns it.
    """
    try:
        content = read(path)
        node = node_table(path, content, role)
        check(path, content, launcher.imported(model))
        user, _ = launcher.node_identity(node)
    except OtherRoleError:
        raise
    except LearngeneError as error:
        return [_failure("configuration", error)]
    package = model.partition(".")[0]
    found = [Finding("configuration", "ok", str(path)), _kernel(stops=not node.unconfined)]
    with _scratch(node, user) as (state, own):
        rules = node_rules(node.model_copy(update={"state": state}), ("protocol", package))

        def prepare() -> None:
            privileges.give_up(user, capabilities=not node.unconfined)
            launcher.check_readable(node, ("protocol", package))

        reads = [path for path in (node.data, node.trust) if path.exists()]
        child = _confined(None if node.unconfined else rules, own, NODE, gpu=gpu, before=prepare, reads=reads)
    found += _guards(child, "", stops=not node.unconfined)
    found += [_users(node, user)]
    found += _files(node, path, user, role, now)
    with privileges.acting_as(user):
        latest, ledger = _ledger(node, role)
    return [
        *found,
        ledger,
        *_gpu(child, node.device, gpu),
        clock() if latest <= now + SKEW else _behind(now, latest, role),
    ]


def clock() -> Finding:
    """Whether the kernel knows that something keeps its clock right; messages allow 300 s."""
    # A struct timex that asks and sets nothing.
    state = ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(512))
    said = moment(int(time.time()))
    if state in (-1, _CLOCK_NOT_SET):
        advice = "have it set by a time service (timedatectl set-ntp true); messages more than 300 s off are refused"
        return Finding("clock", "not enforced", f"{said}, and nothing is known to keep it right", advice)
    return Finding("clock", "ok", said)


def _behind(now: int, latest: int, role: Role) -> Finding:
    found, _, advice = behind_line(now, latest, role).partition(". ")
    return Finding("clock", "wrong", found, advice)


class _Child(BaseModel):
    """What a confined child reports.

    Attributes:
        guards: each guard, and whether it holds.
        unread: what it needs and cannot read, with the reason.
        devices: each of the GPUs' files, and why it cannot be opened; empty where it can.
        computed: name of the GPU that it computed on.
        trained: whether a step of training went well.
        refused: system calls that it was refused meanwhile.
        error: why it came to nothing.
    """

    model_config = STRICT

    guards: dict[str, bool] = {}
    unread: dict[str, str] = {}
    devices: dict[str, str] = {}
    computed: str = ""
    trained: bool = False
    refused: list[str] = []
    error: str = ""


def _confined(
    rules: dict[Path, Access] | None,
    own: Path,
    profile: Profile,
    *,
    gpu: bool = False,
    before: Callable[[], None] = lambda: None,
    reads: Sequence[Path] = (),
) -> _Child:
    """Try everything in a child that confines itself; ``rules`` None: one that does not."""

    def look() -> _Child:
        noted = rules is not None and profile is NODE and confine.offered()
        log = os.open(own, os.O_TMPFILE | os.O_RDWR, 0o600) if noted else -1
        guard = warden.start(log, None) if noted else None
        before()
        cuda = bool(gpu_devices())
        if rules is None:
            found = guards.look(profile)
        else:
            found = confine.restrict(rules, own, profile, cuda=cuda, warden=guard)
        unread = {str(path): reason for path in reads if (reason := _reason(partial(_read, path)))}
        return _Child(
            guards={guard.name: guard.enforced for guard in found.guards},
            unread=unread,
            devices={str(path): _reason(partial(_open, path)) for path in gpu_devices()},
            computed=_compute() if gpu else "",
            trained=profile is NODE and _train(),
            refused=warden.refused_calls(os.pread(log, _MOST_LOG_BYTES, 0).decode()) if noted else [],
        )

    reported = _in_child(look)
    return reported.model_copy(update={"guards": dict.fromkeys(profile.guards, False) | reported.guards})


def _in_child(work: Callable[[], _Child]) -> _Child:
    """What ``work`` reports in a child of this process, which changes nothing in this one."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            try:
                reported = work()
            except LearngeneError as error:
                reported = _Child(error=str(error))
            except BaseException as error:  # whatever it is, it is what the parent wants to know
                reported = _Child(error=f"{type(error).__name__}: {error}")
            os.write(writing, reported.model_dump_json().encode())
        finally:
            os._exit(0)
    os.close(writing)
    data, deadline = b"", time.monotonic() + _PATIENCE
    try:
        while select.select([reading], [], [], max(0.0, deadline - time.monotonic()))[0]:
            piece = os.read(reading, 65_536)
            data += piece
            if not piece:
                break
        else:
            os.kill(child, signal.SIGKILL)
    finally:
        os.close(reading)
        os.waitpid(child, 0)
    try:
        return _Child.model_validate_json(data)
    except ValidationError:
        return _Child(error="the process that tried it ended without a word, or did not end")


def _read(path: Path) -> None:
    if path.is_dir():
        os.listdir(path)
    else:
        path.read_bytes()


def _open(path: Path) -> None:
    os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))


def _reason(attempt: Callable[[], None]) -> str:
    """Why it fails; empty where it does not."""
    try:
        attempt()
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _compute() -> str:
    import torch

    if not torch.cuda.is_available():
        raise RunFailedError("torch finds no GPU that it can use")
    total = torch.ones(256, 256, device="cuda").matmul(torch.ones(256, 256, device="cuda")).sum().item()
    if total != 256**3:
        raise RunFailedError(f"the GPU computes wrongly: {total}")
    return str(torch.cuda.get_device_name())


def _train() -> bool:
    """One step of training, as a node makes it: threads, convolutions, gradients, a random number, and a sum."""
    import torch

    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.Flatten())
    optimiser = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    network(torch.rand(64, 3, 32, 32)).square().mean().backward()
    before = [parameter.clone() for parameter in network.parameters()]
    optimiser.step()
    return any(not torch.equal(one, other) for one, other in zip(before, network.parameters(), strict=True))


def _kernel(*, stops: bool) -> Finding:
    version = landlock.abi()
    filters = "seccomp" if seccomp.offered() else "no seccomp filter for this machine"
    found = f"Linux {platform.release()}, {platform.machine()}, Landlock ABI {version or 'none'}, {filters}"
    if confine.offered():
        return Finding("kernel", "ok", found)
    return Finding("kernel", "not enforced", found, _KERNEL_ADVICE, stops)


def _guards(child: _Child, prefix: str, *, stops: bool) -> list[Finding]:
    found = [
        Finding(f"{prefix}{name}", "ok", GUARDS[name])
        if enforced
        else Finding(f"{prefix}{name}", "not enforced", f"nothing sees to it: {GUARDS[name]}", _KERNEL_ADVICE, stops)
        for name, enforced in child.guards.items()
    ]
    if child.error:
        found.append(_failure(f"{prefix}confinement", RunFailedError(child.error)))
    elif child.trained:
        refused = f"; refused meanwhile: {', '.join(child.refused)}" if child.refused else ""
        found.append(Finding(f"{prefix}training", "ok", f"a step of training went well{refused}"))
    found += [
        Finding(
            "folders", "wrong", f"the confined node cannot read {path}: {reason}", "give it to the node's user", True
        )
        for path, reason in child.unread.items()
    ]
    return found


def _gpu(child: _Child, device: str, computed: bool) -> Iterator[Finding]:
    if device == "cpu":
        yield Finding("GPU", "ok", "not used: device is cpu")
        return
    closed = [f"{path}: {reason}" for path, reason in child.devices.items() if reason]
    needed = device.startswith("cuda")
    if closed:
        advice = "put the node's user into the group of these files (ls -l), or set device to cpu"
        yield Finding("GPU", "wrong", f"the confined node cannot open {', '.join(closed)}", advice, needed)
    elif not child.devices:
        verdict: Verdict = "wrong" if needed else "ok"
        yield Finding("GPU", verdict, "this machine has none", "set device to cpu or auto" if needed else "", needed)
    else:
        how = (
            f"{child.computed} computes under confinement" if computed and child.computed else "open under confinement"
        )
        yield Finding("GPU", "ok", f"{', '.join(child.devices)}: {how}")


def _users(node: NodeTable, user: User | None) -> Finding:
    if is_simulated(node.socket):
        found = "a simulated run's node: all its parties work as one user, and Landlock parts them"
        return Finding("users", "not enforced", found, "for a user each, give each a site (docs/deployment.md)")
    who = f"user {os.geteuid()}" if user is None else f"user {user.name}"
    if node.socket_group is not None:
        found = f"as configured, the node works as {who}, and its door is open to the group {node.socket_group}"
        return Finding("users", "ok", f"{found}; who its courier is, was not looked at")
    kind = "root, without capabilities" if user is None and os.geteuid() == 0 else who
    found = f"as configured, the node works as {kind}, and only that user's courier can reach it: Landlock parts them"
    advice = "give each its own user: node.user, node.socket_group and courier --user (docs/confinement.md)"
    return Finding("users", "not enforced", found, advice)


def _files(node: NodeTable, path: Path, user: User | None, role: Role, now: int) -> Iterator[Finding]:
    """Folders, keys, policy and trust store, read with the node's own rights. No key appears in a finding."""
    with privileges.acting_as(user):
        yield _tried("folders", lambda: _folders(node, path))
        if node.data.is_dir() and stat.S_IMODE(node.data.stat().st_mode) & 0o007:
            advice = f"close it with: chmod 700 {node.data}"
            yield Finding("data", "not enforced", f"no file mode keeps other users from {node.data}", advice)
        if is_simulated(node.socket) and not os.path.lexists(node.secret):
            found = "a simulated run's node: its socket and its secret went when the run ended"
            advice = "leave it: a run starts its nodes itself (learngene run; --resume goes on with an unfinished one)"
            yield Finding("socket", "wrong", found, advice, True)
        else:
            yield _tried("socket", lambda: _socket(node))
        yield _tried("policy", lambda: _policy(node, role))
    yield _tried("keys", lambda: _keys(node, user))
    yield _tried("trust", lambda: _trust(node, user, role, now))


def _folders(node: NodeTable, path: Path) -> str:
    check_apart(node, path)
    if not os.access(node.data, os.R_OK | os.X_OK, effective_ids=True):
        raise RunFailedError(f"there is no folder {node.data} that the node can read; set node.data, or its owner")
    if not node.state.exists():
        return f"{node.data} is read; {node.state} is made at the first start"
    _check_private(node.state)
    return f"{node.data} is read, {node.state} is the node's own" + ("; it works there now" if _locked(node) else "")


def _check_private(folder: Path) -> None:
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
        put_right = f"chown -R {os.geteuid()} {folder} && chmod 700 {folder}"
        raise RunFailedError(f"{folder} is not the node's own and closed to others; {put_right}")


def _locked(node: NodeTable) -> bool:
    lock = state_files.open_to_read(node.state, state_files.LOCK, "the lock")
    if lock is None:
        return False
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


def _ledger(node: NodeTable, role: Role) -> tuple[int, Finding]:
    """The latest time that the node has decided by (0: none), and whether its ledger opens."""
    if not os.path.lexists(node.state / LEDGER):
        return 0, Finding("ledger", "ok", "made at the first start")
    try:
        ledger = CollectiveLedger(node.state) if role == "collective" else IndividualLedger(node.state)
        try:
            latest = ledger.latest_time()
        finally:
            ledger.close()
    except LearngeneError as error:
        return 0, _failure("ledger", error)
    said = "nothing was decided yet" if latest is None else f"last decided by {moment(latest)}"
    return latest or 0, Finding("ledger", "ok", f"whole, and as this version makes it; {said}")


def _socket(node: NodeTable) -> str:
    size = len(os.fsencode(node.socket))
    if size > MAX_PATH_BYTES:
        raise RunFailedError(f"its path has {size} bytes, the system allows {MAX_PATH_BYTES}; shorten {node.socket}")
    if node.socket_group is None and node.socket.parent.exists():
        _check_private(node.socket.parent)
    load_secret(node.secret, group=None if node.socket_group is None else privileges.find_group(node.socket_group))
    return str(node.socket)


def _policy(node: NodeTable, role: Role) -> str:
    policy = load_policy(node.policy, role)
    return f"{node.policy or 'the default'}, digest {policy.sha256[:16]}"


def _keys(node: NodeTable, user: User | None) -> str:
    if node.key_file is not None:
        keys = launcher.open_keys(node, user)
        return f"{keys.signing.fingerprint}: they open with {node.key_file}"
    for path in (node.key, node.encryption_key):
        if path is not None:
            _read_key(path, user)
    return "a passphrase is asked for at the start; their files are closed to others"


def _read_key(path: Path, user: User | None) -> bytes:
    theirs = user is not None and os.path.exists(path) and path.stat().st_uid == user.uid
    with privileges.acting_as(user if theirs else None):
        return read_private(path, "the key", max_bytes=_MOST_KEY_BYTES)


def _trust(node: NodeTable, user: User | None, role: Role, now: int) -> str:
    with privileges.acting_as(user):
        store = read_trust(node.trust, root=node.root)
    store.check_current(now)
    keyid = key_identifier(bytes.fromhex(json.loads(_read_key(node.key, user))["public"]))
    store.key_for(keyid, role)
    if role == "individual":
        store.only("collective")
    days = (store.expires_at - now) // _DAY
    return (
        f"version {store.version}, {len(store.keys)} keys, this node's among them, {len(store.revoked)} revoked;"
        f" {days} days left"
    )


def _tried(subject: str, look: Callable[[], str]) -> Finding:
    try:
        return Finding(subject, "ok", look())
    except LearngeneError as error:
        return _failure(subject, error)
    except OSError as error:
        return _failure(subject, RunFailedError(f"{error.filename}: {error.strerror}"))


def _failure(subject: str, error: LearngeneError) -> Finding:
    found, _, advice = str(error).partition("; ")
    return Finding(subject, "wrong", found, advice or "put that right, and look again", True)


@contextmanager
def _scratch(node: NodeTable, user: User | None) -> Iterator[tuple[Path, Path]]:
    """A state folder as the node has it, and in it one for temporary files; the node's own may be in use."""
    inside = node.state.is_dir() and node.state.stat().st_uid == (os.geteuid() if user is None else user.uid)
    with privileges.acting_as(user):
        own = Path(tempfile.mkdtemp(prefix="doctor-", dir=node.state if inside else None))
    try:
        yield (node.state if inside else own), own
    finally:
        with privileges.acting_as(user):
            shutil.rmtree(own, ignore_errors=True)
