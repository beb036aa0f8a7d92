"""``trust.json`` on disk: read under the pinned root, again when it changed; written by the owner of the root key."""

import os
import stat
import threading
from pathlib import Path
from typing import Protocol

from protocol.errors import InputError
from protocol.files.atomic import write_atomically
from protocol.files.user_files import named_refusals, open_binary, write_new
from protocol.keys.signing_key import SigningKey
from protocol.trust.signed_trust import MAX_BYTES, TrustSeen, claimed_root, sign_trust, verify_trust
from protocol.trust.trust_store import TrustStore
from protocol.visible_text import visible_name


class TrustMemory(Protocol):
    """A party's memory of the last trust store that it accepted, in its ledger."""

    def trust_seen(self) -> TrustSeen | None: ...

    def remember_trust(self, seen: TrustSeen) -> None: ...


class TrustFile:
    """A node's ``trust.json``. A caller gets what the file holds now, so that a revocation reaches a running node.

    If the file is refused or missing, no key is believed: a key that it held before may have just been revoked.

    Args:
        path: the file; it is replaced as a whole (renamed over), never edited.
        root: the pinned root's public key, 64 hexadecimal digits.
        memory: of this party.
        new_pin: the first call may accept another pinned root than the memory's: that is for the node's own start,
            after its operator has changed the configuration. A command may have been given a stranger's, which would
            make the node's memory forget all that it has seen.
    """

    def __init__(self, path: Path, root: str, memory: TrustMemory, *, new_pin: bool = False) -> None:
        self._path, self._root, self._memory = path, root, memory
        self._new_pin = new_pin
        self._lock = threading.Lock()
        self._read: tuple[_Stamp, TrustStore] | None = None

    def current(self) -> TrustStore:
        """The trust store; its user must check whether it has expired.

        Raises:
            InputError: the file cannot be read, or another root is pinned than before.
            RefusedError: it is refused; see :func:`protocol.trust.signed_trust.verify_trust`.
            StorageFailedError: the memory of it could not be stored, so it is not believed.
        """
        with self._lock:
            if self._read is None or self._read[0] != _stamp_of(self._path):
                stamp, data = _read(self._path)
                known = self._memory.trust_seen()
                if not self._new_pin:
                    check_pin(self._root, known)
                with named_refusals(_named(self._path)):
                    store, seen = verify_trust(data, root=self._root, seen=known)
                    if seen != known:
                        self._memory.remember_trust(seen)
                self._read = stamp, store
                self._new_pin = False
            return self._read[1]


def check_pin(root: str, seen: TrustSeen | None) -> None:
    """Check whether a configuration pins the root that its node has pinned before.

    Raises:
        InputError: it pins another.
    """
    if seen is not None and seen.pinned != root:
        raise InputError(
            f"the configuration pins the root {root[:16]}, and the node of this state folder last believed"
            f" {seen.pinned[:16]}: if its operator has changed that, start the node once; if not, the configuration is"
            " another's"
        )


def read_trust(path: Path, *, root: str | None, seen: TrustSeen | None = None) -> TrustStore:
    """Read a trust store once, and store nothing.

    Args:
        path: ``trust.json``.
        root: the pinned root's public key, 64 hexadecimal digits. None: the root that the file itself names, so the
            check proves only that the file is whole, and nothing about its maker.
        seen: what a party remembers of the last store that it accepted.

    Raises:
        InputError: the file cannot be read.
        RefusedError: it is refused; see :func:`protocol.trust.signed_trust.verify_trust`.
    """
    data = _read(path)[1]
    with named_refusals(_named(path)):
        return verify_trust(data, root=claimed_root(data) if root is None else root, seen=seen)[0]


def write_trust(path: Path, store: TrustStore, root: SigningKey, *, new: bool = False) -> None:
    """Sign a trust store with its root key and write it, replacing the file as a whole.

    Args:
        new: the file must not exist yet.

    Raises:
        InputError: there is no such folder, ``root`` is not the store's root key, or a file is there already.
        StorageFailedError: it could not be stored durably; the old file is unchanged.
    """
    data = sign_trust(store, root)
    if new:
        write_new(path, data, mode=0o644)
        return
    if not path.parent.is_dir():
        raise InputError(f"there is no folder {path.parent}")
    write_atomically(path, data)


#: Device, inode, size, and the times of the last change of content and of anything, in ns.
_Stamp = tuple[int, int, int, int, int]


def _stamp(status: os.stat_result) -> _Stamp:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _stamp_of(path: Path) -> _Stamp | None:
    try:
        return _stamp(os.stat(path))
    except OSError:
        return None


def _read(path: Path) -> tuple[_Stamp, bytes]:
    try:
        with open_binary(path) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise InputError(f"the trust store {path} is not a file")
            # The stamp is never newer than the content, so no change is missed.
            return _stamp(status), file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise InputError(
            f"there is no trust store {path}; get it from whoever keeps the root key (who makes it: trust init)"
        ) from None
    except OSError as error:
        raise InputError(f"cannot read the trust store {path}: {error.strerror}") from None


def _named(path: Path) -> str:
    return f"the trust store {visible_name(path)}"
