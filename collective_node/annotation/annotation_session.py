"""What ``collective-node annotate`` does: show the unknown images of a node on a local page until they are labelled."""

import contextlib
import hashlib
import os
import socket
import sys
import tempfile
import threading
import webbrowser
from collections.abc import Callable, Iterator
from html import escape
from pathlib import Path

import typer
import uvicorn
from starlette.applications import Starlette

from collective_node.annotation.access import Access
from collective_node.annotation.clusters import clusters
from collective_node.annotation.labels import LabelBook, waiting_folder
from collective_node.annotation.server import make_app
from collective_node.annotation.unknown_set import CYCLES_FOLDER, load
from protocol.commands.terminal import EXIT_INTERRUPTED
from protocol.errors import InputError, RunFailedError
from protocol.files.atomic import write_atomically
from protocol.node.endpoints import node_of
from protocol.output import say

_BROWSER_FILE = "open.html"
#: The ports of which a node has its usual one: below those that the kernel gives to connections.
_FIRST_PORT, _PORTS = 20_000, 10_000
#: Largest number of images. Grouping takes four bytes for each pair of them: 1.6 GB.
_MOST_IMAGES = 20_000


def annotate_on_a_page(config: Path, port: int, *, browser: bool) -> None:
    """Show the images that look unknown on a local page, where an annotator names or dismisses them.

    Args:
        config: configuration file of the node whose images are to be named.
        port: on 127.0.0.1; 0: the one that this node always gets if it is free, else any.
        browser: open the page in a browser, too, where there is a screen.

    Raises:
        RunFailedError: nothing waits for names. InputError: too many images, the port is taken, or temporary files
            would lie in the node's state.
    """
    node = node_of(config, "collective")
    folder = waiting_folder(node.state)
    if folder is None:
        raise RunFailedError(
            f"nothing waits for names in {node.state / CYCLES_FOLDER}; "
            'a node with annotator = "annotate" puts unknown images there in its open-world cycles'
        )
    unknown = load(folder)
    if len(unknown) > _MOST_IMAGES:
        raise InputError(f"{folder} holds {len(unknown)} images; more than {_MOST_IMAGES} cannot be grouped here")
    with LabelBook(folder, images=len(unknown), known=unknown.known) as book:
        access, groups = Access(), clusters(unknown)
        listener = _listen(port, usual_port(node.state))
        port = listener.getsockname()[1]
        title = f"cycle {int(folder.name.removeprefix('cycle-'))}"
        app = make_app(unknown, groups, book, access, title=title, finished=lambda: _stop(server))
        server = make_server(app)
        say(f"{len(unknown)} unknown images in {len(groups)} groups wait for names: {folder}")
        say("Open this address in a browser on this machine. It works once.")
        _tell(access.address(port))
        if sys.stdin.isatty():
            say("Enter: a new address. Ctrl-C: stop; labels are kept.")
            threading.Thread(target=_new_addresses, args=(lambda: access.address(port),), daemon=True).start()
        with contextlib.ExitStack() as ending:
            ending.callback(listener.close)
            if browser and _has_screen():
                ending.enter_context(_opened(access.address(port), node.state))
            try:
                server.run(sockets=[listener])
            except KeyboardInterrupt:
                say()
        labels = book.labels
        # If SIGINT was ignored at the start, as for a job in the background, the server just returns.
        if not labels.finished:
            say(f"stopped; {len(labels.given)} of {len(unknown)} images are labelled, and kept")
            raise typer.Exit(EXIT_INTERRUPTED)
        new = labels.new_classes(unknown.known)
        say(
            f"finished: {sum(map(len, new.values()))} images of {len(new)} new classes, "
            f"{len(labels.dismissed)} dismissed, {len(unknown) - len(labels.given)} left undecided"
        )


def make_server(app: Starlette) -> uvicorn.Server:
    """The HTTP server of the page."""
    return uvicorn.Server(
        uvicorn.Config(
            app,
            # The same parser on every machine, and the strict one.
            http="h11",
            # An access log would hold the tokens.
            access_log=False,
            log_config=None,
            lifespan="off",
            ws="none",
            proxy_headers=False,
            server_header=False,
            timeout_graceful_shutdown=2,
        )
    )


def usual_port(state: Path) -> int:
    """The port that the page of a node gets if it is free. A browser keeps what it could not send by port, and finds it
    again after a restart. It follows from the folder's path, which the node does not choose."""
    return _FIRST_PORT + int.from_bytes(hashlib.sha256(os.fsencode(state)).digest()[:4]) % _PORTS


def _listen(port: int, usual: int) -> socket.socket:
    """A listening socket on 127.0.0.1."""
    for choice in [port] if port else [usual, 0]:
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        # Lets a restart reuse the port while old connections are still closing.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", choice))
            listener.listen()
        except OSError as error:
            listener.close()
            fault = error.strerror or str(error)
        else:
            return listener
    raise InputError(f"cannot listen on 127.0.0.1, port {port}: {fault}; give another --port, or none")


def _stop(server: uvicorn.Server) -> None:
    server.should_exit = True


def _tell(address: str) -> None:
    # Print at once, also into a file or pipe, because the reader waits for the address.
    say(f"  {address}")
    sys.stdout.flush()


def _new_addresses(address: Callable[[], str]) -> None:
    for _ in sys.stdin:
        _tell(address())


def _has_screen() -> bool:
    """Check whether a browser would open in a window, and not in this terminal."""
    return sys.platform == "darwin" or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


@contextlib.contextmanager
def _opened(address: str, state: Path) -> Iterator[None]:
    """Open the page through a file (0600), because every user of the machine can read a browser's command line. Its
    folder (0700) is new and ours: a node that could write the file would choose what the browser opens.

    Raises:
        InputError: temporary files would lie in the node's state.
    """
    with tempfile.TemporaryDirectory(prefix="annotate-") as made:
        folder = Path(made).resolve()
        if folder.is_relative_to(state.resolve()):
            raise InputError(f"the folder of temporary files is {folder.parent}, which the node writes: set TMPDIR")
        text = f'<!doctype html><meta http-equiv="refresh" content="0; url={escape(address)}">'
        write_atomically(folder / _BROWSER_FILE, text.encode(), mode=0o600)
        webbrowser.open((folder / _BROWSER_FILE).as_uri())
        yield
