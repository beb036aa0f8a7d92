"""The amount of data that one message of an individual can carry without any check noticing it."""

from collections.abc import Mapping

from protocol.encoding.canonical_json import Value
from sims.boundary.leaks.leak import Honest, altered, fields

#: Fields of an individual's messages that only the receiver can judge, and the bytes that each can carry.
_FREE: Mapping[str, Mapping[str, int]] = {
    "request": {"nonce": 16, "hpke_public": 32},
    "receipt": {"release": 32},
    "abort": {"subject": 32},
}
_TIMES_BYTES = 10


def free_bytes(kind: str) -> int:
    """Bytes that one message of an individual can carry through the gate if its program was taken over: the bound of
    the hidden channel, less what the order of messages and the time between them say."""
    return sum(_FREE[kind].values()) + _TIMES_BYTES


def fullest(honest: Honest, kind: str, data: bytes) -> bytes:
    """The message that carries ``free_bytes(kind)`` bytes of data in all free fields at once."""
    rest = data
    changes: dict[str, Value] = {}
    for name, size in _FREE[kind].items():
        changes[name], rest = rest[:size].hex(), rest[size:]
    number = int.from_bytes(rest[:_TIMES_BYTES], "big")
    changes |= {"issued_at": number >> 40, "expires_at": number & (2**40 - 1)}
    return altered(honest.parts[kind], honest.key, **changes)


def read_fullest(message: bytes, kind: str) -> bytes:
    """The data in a message that :func:`fullest` made."""
    found = fields(message)
    words = bytes.fromhex("".join(str(found[name]) for name in _FREE[kind]))
    times = int(str(found["issued_at"])) << 40 | int(str(found["expires_at"]))
    return words + times.to_bytes(_TIMES_BYTES, "big")
