"""Start of a node process: with only one thread until the socket is bound and the process confined, then the program.

The order matters: a thread that exists before Landlock stays outside it, and importing torch starts threads. So this
module and all that it imports stay free of torch and numpy.
"""

import contextlib
import importlib
import logging
import os
import socket
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from protocol.confinement import namespaces, privileges
from protocol.confinement.guards import Confinement
from protocol.confinement.isolated_start import WORKING_FOLDER
from protocol.confinement.printer import Printer
from protocol.confinement.printer import start as start_printer
from protocol.confinement.privileges import User
from protocol.confinement.warden import Warden
from protocol.confinement.warden import start as start_warden
from protocol.encoding.log_format import OneLineFormatter
from protocol.errors import InputError
from protocol.files import state_files
from protocol.files.private_folders import open_to_group, socket_folder
from protocol.keys.key_file import Unlock
from protocol.keys.party_keys import NodeKeys
from protocol.node import confine, import_guard, reachable_files
from protocol.node.configuration import NodeConfiguration, NodeTable, check, node_table, read
from protocol.node.load_keys import load_keys, opener
from protocol.node.rehearsal import rehearse, taken
from protocol.node.server import Program, serve
from protocol.output import say
from protocol.transport.local_socket import check_place, listen, load_secret
from protocol.trust.role import Role
from protocol.trust.trust_file import read_trust
from protocol.visible_text import visible_line

#: A node's own log in its state folder.
LOG = "node.log"
_LOCK_SECONDS = 2.0

logger = logging.getLogger(__name__)


def launch(
    path: Path,
    role: Role | None,
    model: str,
    program: str,
    *,
    lifeline: int | None = None,
    unconfined: bool = False,
) -> None:
    """Run a node until it is told to end. If its configuration or files are wrong, nothing is made or changed.

    Args:
        path: its configuration file.
        role: the role that it must have; None: the program serves either role.
        model: ``module:class`` of the party's own :class:`NodeConfiguration`.
        program: ``module:function`` that makes the :class:`Program` from configuration, confinement and keys. Both
            are imported only after the process is confined.
        lifeline: number of an inherited file descriptor; the node ends when its other end closes.
        unconfined: accept to run without confinement, as ``unconfined = true`` in the file does.

    Raises:
        InputError: a setting, folder or file is wrong. RunFailedError: the node cannot or must not start.
    """
    own = model.partition(".")[0]
    import_guard.install(own)
    path = Path(os.path.abspath(path))
    content = read(path)
    node = node_table(path, content, role)
    user, group = node_identity(node)
    start = _Start(path, content, node, model, ("protocol", own), user, group, unconfined or node.unconfined, lifeline)
    if not start.unconfined:
        confine.check_offered()
    # Check before forking or importing: code in the state folder must not run.
    reachable_files.check_apart(node, path)
    os.umask(0o077)
    os.chdir(WORKING_FOLDER)
    # Forbid core files with keys in them, and access to this process or its pipes by other processes of the same user.
    privileges.forbid_core_files()
    privileges.let_others_look(False)
    try:
        _check_none_runs(start)
        unlock = rehearse(lambda: _checked(start))
    except BaseException:
        privileges.let_others_look(True)
        raise
    lock, log = _open_state(start)
    shown, silent = _log_to(log), _prints_into(log)
    warden = printer = None
    if not start.unconfined:
        privileges.close_inherited(*(() if lifeline is None else (lifeline,)))
        # Fork both before keys are in memory, which they would inherit.
        printer = start_printer(user, visible_line)
        warden = start_warden(log, user, keeps=lock, door=node.socket)
    listener = _listen(start)
    try:
        if warden is not None:
            warden.bound()
        # Open keys before the process is confined: a confined one needs no access to key files.
        secret, keys = _load_secret(start), open_keys(node, user, _unlock(node, taken(unlock)))
        privileges.let_others_look(True)
        confined = _confine(start, warden, printer)
        logger.info("%s starts as process %d of user %d: %s", node.party, os.getpid(), os.getuid(), confined.line)
        if node.threads:
            # Read by OpenMP and BLAS when they are loaded.
            os.environ["OMP_NUM_THREADS"] = str(node.threads)
        configuration: NodeConfiguration = check(path, content, imported(model))
        if fault := configuration.data_fault():
            logger.warning("%s", fault)
        make: Callable[[NodeConfiguration, Confinement, NodeKeys], Program] = imported(program)
        made = make(configuration, confined, keys)
        logger.info("%s listens on %s", node.party, node.socket)
        if not shown and not silent:
            _say_ready(node)
        serve(listener, secret, made, lifeline, warden=None if warden is None else warden.channel.fileno())
    finally:
        # A confined process cannot remove it; its warden does.
        with contextlib.suppress(PermissionError):
            node.socket.unlink(missing_ok=True)
        listener.close()
        os.close(lock)


