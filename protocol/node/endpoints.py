"""A node's endpoint: for the node itself, and for a command that works on its ledger beside it."""

import contextlib
import os
import stat
from pathlib import Path
from typing import TypeVar

from protocol.encoding.calendar import unix_seconds
from protocol.errors import InputError
from protocol.exchange.collective_endpoint import CollectiveEndpoint
from protocol.exchange.collective_ledger import CollectiveLedger
from protocol.exchange.individual_endpoint import IndividualEndpoint
from protocol.exchange.individual_ledger import IndividualLedger
from protocol.exchange.ledger_database import LEDGER
from protocol.files.private_folders import private_folder
from protocol.keys.party_keys import NodeKeys
from protocol.node.configuration import NodeTable, node_table, read
from protocol.node.load_keys import load_keys
from protocol.trust.policy_file import load_policy
from protocol.trust.role import Role
from protocol.trust.trust_file import check_pin, read_trust
from protocol.trust.trust_store import RevocationStatus

EndpointT = TypeVar("EndpointT", CollectiveEndpoint, IndividualEndpoint)


def node_of(config: Path, role: Role) -> NodeTable:
    """The table ``[node]`` of a configuration file of a node of this role.

    Raises:
        InputError: it cannot be read, or is for another role.
    """
    return node_table(config, read(config), role)


def open_endpoint(node: NodeTable, kind: type[EndpointT], *, new: bool = False) -> EndpointT:
    """The node's own endpoint. It uses the node's own ledger, so every answer is the one that the node would give.

    Args:
        new: make the ledger if there is none, and accept another root that the configuration pins, as the node does
            when it starts; if a key, the policy or the trust store is wrong, nothing is made.

    Raises:
        InputError: there is no ledger, a key does not open, or the trust store is missing.
        RefusedError: the trust store is refused. StorageFailedError: the ledger cannot be opened.
    """
    if not new:
        check_ledger(node)
    keys = load_keys(node)
    if new:
        load_policy(node.policy, kind.role)
        read_trust(node.trust, root=node.root).collective_of(kind.role, keys.signing.keyid)
        private_folder(node.state)
    return endpoint_of(node, keys, kind, start=new)


def endpoint_of(node: NodeTable, keys: NodeKeys, kind: type[EndpointT], *, start: bool) -> EndpointT:
    """A node's endpoint, from keys that are open; ``start``: another root may be pinned than before. Raises as
    ``open_endpoint``, except for keys."""
    return kind.open(
        node.state,
        party=node.party,
        keys=keys,
        trust=node.trust,
        root=node.root,
        run_id=node.run_id,
        clock=unix_seconds,
        policy=load_policy(node.policy, kind.role),
        new_pin=start,
    )


def collective_ledger(node: NodeTable) -> CollectiveLedger:
    """The collective's ledger by itself: reading and marking in it need no key.

    Raises:
        InputError: there is none. StorageFailedError: it cannot be opened.
    """
    check_ledger(node)
    return CollectiveLedger(node.state)


def check_ledger(node: NodeTable) -> None:
    """Check whether the node has a ledger.

    Raises:
        InputError: it has none.
    """
    if not os.path.isfile(node.state / LEDGER):
        moved = "" if os.path.isdir(node.state) else ", or was moved and its configuration names the old place"
        raise InputError(f"{node.state} holds no ledger: this node has never run{moved}")


def known_status(config: Path, *, run_id: str, release: str, signer: str) -> RevocationStatus | None:
    """Why a learngene should not be used any more, by the ledger and the trust store of the individual's node with this
    configuration; None if the node is gone, belongs to another user, or has believed no trust store yet. The path may
    have come with a stranger's model, and the file may name anybody's state: nothing is stored there.

    Args:
        run_id: the run of the release.
        release: its digest.
        signer: id of the key that signed it.

    Raises:
        InputError: the configuration or the trust store cannot be read any more, or the configuration pins another root
            than the node.
        RefusedError: the trust store is refused. StorageFailedError: the ledger cannot be read.
    """
    # Not Path.is_file, which fails if a folder on the way is closed to us.
    if not os.path.isfile(config):
        return None
    node = node_of(config, "individual")
    if not (_is_ours(node.state) and os.path.isfile(node.state / LEDGER)):
        return None
    with contextlib.closing(IndividualLedger(node.state, reading=True)) as ledger:
        if release in ledger.withdrawn(run_id):
            return "withdrawn"
        # Use the node's own memory: an older trust store than the accepted one may lack the revocation.
        seen = ledger.trust_seen()
    if seen is None:
        return None
    check_pin(node.root, seen)
    store = read_trust(node.trust, root=node.root, seen=seen)
    return "compromised" if store.is_compromised(signer) else None


def _is_ours(folder: Path) -> bool:
    """Whether a folder is this user's and closed to others. A path that came with a model may name any
    folder, and a database that a stranger made is not opened."""
    try:
        status = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o077
