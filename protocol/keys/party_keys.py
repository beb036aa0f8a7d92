"""The private keys of a party, in memory."""

from dataclasses import dataclass

from protocol.keys.encryption_key import EncryptionKey
from protocol.keys.signing_key import SigningKey


@dataclass(frozen=True)
class NodeKeys:
    """The keys with which a node signs and opens learngenes.

    Attributes:
        signing: the party's signing key.
        encryption: the individual's encryption key; a collective has none.
    """

    signing: SigningKey
    encryption: EncryptionKey | None
