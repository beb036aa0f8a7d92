"""Access to the annotation page: an address that works once is exchanged for a cookie."""

import hashlib
import secrets


class Access:
    """Tokens and cookies of one start of the page.

    A token is shown at the terminal and works once; a cookie works until the page's server ends. Both are 256 random
    bits. Nothing is stored: a file in the node's state is the node's to write, so a node that was taken over could let
    anybody in; and while the server is away, another program may listen on its port and be sent an open tab's cookie,
    which must be of no use to it later.

    Attributes:
        place: first part of every path. A browser sends a cookie to every port of a host. This path, which other
            servers cannot guess, keeps ours from them.
    """

    def __init__(self) -> None:
        self._tokens: set[str] = set()
        self._cookies: set[str] = set()
        self.place = secrets.token_hex(16)

    def address(self, port: int) -> str:
        """Make a new address of the page, which works once."""
        token = secrets.token_urlsafe(32)
        self._tokens.add(_digest(token))
        return f"http://127.0.0.1:{port}/{self.place}/enter?token={token}"

    def exchange(self, token: str) -> str | None:
        """Exchange a token for a new cookie; None if the token is unknown or was used."""
        if _digest(token) not in self._tokens:
            return None
        self._tokens.remove(_digest(token))
        cookie = secrets.token_urlsafe(32)
        self._cookies.add(_digest(cookie))
        return cookie

    def admits(self, cookie: str | None) -> bool:
        """Check whether a cookie came from ``exchange``."""
        return cookie is not None and _digest(cookie) in self._cookies


def _digest(secret: str) -> str:
    # Looked up by digest, so how long a look-up takes says nothing about a secret.
    return hashlib.sha256(secret.encode()).hexdigest()
