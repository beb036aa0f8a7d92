"""A node's folder with all that it needs to start: what ``init`` makes, and a trust store with a partner's key."""

import os
import stat
import time
from pathlib import Path

from protocol.commands.init_command import initialise
from protocol.keys.party_keys import NodeKeys
from protocol.keys.signing_key import SigningKey
from protocol.trust.role import Role
from protocol.trust.trust_file import write_trust
from protocol.trust.trust_store import TrustStore

ROOT = SigningKey.from_seed(b"r" * 32)
PARTNER = SigningKey.from_seed(b"p" * 32)
_YEAR = 365 * 24 * 3600


def make_node(folder: Path, role: Role, data: Path) -> NodeKeys:
    """Make the folder of a node of this role, whose images lie in ``data``."""
    party = "collective" if role == "collective" else "individual-1"
    keys = initialise(folder, role=role, data=data, party=party, root=ROOT.public_hex)
    store = empty_store().with_key(keys.signing.public_hex, role, party)
    write_trust(folder / "trust.json", store.with_key(PARTNER.public_hex, other_role(role), "partner"), ROOT)
    return keys


def other_role(role: Role) -> Role:
    """The partner's."""
    return "individual" if role == "collective" else "collective"


def empty_store(root: SigningKey = ROOT) -> TrustStore:
    """A trust store without any key."""
    return TrustStore(root=root.public_hex, expires_at=int(time.time()) + _YEAR)


def tree(folder: Path) -> dict[str, tuple[str, bytes]]:
    """All that lies in a folder: the name of everything, with its kind and mode, and the content of every file."""
    found = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        content = path.read_bytes() if stat.S_ISREG(status.st_mode) else b""
        if stat.S_ISLNK(status.st_mode):
            content = os.fsencode(os.readlink(path))
        found[str(path.relative_to(folder))] = (stat.filemode(status.st_mode), content)
    return found
