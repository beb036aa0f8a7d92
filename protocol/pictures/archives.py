"""Files out of a tar archive of unknown origin, held in memory: nothing is unpacked to the disk."""

import io
import tarfile
from collections.abc import Collection
from pathlib import PurePosixPath

from protocol.errors import InputError

#: Members that an archive may have.
MAX_MEMBERS = 1000


def read_members(data: bytes, names: Collection[str], what: str, *, max_bytes: int) -> dict[str, bytes]:
    """Content of the files of these names in a tar archive, compressed with gzip or not.

    Args:
        what: the archive, for messages.
        max_bytes: of all its files together.

    Raises:
        InputError: it is no such archive, lacks a name or has it twice, holds more, or holds anything but files and
            folders that stay where they are unpacked: a link, a device, an absolute name, ``..``.
    """
    found: dict[str, bytes] = {}
    total = count = 0
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:*") as archive:
            for member in archive:
                total, count = total + member.size, count + 1
                if total > max_bytes or count > MAX_MEMBERS:
                    raise InputError(f"{what} unpacks to more than {max_bytes} bytes or {MAX_MEMBERS} files; refuse it")
                path = PurePosixPath(member.name)
                if not (member.isreg() or member.isdir()) or path.is_absolute() or ".." in path.parts:
                    raise InputError(f"{what} holds what is neither a file nor a folder below it; refuse it")
                if member.isreg() and str(path) in names:
                    if str(path) in found:
                        raise InputError(f"{what} holds {path} twice; refuse it")
                    content = archive.extractfile(member)
                    assert content is not None
                    found[str(path)] = content.read()
    except (tarfile.TarError, OSError, EOFError, ValueError, OverflowError) as error:
        raise InputError(f"{what} is no whole tar archive ({error}); fetch it again") from None
    if missing := sorted(set(names) - set(found)):
        raise InputError(f"{what} lacks {missing[0]}; fetch it again")
    return found
