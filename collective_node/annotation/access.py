"""Access to the annotation page: an address that works once is exchanged for a cookie."""

import hashlib
import secrets
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from collective_node.annotation.unknown_set import place
from protocol.encoding import strict_json
from protocol.errors import InputError
from protocol.files import state_files
from protocol.files.atomic import write_atomically
from protocol.files.private_file import read_private

_ACCESS_FILE = "access.json"
#: Largest file, in bytes: enough for some thousand cookies.
_MAX_FILE_BYTES = 256 * 1024


class _Kept(BaseModel):
    """What a restart needs so that an open page still works: port, place, and digests of cookies."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    port: int = Field(default=0, ge=0, le=65535)
    place: str = Field(pattern=r"^[0-9a-f]{32}$")
    cookies: tuple[str, ...] = ()


class Access:
    """Tokens and cookies of one folder of unknown images.

    A token is shown at the terminal and works once; a cookie lasts until the images are finished. Both are 256 random
    bits. The file (0600) holds only digests of cookies, so reading it gives no access.

    Args:
        folder: of the unknown set.

    Attributes:
        place: first part of every path. A browser sends a cookie to every port of a host. This path, which other
            servers cannot guess, keeps ours from them.

    Raises:
        InputError: the stored tokens and cookies cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / _ACCESS_FILE
        self._tokens: set[str] = set()
        try:
            self._kept = self._remembered()
        except ValueError as error:
            raise InputError(f"{self._path} cannot be read; remove it, and open a new address") from error
        self.place = self._kept.place

    def _remembered(self) -> _Kept:
        """Read the file. The node can write it, so it may hold anything."""
        what, (state, name) = "the page's memory", place(self._path.parent)
        if state_files.look(state, f"{name}/{_ACCESS_FILE}", what, max_bytes=_MAX_FILE_BYTES) is None:
            return _Kept(place=secrets.token_hex(16))
        kept = read_private(self._path, what, max_bytes=_MAX_FILE_BYTES)
        strict_json.parse(kept)
        return _Kept.model_validate_json(kept)

    @property
    def port(self) -> int:
        """The port of the last start; 0 before the first."""
        return self._kept.port

    def address(self, port: int) -> str:
        """Make a new address of the page, which works once; the port is stored for the next start."""
        token = secrets.token_urlsafe(32)
        self._tokens.add(_digest(token))
        if port != self._kept.port:
            self._keep(port=port)
        return f"http://127.0.0.1:{port}/{self.place}/enter?token={token}"

    def exchange(self, token: str) -> str | None:
        """Exchange a token for a new cookie; None if the token is unknown or was used."""
        if _digest(token) not in self._tokens:
            return None
        cookie = secrets.token_urlsafe(32)
        self._keep(cookies=(*self._kept.cookies, _digest(cookie)))
        self._tokens.remove(_digest(token))
        return cookie

    def admits(self, cookie: str | None) -> bool:
        """Check whether a cookie came from ``exchange``, now or before a restart."""
        return cookie is not None and _digest(cookie) in self._kept.cookies

    def end(self) -> None:
        """Forget every token and cookie."""
        self._tokens.clear()
        self._kept = self._kept.model_copy(update={"cookies": ()})
        state_files.remove(self._path)

    def _keep(self, **changes: object) -> None:
        self._kept = self._kept.model_copy(update=changes)
        write_atomically(self._path, self._kept.model_dump_json().encode(), mode=0o600)


def _digest(secret: str) -> str:
    # Looked up by digest, so how long a look-up takes says nothing about a secret.
    return hashlib.sha256(secret.encode()).hexdigest()
