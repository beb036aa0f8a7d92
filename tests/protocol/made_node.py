"""A node's folder with all that it needs to start: what ``init`` makes, and a trust store with its key and a partner's."""

import time
from pathlib import Path

from protocol.keys import SigningKey
from protocol.node import Role
from protocol.node_commands import initialise
from protocol.node_keys import NodeKeys
from protocol.trust import TrustStore
from protocol.trust_file import write_trust

ROOT = SigningKey.from_seed(b"r" * 32)
PARTNER = SigningKey.from_seed(b"p" * 32)
_YEAR = 365 * 24 * 3600


def make_node(folder: Path, role: Role, data: Path) -> NodeKeys:
    """Make the folder of a node of this role, whose images lie in ``data``."""
    party = "collective" if role == "collective" else "individual-1"
    keys = initialise(folder, role=role, data=data, party=party, root=ROOT.public_hex)
    other: Role = "individual" if role == "collective" else "collective"
    store = TrustStore(root=ROOT.public_hex, expires_at=int(time.time()) + _YEAR)
    store = store.with_key(keys.signing.public_hex, role, party).with_key(PARTNER.public_hex, other, "partner")
    write_trust(folder / "trust.json", store, ROOT)
    return keys
