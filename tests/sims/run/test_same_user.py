"""The gate of a SuperLink: the user's own processes pass, others do not, and neither does whoever has gone."""

import asyncio
import contextlib
import os
import socket
import struct
from collections.abc import Iterator, MutableMapping
from pathlib import Path
from typing import Any

import pytest

from sims.run.same_user import SameUserOnly, Scope, caller, offered

pytestmark = pytest.mark.skipif(not offered(), reason="this system does not tell whose a connection is")
_NOBODY = 65534


@pytest.fixture
def server() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


@contextlib.contextmanager
def connection(server: socket.socket, user: int | None) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Both ends of a connection that this process opens as ``user``."""
    before = os.geteuid()
    if user is not None:
        os.seteuid(user)
    try:
        client = socket.create_connection(server.getsockname(), 5)
    finally:
        os.seteuid(before)
    own, _ = server.accept()
    with client, own:
        yield client, own


def answer(client: tuple[str, int] | None, server: tuple[str, int] | None, kind: str = "http") -> list[object]:
    """What a caller of a guarded application gets: the application's word, or the refusal's type and status."""
    said: list[object] = []

    async def application(scope: Scope, receive: object, send: object) -> None:
        said.append("answered")

    async def receive() -> MutableMapping[str, Any]:
        return {}

    async def send(message: MutableMapping[str, Any]) -> None:
        said.append((message["type"], message.get("status")))

    scope: Scope = {"type": kind, "client": client, "server": server}
    asyncio.run(SameUserOnly(application)(scope, receive, send))
    return said[:1]


def test_the_users_own_process_is_answered(server: socket.socket) -> None:
    with connection(server, None) as (client, own):
        assert caller(client.getsockname(), own.getsockname()) == os.geteuid()
        assert answer(client.getsockname(), own.getsockname()) == ["answered"]
        assert answer(client.getsockname(), own.getsockname(), "websocket") == ["answered"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can connect as another user")
def test_another_user_is_refused(server: socket.socket) -> None:
    with connection(server, _NOBODY) as (client, own):
        assert caller(client.getsockname(), own.getsockname()) == _NOBODY
        assert answer(client.getsockname(), own.getsockname()) == [("http.response.start", 403)]
        assert answer(client.getsockname(), own.getsockname(), "websocket") == [("websocket.close", None)]


@pytest.mark.parametrize("abruptly", [False, True])
def test_who_has_gone_is_nobody(server: socket.socket, abruptly: bool) -> None:
    """The kernel gives a closed socket to root, which a run of root's must not take for its own."""
    with connection(server, None) as (client, own):
        address = client.getsockname()
        if abruptly:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        assert caller(address, own.getsockname()) is None
        assert answer(address, own.getsockname()) == [("http.response.start", 403)]


def test_a_caller_without_an_address_is_refused() -> None:
    assert answer(None, ("127.0.0.1", 1)) == [("http.response.start", 403)]
    assert answer(("127.0.0.1", 1), None) == [("http.response.start", 403)]


def test_the_start_and_the_end_of_the_server_pass() -> None:
    assert answer(None, None, "lifespan") == ["answered"]


def test_the_table_is_the_kernels() -> None:
    assert Path("/proc/self/net/tcp").read_text().split()[1] == "local_address"