@dataclass(frozen=True)
class _Start:
    """Everything that a node's start needs: see :func:`launch`; the tables of its configuration, the packages of this
    project that it runs, the user that it becomes, and the group of its courier.
    """

    path: Path
    content: dict[str, object]
    node: NodeTable
    model: str
    packages: tuple[str, ...]
    user: User | None
    group: int | None
    unconfined: bool
    lifeline: int | None


def _check_none_runs(start: _Start) -> None:
    """Say that another node works in this state folder before a passphrase is asked for."""
    state = start.node.state
    with privileges.acting_as(start.user):
        # One that is missing or somebody else's is dealt with where it is made.
        if os.access(state, os.R_OK | os.X_OK, effective_ids=True):
            with state_files.held(state, seconds=_LOCK_SECONDS):
                pass


def _checked(start: _Start) -> bytes:
    """Check keys, folders and trust store by reading them as the node will, and return what opens the keys. Called in a
    child, so that no keys are in memory before the warden is forked.

    It imports nothing more: an unconfined process that holds keys must not run other people's code. So only the
    confined node reads the party's own settings and the policy.

    Raises:
        InputError, RefusedError: something is wrong with a folder, a key or the trust store.
    """
    path, node, user = start.path, start.node, start.user
    privileges.end_with_parent()
    if not node.data.is_dir():
        raise InputError(f"{path}: node.data: there is no folder {node.data}")
    _load_secret(start)
    with privileges.acting_as(user):
        check_place(node.socket)
        _check_policy_is_there(node)
    with privileges.acting_as(_owner_of_keys(node, user)):
        unlock = opener(node)
        keys = load_keys(node, unlock)
    with privileges.acting_as(user):
        read_trust(node.trust, root=node.root).collective_of(node.role, keys.signing.keyid)
    privileges.give_up(user, capabilities=not start.unconfined)
    # A change of user resets this.
    privileges.end_with_parent()
    check_readable(node, start.packages)
    return unlock.secret


def _check_policy_is_there(node: NodeTable) -> None:
    if node.policy is None:
        return
    try:
        with open(node.policy, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)):
            pass
    except OSError as error:
        raise InputError(f"cannot read the policy {node.policy}: {error.strerror}") from None


def _open_state(start: _Start) -> tuple[int, int]:
    """Make the state folder and the folder of the socket if they are missing; return the held lock and the log."""
    node = start.node
    privileges.own_folder(node.state, start.user)
    with privileges.acting_as(start.user):
        # The warden of a node that has just ended releases the lock a moment later.
        lock = state_files.hold(node.state, seconds=_LOCK_SECONDS)
        state_files.check_room(node.state)
        log = state_files.open_to_write(node.state, LOG, "the log", os.O_WRONLY | os.O_APPEND)
        socket_folder(node.socket.parent, start.group)
    return lock, log


def _unlock(node: NodeTable, secret: bytes) -> Unlock:
    return Unlock("argon2id" if node.key_file is None else "hkdf-sha256", secret)


def _load_secret(start: _Start) -> bytes:
    return load_secret(start.node.secret, node=None if start.user is None else start.user.uid, group=start.group)


