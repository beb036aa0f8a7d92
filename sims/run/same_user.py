"""The gate of a run's SuperLink: it answers the user who started it and no other user of this machine.

Flower 1.41 cannot identify its caller (its account login is a service of its makers). The kernel knows: proc_net(5)
names the user of every socket, and a caller over the loopback is a socket of this machine.
"""

import os
import socket
import struct
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

# psutil lists connections without their users.
_TABLE = Path("/proc/self/net/tcp")
_ESTABLISHED = "01"

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]


def offered() -> bool:
    """Whether this system shows the owner of a connection."""
    return _TABLE.exists()


class SameUserOnly:
    """An ASGI application that refuses (403) every user but that of this process."""

    def __init__(self, application: Application) -> None:
        self._application = application

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or _is_own(scope):
            await self._application(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await send({"type": "http.response.start", "status": 403, "headers": [(b"connection", b"close")]})
            await send({"type": "http.response.body", "body": b"this run belongs to another user\n"})


def caller(client: tuple[str, int], server: tuple[str, int]) -> int | None:
    """User of the open socket at the other end of a connection of this machine; None if there is none.

    Args:
        client, server: IPv4 address and port of either end.
    """
    wanted = [_entry(*client), _entry(*server), _ESTABLISHED]
    for line in _TABLE.read_text("ascii").splitlines()[1:]:
        fields = line.split()
        # A socket without an inode is closed, and belongs to no user.
        if fields[1:4] == wanted and fields[9] != "0":
            return int(fields[7])
    return None


def _is_own(scope: Scope) -> bool:
    client, server = scope.get("client"), scope.get("server")
    return client is not None and server is not None and caller(client, server) == os.geteuid()


def _entry(address: str, port: int) -> str:
    """An address and port as the table has them: the address as one number of this machine, hexadecimal."""
    (number,) = struct.unpack("=I", socket.inet_aton(address))
    return f"{number:08X}:{port:04X}"
