"""Starts a node process: one thread only until the socket is bound and the process confined, then the program.

The order matters: a thread that exists before Landlock stays outside it, and importing torch starts threads. So this
module and all that it imports stay free of torch and numpy.
"""

import contextlib
import fcntl
import importlib
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from protocol import confinement
from protocol.confinement import Confinement
from protocol.errors import InputError, RunFailedError
from protocol.node import Program, serve
from protocol.node_configuration import NodeConfiguration, check, node_table, read
from protocol.node_keys import NodeKeys, load_keys
from protocol.socket import listen, load_secret, private_folder

logger = logging.getLogger(__name__)


def launch(path: Path, model: str, program: str, *, lifeline: int | None = None, unconfined: bool = False) -> None:
    """Run a node until it is told to end.

    Args:
        path: its configuration file.
        model: ``module:class`` of the party's own :class:`NodeConfiguration`.
        program: ``module:function`` that makes the :class:`Program` from configuration, confinement and keys. Both
            are imported only after the process is confined.
        lifeline: number of an inherited file descriptor; the node ends when its other end closes.
        unconfined: accept to run without confinement, as ``unconfined = true`` in the file does.

    Raises:
        InputError: a setting, folder or file is wrong. RunFailedError: the node cannot or must not start.
    """
    content = read(path)
    node = node_table(path, content)
    if not node.data.is_dir():
        raise InputError(f"{path}: node.data: there is no folder {node.data}")
    os.umask(0o077)
    private_folder(node.state)
    lock = _lock(node.state)
    _log_to(node.state / "node.log")
    secret = load_secret(node.secret)
    # Before the process is confined: a confined one need not be able to read a key file.
    keys = load_keys(node)
    listener = listen(node.socket)
    try:
        packages = ("protocol", model.partition(".")[0])
        confined = confinement.apply(node, packages, unconfined=node.unconfined or unconfined)
        logger.info("%s starts as process %d: %s", node.party, os.getpid(), confined.line)
        if node.threads:
            # Read by OpenMP and BLAS when they are loaded.
            os.environ["OMP_NUM_THREADS"] = str(node.threads)
        configuration: NodeConfiguration = check(path, content, _import(model))
        make: Callable[[NodeConfiguration, Confinement, NodeKeys], Program] = _import(program)
        made = make(configuration, confined, keys)
        logger.info("%s listens on %s", node.party, node.socket)
        serve(listener, secret, made, lifeline)
    finally:
        # A confined process cannot; the next start replaces what is left.
        with contextlib.suppress(PermissionError):
            node.socket.unlink(missing_ok=True)
        listener.close()
        os.close(lock)


def _import(name: str) -> Any:  # noqa: ANN401 - the caller says what it expects
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


def _lock(state: Path) -> int:
    """Hold the state folder for this process; the lock goes with the process, however it ends."""
    descriptor = os.open(state / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise RunFailedError(f"another node process works in {state}; end it first") from error
    return descriptor


def _log_to(path: Path) -> None:
    handlers: list[logging.Handler] = [logging.FileHandler(path)]
    if sys.stderr.isatty():
        handlers.append(logging.StreamHandler())
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", handlers=handlers, force=True
    )