def _listen(start: _Start) -> socket.socket:
    with privileges.acting_as(start.user):
        # Make the secret first: a courier that finds the socket open can then read it.
        if start.group is not None:
            open_to_group(start.node.secret, start.group, 0o640)
        return listen(start.node.socket, group=start.group)


def _confine(start: _Start, warden: Warden | None, printer: Printer | None) -> Confinement:
    """Become the node's user and confine the process."""
    if start.unconfined:
        privileges.give_up(start.user, capabilities=False)
        check_readable(start.node, start.packages)
        return confine.apply(start.node, start.packages, unconfined=True, configuration=start.path)
    notes = _leave_the_network()
    privileges.give_up(start.user, capabilities=True)
    if start.lifeline is not None:
        privileges.end_with_parent()
    check_readable(start.node, start.packages)
    if printer is not None:
        # A terminal, a connection or a file that others write to gives more than a way out for lines.
        printer.take_streams()
    return confine.apply(
        start.node, start.packages, unconfined=False, warden=warden, notes=notes, configuration=start.path
    )


def _leave_the_network() -> tuple[str, ...]:
    """Enter an empty network namespace, and return a note if that is refused. The other guards hold without it."""
    refused = namespaces.enter_network(loopback=False)
    return (f"no network namespace of its own: {refused}",) if refused else ()


def node_identity(node: NodeTable) -> tuple[User | None, int | None]:
    """The user that the node becomes, None if it does not change; and the number of its courier's group, if it has one.

    Raises:
        InputError: there is no such user or group, or only root could become that user.
    """
    group = None if node.socket_group is None else privileges.find_group(node.socket_group)
    return privileges.chosen_user(node.user, *(() if group is None else (group,))), group


def open_keys(node: NodeTable, user: User | None, unlock: Unlock | None = None) -> NodeKeys:
    """A node's keys. If root starts it for ``user``, they belong to that user or to root; root's files the node cannot
    read again. ``unlock``: as for :func:`protocol.node.load_keys.load_keys`.

    Raises:
        InputError: as :func:`protocol.node.load_keys.load_keys`.
    """
    with privileges.acting_as(_owner_of_keys(node, user)):
        return load_keys(node, unlock)


def _owner_of_keys(node: NodeTable, user: User | None) -> User | None:
    theirs = user is not None and os.path.exists(node.key) and node.key.stat().st_uid == user.uid
    return user if theirs else None


def check_readable(node: NodeTable, packages: Iterable[str]) -> None:
    """Check whether this process, as its present user, can read its data and the program.

    Raises:
        InputError: it cannot.
    """
    for path in (node.data, *reachable_files.code_folders(packages)):
        if not os.access(path, os.R_OK | os.X_OK):
            raise InputError(
                f"this node works as the user {os.getuid()}, who cannot read {path}; give it to that user, or install "
                "the program outside anybody's home"
            )


def imported(name: str) -> Any:  # noqa: ANN401 - the caller states the type
    """What ``module:attribute`` names."""
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


def _log_to(log: int) -> bool:
    """Write log records to this descriptor, and to standard error if it is a terminal; return whether it is."""
    handlers: list[logging.Handler] = [logging.StreamHandler(open(os.dup(log), "w", encoding="utf-8"))]  # noqa: SIM115
    shown = sys.stderr.isatty()
    if shown:
        handlers.append(logging.StreamHandler())
    for handler in handlers:
        handler.setFormatter(OneLineFormatter())
    logging.basicConfig(level=logging.INFO, handlers=handlers, force=True)
    return shown


def _prints_into(log: int) -> bool:
    """Whether standard output goes into the log itself, or nowhere."""
    try:
        return os.path.samestat(os.fstat(1), os.fstat(log))
    except OSError:
        return True


def _say_ready(node: NodeTable) -> None:
    """Print one line if no terminal shows the log."""
    # The reader of our output may have closed the pipe.
    with contextlib.suppress(OSError):
        say(f"{node.party} listens on {node.socket}; its log is {node.state / LOG}")
