"""Tests of one node's files, keys, clock and confinement, with the node's own rights.

Nothing is changed.
"""

import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from protocol.commands.doctor_findings import Finding, failure, tried
from protocol.commands.doctor_machine import clock, gpu_findings, guard_findings, kernel
from protocol.commands.doctor_trial import try_confined
from protocol.confinement import privileges
from protocol.confinement.guards import NODE
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
from protocol.node import launcher
from protocol.node.configuration import NodeConfiguration, NodeTable, OtherRoleError, check, node_table, read
from protocol.node.reachable_files import check_apart, node_rules
from protocol.transport.local_socket import MAX_PATH_BYTES, load_secret
from protocol.transport.simulation_paths import is_simulated
from protocol.trust.policy_file import load_policy
from protocol.trust.role import Role
from protocol.trust.trust_file import read_trust

_MOST_KEY_BYTES = 16 * 1024
_DAY = 86_400


def examine_node(path: Path, role: Role, model: str, *, gpu: bool, now: int) -> list[Finding]:
    """Examine the node with this configuration file.

    Args:
        path: its configuration file.
        role: the role that it must have.
        model: ``module:class`` of the party's own configuration.
        gpu: also compute on the GPU.
        now: unix seconds.

    Raises:
        OtherRoleError: it is for the other role, so this command does not apply.
    """
    try:
        content = read(path)
        node = node_table(path, content, role)
        configuration: NodeConfiguration = check(path, content, launcher.imported(model))
        user, _ = launcher.node_identity(node)
    except OtherRoleError:
        raise
    except LearngeneError as error:
        return [failure("configuration", error)]
    package = model.partition(".")[0]
    found = [Finding("configuration", "ok", str(path)), kernel(stops=not node.unconfined)]
    with _scratch(node, user) as (state, own):
        rules = node_rules(node.model_copy(update={"state": state}), ("protocol", package))

        def prepare() -> None:
            privileges.give_up(user, capabilities=not node.unconfined)
            launcher.check_readable(node, ("protocol", package))

        reads = [path for path in (node.data, node.trust) if path.exists()]
        child = try_confined(None if node.unconfined else rules, own, NODE, gpu=gpu, before=prepare, reads=reads)
    found += guard_findings(child, "", stops=not node.unconfined)
    found += [_users(node, user)]
    found += _files(node, path, user, role, now)
    with privileges.acting_as(user):
        latest, ledger = _ledger(node, role)
        images = _images(configuration)
    return [
        *found,
        images,
        ledger,
        *gpu_findings(child, node.device, gpu),
        clock() if latest <= now + SKEW else _behind(now, latest, role),
    ]


def _images(configuration: NodeConfiguration) -> Finding:
    if fault := configuration.data_fault():
        found, _, advice = fault.partition("; ")
        return Finding("images", "wrong", found, advice)
    return Finding("images", "ok", f"{configuration.node.data} holds what the party's own work needs")


def _behind(now: int, latest: int, role: Role) -> Finding:
    found, _, advice = behind_line(now, latest, role).partition(". ")
    return Finding("clock", "wrong", found, advice)


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
        yield tried("folders", lambda: _folders(node, path))
        if node.data.is_dir() and stat.S_IMODE(node.data.stat().st_mode) & 0o007:
            advice = f"close it with: chmod 700 {node.data}"
            yield Finding("data", "not enforced", f"no file mode keeps other users from {node.data}", advice)
        if is_simulated(node.socket) and not os.path.lexists(node.secret):
            found = "a simulated run's node: its socket and its secret went when the run ended"
            advice = "leave it: a run starts its nodes itself (learngene run; --resume goes on with an unfinished one)"
            yield Finding("socket", "wrong", found, advice, True)
        else:
            yield tried("socket", lambda: _socket(node))
        yield tried("policy", lambda: _policy(node, role))
    yield tried("keys", lambda: _keys(node, user))
    yield tried("trust", lambda: _trust(node, user, role, now))


def _folders(node: NodeTable, path: Path) -> str:
    check_apart(node, path)
    if not os.access(node.data, os.R_OK | os.X_OK, effective_ids=True):
        raise RunFailedError(f"there is no folder {node.data} that the node can read; set node.data, or its owner")
    if not node.state.exists():
        return f"{node.data} is read; {node.state} is made at the first start"
    _check_private(node.state)
    state_files.check_room(node.state)
    return f"{node.data} is read, {node.state} is the node's own" + ("; it works there now" if _locked(node) else "")


def _check_private(folder: Path) -> None:
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
        put_right = f"chown -R {os.geteuid()} {folder} && chmod 700 {folder}"
        raise RunFailedError(f"{folder} is not the node's own and closed to others; {put_right}")


def _locked(node: NodeTable) -> bool:
    try:
        with state_files.held(node.state):
            return False
    except RunFailedError:
        return True


def _ledger(node: NodeTable, role: Role) -> tuple[int, Finding]:
    """The latest time that the node's checks have used (0: none), and whether its ledger opens."""
    if not os.path.lexists(node.state / LEDGER):
        return 0, Finding("ledger", "ok", "made at the first start")
    try:
        ledger = CollectiveLedger(node.state) if role == "collective" else IndividualLedger(node.state)
        try:
            latest = ledger.latest_time()
        finally:
            ledger.close()
    except LearngeneError as error:
        return 0, failure("ledger", error)
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
