"""Listeners of every kind to which a process on this machine could send data."""

import contextlib
import secrets
import selectors
import socket
import threading
from pathlib import Path


class Listeners:
    """Listeners, and what they hear.

    Attributes:
        addresses: where they listen, by the names of aims.
    """

    def __init__(self, folder: Path) -> None:
        self._selector, self._over = selectors.DefaultSelector(), threading.Event()
        self.received = bytearray()
        self.addresses: dict[str, str] = {}
        name = secrets.token_hex(8)
        self._add("tcp", socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", 0))
        self._add("udp", socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", 0))
        with contextlib.suppress(OSError):
            self._add("tcp6", socket.AF_INET6, socket.SOCK_STREAM, ("::1", 0))
        for word, kind in (("stream", socket.SOCK_STREAM), ("datagram", socket.SOCK_DGRAM)):
            self._add(f"unix_{word}", socket.AF_UNIX, kind, str(folder / f"{word}.sock"))
            self._add(f"abstract_{word}", socket.AF_UNIX, kind, f"\0boundary-{name}-{word}")
        self._thread = threading.Thread(target=self._listen, name="listeners", daemon=True)

    def __enter__(self) -> "Listeners":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        for key in list(self._selector.get_map().values()):
            assert isinstance(key.fileobj, socket.socket)
            key.fileobj.close()
        self._selector.close()

    def _add(self, name: str, family: int, kind: int, address: tuple[str, int] | str) -> None:
        listener = socket.socket(family, kind)
        listener.bind(address)
        if kind == socket.SOCK_STREAM:
            listener.listen()
        listener.setblocking(False)
        self._selector.register(listener, selectors.EVENT_READ, kind)
        bound = listener.getsockname()
        if isinstance(bound, bytes):
            self.addresses[name] = bound[1:].decode()
        else:
            self.addresses[name] = bound if isinstance(bound, str) else str(bound[1])

    def _listen(self) -> None:
        while not self._over.is_set():
            for key, _ in self._selector.select(0.05):
                listener = key.fileobj
                assert isinstance(listener, socket.socket)
                with contextlib.suppress(OSError):
                    if key.data == socket.SOCK_DGRAM:
                        self.received += listener.recv(4096)
                        continue
                    connection, _ = listener.accept()
                    with connection:
                        connection.settimeout(1.0)
                        self.received += connection.recv(4096)
