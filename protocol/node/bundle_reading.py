"""From a bundle file to a verified learngene: with the node to which it was granted, or with a trust store and a
key.
"""

from dataclasses import dataclass
from pathlib import Path

from protocol.encoding.calendar import unix_seconds
from protocol.errors import InputError
from protocol.exchange.audit import Crossings
from protocol.exchange.expectation import Holder
from protocol.exchange.individual_endpoint import IndividualEndpoint
from protocol.exchange.individual_ledger import IndividualLedger
from protocol.exchange.verification import SealedLearngene, VerifiedLearngene, open_sealed, verify_file
from protocol.files.user_files import named_refusals
from protocol.keys.encryption_key import EncryptionKey
from protocol.keys.passphrase import unlock_with
from protocol.keys.signing_key import read_public
from protocol.messages import bundle_file
from protocol.messages.payloads import SKEW
from protocol.node.endpoints import check_ledger, node_of
from protocol.node.load_keys import load_keys
from protocol.trust.policy import Policy
from protocol.trust.policy_file import load_policy
from protocol.trust.trust_file import TrustFile, read_trust
from protocol.trust.trust_store import TrustStore


@dataclass(frozen=True)
class Reading:
    """Result of verifying a bundle file.

    Attributes:
        sealed: the bundle, with signatures and ciphertext verified.
        opened: the content, verified; None if no encryption key was given.
        trust: the trust store under which it was verified.
        pinned: whether the trust store's root was pinned, and not taken from the trust store itself.
        asked_ledger: whether a node's ledger was asked for the chain of releases and for withdrawals.
        late: the file has expired, but the node committed its release in time.
        withdrawn: whether that ledger knows that the collective has withdrawn the release.
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
        config: configuration file of the individual's node to which it was granted. Or instead:
        trust: a trust store.
        root: the pinned root's public key, 64 hexadecimal digits; empty: the trust store's own is believed.
        encryption_key: the audience's; without it the content stays sealed.
        key_file: opens that key; without it a passphrase is asked for.

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
    store = read_trust(trust, root=read_public(root, "--root") if root else None)
    key = None if encryption_key is None else _encryption_key(encryption_key, key_file)
    policy = Policy.for_role("individual")
    with named_refusals(path):
        bundle = bundle_file.read(path, largest_blob=policy.largest_blob)
        sealed = verify_file(*bundle, holder=Holder(), trust=store, policy=policy, now=unix_seconds())
        opened = None if key is None else open_sealed(sealed, key)
    return Reading(sealed, opened, store, pinned=bool(root), asked_ledger=False, late=False, withdrawn=False)


def _read_by_node(path: Path, config: Path) -> Reading:
    node = node_of(config, "individual")
    check_ledger(node)
    keys, policy = load_keys(node), load_policy(node.policy, "individual")
    ledger = IndividualLedger(node.state)
    # Read it once, so that the trust store that is shown is the one used, even if the file is replaced meanwhile.
    store = TrustFile(node.trust, node.root, ledger).current()
    endpoint = IndividualEndpoint(
        keys=keys,
        trust=lambda: store,
        ledger=ledger,
        policy=policy,
        run_id=node.run_id,
        crossings=Crossings(node.state / "crossings.jsonl", node.party, unix_seconds),
    )
    now = endpoint.time(unix_seconds())
    with named_refusals(path):
        opened = endpoint.verify_file(bundle_file.read(path, largest_blob=policy.largest_blob), now)
    sealed = opened.sealed
    return Reading(
        sealed,
        opened,
        store,
        pinned=True,
        asked_ledger=True,
        late=now > min(sealed.release.expires_at, sealed.grant.expires_at) + SKEW,
        withdrawn=endpoint.withdrawn(sealed.release_digest),
    )


def _encryption_key(path: Path, key_file: Path | None) -> EncryptionKey:
    if not path.exists():
        # Check before asking for a passphrase.
        raise InputError(f"there is no encryption key {path}")
    return EncryptionKey.load(path, unlock_with(key_file, purpose=f"the encryption key {path}"))
