"""The private keys of a node, opened once before the process is confined."""

from protocol.keys.encryption_key import EncryptionKey
from protocol.keys.key_file import Unlock
from protocol.keys.party_keys import NodeKeys
from protocol.keys.passphrase import unlock_with
from protocol.keys.signing_key import SigningKey
from protocol.node.configuration import NodeTable


def opener(node: NodeTable) -> Unlock:
    """The key file that opens a node's keys, or a passphrase, which is asked for.

    Raises:
        InputError: the key file cannot be used, or there is no terminal to ask on.
    """
    return unlock_with(node.key_file, purpose=node.party)


def load_keys(node: NodeTable, unlock: Unlock | None = None) -> NodeKeys:
    """Open the keys that a node's configuration names; ``unlock``: None: with its :func:`opener`.

    Raises:
        InputError: a key or the key file is missing, open to others, or does not fit.
    """
    unlock = opener(node) if unlock is None else unlock
    encryption = None if node.encryption_key is None else EncryptionKey.load(node.encryption_key, unlock)
    return NodeKeys(SigningKey.load(node.key, unlock), encryption)
