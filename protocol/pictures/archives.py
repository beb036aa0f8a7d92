"""Files out of a tar archive of unknown origin, held in memory: nothing is unpacked to the disk."""

import gzip
import io
import tarfile
import zlib
from collections.abc import Collection
from pathlib import PurePosixPath

from protocol.errors import InputError

#: Most members of an archive.
MAX_MEMBERS = 1000
#: Most bytes of an archive besides those of its files.
_OF_ITS_OWN = 2 << 20


def read_members(data: bytes, names: Collection[str], what: str, *, max_bytes: int) -> dict[str, bytes]:
    """Content of the files of these names in a tar archive, compressed with gzip or not.

    Args:
        what: the archive, for messages.
        max_bytes: of all its files together.

    Raises:
        InputError: it is no such archive, lacks a name or has it twice, holds more, or holds anything but files and
            folders inside it: a link, a device, an absolute name, ``..``.
    """
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(_unpacked(data, what, max_bytes)), mode="r:") as archive:
            for count, member in enumerate(archive, 1):
                path = PurePosixPath(member.name)
                if not (member.isreg() or member.isdir()) or path.is_absolute() or ".." in path.parts:
                    raise InputError(f"{what} holds what is neither a file nor a folder below it; refuse it")
                if count > MAX_MEMBERS or str(path) in found:
                    raise InputError(f"{what} holds more than {MAX_MEMBERS} files, or one of them twice; refuse it")
                if member.isreg() and str(path) in names:
                    content = archive.extractfile(member)
                    assert content is not None
                    found[str(path)] = content.read()
    except (tarfile.TarError, OSError, EOFError, ValueError, OverflowError, zlib.error):
        raise InputError(f"{what} is no whole tar archive; fetch it again") from None
    if missing := sorted(set(names) - set(found)):
        raise InputError(f"{what} lacks {missing[0]}; fetch it again")
    return found


def _unpacked(data: bytes, what: str, max_bytes: int) -> bytes:
    """The archive after gzip, if it is compressed. This comes first, because a header inside may be a bomb as well as a
    file.
    """
    most = max_bytes + _OF_ITS_OWN
    if data.startswith(b"\x1f\x8b"):
        with gzip.open(io.BytesIO(data)) as packed:
            data = packed.read(most + 1)
    if len(data) > most:
        raise InputError(f"{what} unpacks to more than {max_bytes} bytes; refuse it")
    return data
