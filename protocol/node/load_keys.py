"""The private keys of a node, opened once before the process is confined."""

from protocol.keys.encryption_key import EncryptionKey
from protocol.keys.party_keys import NodeKeys
from protocol.keys.passphrase import unlock_with
from protocol.keys.signing_key import SigningKey
from protocol.node.configuration import NodeTable


def load_keys(node: NodeTable) -> NodeKeys:
    """Open the keys that a node's configuration names, with its key file or a passphrase that is asked for.

    Raises:
        InputError: a key or the key file is missing, open to others, or does not fit.
    """
    unlock = unlock_with(node.key_file, purpose=node.party)
    encryption = None if node.encryption_key is None else EncryptionKey.load(node.encryption_key, unlock)
    return NodeKeys(SigningKey.load(node.key, unlock), encryption)
