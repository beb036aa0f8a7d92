"""The bundle file ``.learngene``: release, grant and blob of one learngene in one file.

    magic (8 bytes) | version (uint32) | lengths of release, grant, blob (3 x uint64) | release | grant | blob

Integers are little-endian. One bundle has one encoding: no padding, nothing behind the blob. Reading a file does not
trust it; ``protocol.exchange.verification.verify_file`` verifies the content.
"""

import io
import os
import struct
from pathlib import Path
from typing import BinaryIO, NamedTuple

from protocol.encoding import blob
from protocol.errors import MalformedError, TooLargeError
from protocol.files.user_files import opened, write_new
from protocol.messages import envelope

#: First bytes of the file: no text file begins so, and a transfer that rewrites line ends destroys them (as PNG's
#: signature, RFC 2083, 3.1).
MAGIC = b"\x89LGB\r\n\x1a\n"
VERSION = 1

_HEADER = struct.Struct("<8sI3Q")
_LIMITS = {"release": envelope.MAX_BYTES, "grant": envelope.MAX_BYTES, "blob": blob.MAX_BLOB_BYTES}


class BundleFile(NamedTuple):
    """The three parts, each byte for byte as it travelled. Nothing in them is trusted yet."""

    release: bytes
    grant: bytes
    blob: bytes


def encode(bundle: BundleFile) -> bytes:
    """The bytes of the file.

    Raises:
        ValueError: a part is empty or larger than its limit.
    """
    for (name, limit), part in zip(_LIMITS.items(), bundle, strict=True):
        if not 1 <= len(part) <= limit:
            raise ValueError(f"the {name} has {len(part)} bytes, a bundle file holds 1 to {limit}")
    return b"".join([_HEADER.pack(MAGIC, VERSION, *map(len, bundle)), *bundle])


def decode(data: bytes) -> BundleFile:
    """Read the bytes of a file. The parts are not parsed.

    Raises:
        TooLargeError: a part is larger than its limit.
        MalformedError: not a bundle file, of another version, cut short, or with something behind its end.
    """
    return _read(io.BytesIO(data), len(data), blob.MAX_BLOB_BYTES)


def read(path: Path, *, largest_blob: int = blob.MAX_BLOB_BYTES) -> BundleFile:
    """Read a file: its header and, if that agrees with the file's size, each part once.

    Args:
        largest_blob: bytes of the largest blob that is read, if a policy sets a limit.

    Raises:
        InputError: there is no such file.
        TooLargeError, MalformedError: it is no bundle file; see :func:`decode`.
    """
    with opened(path, "the bundle file") as file:
        return _read(file, os.fstat(file.fileno()).st_size, largest_blob)


def is_bundle(path: Path) -> bool:
    """Whether a file begins as a bundle file does.

    Raises:
        InputError: there is no such file.
    """
    with opened(path, "the file") as file:
        return file.read(len(MAGIC)) == MAGIC


def write(path: Path, bundle: BundleFile) -> None:
    """Write a file that only its owner reads (0600).

    Raises:
        InputError: there is a file already, or no folder for it.
        StorageFailedError: it could not be stored durably.
    """
    write_new(path, encode(bundle))


def _read(file: BinaryIO, size: int, largest_blob: int) -> BundleFile:
    header = file.read(_HEADER.size)
    if header[: len(MAGIC)] != MAGIC:
        raise MalformedError(
            "this is no bundle file; make one with `collective-node grant` or `individual-node bundle`"
        )
    if len(header) < _HEADER.size:
        raise MalformedError("the bundle file ends inside its header; copy it again")
    _, version, *lengths = _HEADER.unpack(header)
    if version != VERSION:
        raise MalformedError(f"the bundle file has the version {version}, this software reads {VERSION}")
    limits = _LIMITS | {"blob": min(largest_blob, blob.MAX_BLOB_BYTES)}
    for (name, limit), length in zip(limits.items(), lengths, strict=True):
        if length > limit:
            raise TooLargeError(f"the bundle file says that its {name} has {length} bytes, at most {limit}")
        if length == 0:
            raise MalformedError(f"the bundle file holds no {name}")
    end = _HEADER.size + sum(lengths)
    if size != end:
        raise MalformedError(f"the bundle file has {size} bytes, its header says {end}; copy it again")
    parts = BundleFile(*(file.read(length) for length in lengths))
    if [len(part) for part in parts] != lengths:
        raise MalformedError("the bundle file was changed while it was read; copy it again")
    return parts
