"""From a bundle file to a verified learngene: by the node that it was granted to, or by a trust store and a key."""

import time
from dataclasses import dataclass
from pathlib import Path

from protocol import bundle_file
from protocol.desks import IndividualDesk
from protocol.encryption_key import EncryptionKey
from protocol.errors import InputError
from protocol.files import named_refusals
from protocol.messages import SKEW
from protocol.node_desk import node_of, open_desk
from protocol.passphrase import unlock_with
from protocol.policy import Policy
from protocol.trust import TrustStore
from protocol.trust_file import read_trust
from protocol.verification import Holder, SealedLearngene, VerifiedLearngene, open_sealed, verify_file


@dataclass(frozen=True)
class Reading:
    """What came of a bundle file that was not refused.

    Attributes:
        sealed: what its signatures and its ciphertext say.
        opened: the content, verified; None where nobody's encryption key was given.
        trust: the trust store that it was verified under.
        pinned: whether the trust store's root was pinned, and not taken from the trust store itself.
        asked_ledger: whether a node's ledger was asked for the chain of releases and for withdrawals.
        late: the file is past its time; the node committed its release in time.
        withdrawn: that ledger knows that the collective has withdrawn the release.
    """

    sealed: SealedLearngene
    opened: VerifiedLearngene | None
    trust: TrustStore
    pinned: bool
    asked_ledger: bool
    late: bool
    withdrawn: bool


def read_bundle(
    path: Path,
    *,
    config: Path | None = None,
    trust: Path | None = None,
    root: str = "",
    encryption_key: Path | None = None,
    key_file: Path | None = None,
) -> Reading:
    """Verify a bundle file now, as the options of a command say.

    Args:
        config: configuration file of the individual's node that it was granted to; or else:
        trust: a trust store.
        root: the pinned root's public key, 64 hexadecimal digits; empty: the trust store's own is believed.
        encryption_key: the audience's; without it the content stays sealed.
        key_file: what opens that key; without it a passphrase is asked for.

    Raises:
        InputError: too little or too much is given, or a file cannot be read.
        RefusedError: the file is no bundle, or the first step of its verification that fails.
    """
    if config is not None:
        if trust is not None or root or encryption_key is not None or key_file is not None:
            raise InputError("--config names trust store, root and keys itself; give it alone")
        return _read_by_node(path, config)
    if trust is None:
        raise InputError("give --trust or --config, by which the bundle is verified")
    if key_file is not None and encryption_key is None:
        raise InputError("--key-file opens an encryption key; give --encryption-key too")
    store = _store(trust, root)
    key = None if encryption_key is None else _encryption_key(encryption_key, key_file)
    with named_refusals(path):
        bundle = bundle_file.read(path)
        policy = Policy.for_role("individual")
        sealed = verify_file(*bundle, holder=Holder(), trust=store, policy=policy, now=int(time.time()))
        opened = None if key is None else open_sealed(sealed, key)
    return Reading(sealed, opened, store, pinned=bool(root), asked_ledger=False, late=False, withdrawn=False)


def _read_by_node(path: Path, config: Path) -> Reading:
    node, now = node_of(config, "individual"), int(time.time())
    desk = open_desk(node, IndividualDesk)
    with named_refusals(path):
        opened = desk.verify_file(bundle_file.read(path), now)
    sealed = opened.sealed
    return Reading(
        sealed,
        opened,
        _store(node.trust, node.root),
        pinned=True,
        asked_ledger=True,
        late=now > min(sealed.release.expires_at, sealed.grant.expires_at) + SKEW,
        withdrawn=desk.withdrawn(sealed.release_digest),
    )


def _store(path: Path, root: str) -> TrustStore:
    digits = root.strip().lower()
    if root and (len(digits) != 64 or set(digits) - set("0123456789abcdef")):
        raise InputError("--root has 64 hexadecimal digits; copy the public key that keygen printed")
    with named_refusals("the trust store"):
        return read_trust(path, root=digits or None)


def _encryption_key(path: Path, key_file: Path | None) -> EncryptionKey:
    if not path.exists():
        # Before anybody is asked for a passphrase.
        raise InputError(f"there is no encryption key {path}")
    return EncryptionKey.load(path, unlock_with(key_file, purpose=f"the encryption key {path}"))
