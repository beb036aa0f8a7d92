"""The fuzz targets: each reads bytes as a party would, and writes again what it accepted.

Imported under atheris' instrumentation and a limit of memory, so nothing here may import more than it reads with.
"""

import re
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from socket import socket
from typing import cast

from protocol.encoding import blob
from protocol.errors import BadSignatureError, MalformedError, TooLargeError, UnknownKeyError
from protocol.keys.signing_key import SigningKey
from protocol.messages import bundle_file, envelope, payloads
from protocol.messages.payloads import MODELS
from protocol.transport.frame import decode_header, encode_header
from protocol.transport.local_socket import DisconnectedError, receive_frame, send_frame
from protocol.trust.signed_trust import MAX_BYTES, PAYLOAD_TYPE, claimed_root, sign_trust, verify_trust

#: Two roots, of which the first handed over to the second.
OLD_ROOT, ROOT = SigningKey.from_seed(b"o" * 32), SigningKey.from_seed(b"r" * 32)

#: A change of bytes: what a mutation does.
Change = Callable[[bytes], bytes]


class DefectError(Exception):
    """A target accepted bytes that are not the one encoding of what they say."""


@dataclass(frozen=True)
class Target:
    """One reader of the protocol.

    Attributes:
        reencode: reads the bytes and writes again what was read; raises one of ``refusals``, and nothing else.
        refusals: what the reader's docstring says that it raises.
        inside: applies a change to the text that lies inside the bytes, and makes lengths and encodings around it fit,
            so that mutations reach what is read last.
    """

    reencode: Callable[[bytes], bytes]
    refusals: tuple[type[Exception], ...]
    inside: Callable[[bytes, Change], bytes]

    def accepts(self, data: bytes) -> bool:
        """Whether the bytes were accepted.

        Raises:
            DefectError: they were, and have another encoding. Whatever else comes out is a defect too.
        """
        try:
            again = self.reencode(data)
        except self.refusals:
            return False
        if again != data:
            raise DefectError(
                f"{len(data)} bytes were accepted; the one encoding of what they say has {len(again)} other bytes"
            )
        return True


class Line:
    """A socket in memory: what is to arrive comes in small pieces, then the other side has closed."""

    def __init__(self, arriving: bytes) -> None:
        self.arriving = arriving
        self.position = 0
        self.sent = bytearray()

    @property
    def socket(self) -> socket:
        """Itself: it has what ``protocol.transport.local_socket`` needs of a socket to send and to receive."""
        return cast("socket", self)

    def settimeout(self, seconds: float) -> None:
        assert seconds > 0

    def recv(self, size: int) -> bytes:
        piece = self.arriving[self.position : self.position + min(size, 64)]
        self.position += len(piece)
        return piece

    def send(self, data: memoryview) -> int:
        self.sent += data[:64]
        return min(len(data), 64)


def _envelope(data: bytes) -> bytes:
    opened = envelope.parse(data)
    again = envelope.encode(opened)
    model = MODELS.get(opened.payload_type)
    if again != data or model is None:
        return again
    payload = payloads.encode(payloads.decode(model, opened.payload))
    return envelope.encode(replace(opened, payload=payload))


def _inside_envelope(data: bytes, change: Change) -> bytes:
    try:
        opened = envelope.parse(data)
    except (MalformedError, TooLargeError):
        return change(data)
    return envelope.encode(replace(opened, payload=_padded(change(opened.payload), len(opened.payload))))


def _padded(payload: bytes, size: int) -> bytes:
    """The payload with as many zeros in its ``pad`` as it takes to have ``size`` bytes, where it has a pad."""
    pad = re.search(rb'"pad":"(0*)', payload)
    if pad is None:
        return payload
    zeros = max(0, len(pad[1]) + size - len(payload))
    return payload[: pad.start(1)] + b"0" * zeros + payload[pad.end(1) :]


def _header(data: bytes) -> bytes:
    return blob.encode(blob.decode(data))


def _inside_header(data: bytes, change: Change) -> bytes:
    start = 8 + int.from_bytes(data[:8], "little")
    text = change(data[8:start].rstrip(b" "))
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[start:]


def _frame(data: bytes) -> bytes:
    line = Line(data)
    send_frame(line.socket, receive_frame(line.socket))
    # What follows a frame is not read yet.
    return bytes(line.sent) + data[line.position :]


def _inside_frame(data: bytes, change: Change) -> bytes:
    start = 4 + int.from_bytes(data[:4], "big")
    text = change(data[4:start])
    return struct.pack(">I", len(text)) + text + data[start:]


def _frame_header(data: bytes) -> bytes:
    frame, sizes = decode_header(data)
    # A range has a length and takes no memory: the header only announces its parts.
    return encode_header(replace(frame, parts={name: cast(bytes, range(size)) for name, size in sizes.items()}))


def _bundle_file(data: bytes) -> bytes:
    return bundle_file.encode(bundle_file.decode(data))


def _trust(data: bytes) -> bytes:
    claimed_root(data)
    opened = envelope.parse(data, max_bytes=MAX_BYTES)
    # The signature is made to fit, so that mutations reach what is read behind it: here the root itself is malicious.
    signature = ROOT.sign(envelope.pre_authentication_encoding(PAYLOAD_TYPE, opened.payload))
    signed = envelope.encode(replace(opened, keyid=ROOT.keyid, signature=signature))
    first = OLD_ROOT if OLD_ROOT.public_hex.encode("ascii") in opened.payload else ROOT
    store, _ = verify_trust(signed, root=first.public_hex, seen=None)
    again = sign_trust(store, ROOT)
    return data if again == signed else again


def _inside_trust(data: bytes, change: Change) -> bytes:
    try:
        opened = envelope.parse(data, max_bytes=MAX_BYTES)
    except (MalformedError, TooLargeError):
        return change(data)
    return envelope.encode(replace(opened, payload=change(opened.payload)))


def whole(data: bytes, change: Change) -> bytes:
    """The change of the bytes themselves."""
    return change(data)


_REFUSALS = (MalformedError, TooLargeError)

TARGETS = {
    "envelope": Target(_envelope, _REFUSALS, _inside_envelope),
    "header": Target(_header, _REFUSALS, _inside_header),
    "frame": Target(_frame, (*_REFUSALS, DisconnectedError), _inside_frame),
    "frame-header": Target(_frame_header, _REFUSALS, whole),
    "bundle-file": Target(_bundle_file, _REFUSALS, whole),
    "trust": Target(_trust, (*_REFUSALS, UnknownKeyError, BadSignatureError), _inside_trust),
}


def named(name: str) -> Target:
    """The target of that name; ends the program where there is none."""
    if name not in TARGETS:
        raise SystemExit(f"there is no target {name}; there are {', '.join(TARGETS)}")
    return TARGETS[name]
