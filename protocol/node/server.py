"""A node process at work: it serves the commands of its courier, one at a time, until its lifeline closes."""

import logging
import os
import signal
import socket
import threading
from collections.abc import Callable
from types import FrameType
from typing import Protocol

from protocol.errors import InputError, LearngeneError, MalformedError, RefusedError
from protocol.transport.frame import Frame, JobState
from protocol.transport.local_socket import (
    DisconnectedError,
    HandshakeError,
    answer_handshake,
    receive_frame,
    send_frame,
)
from protocol.trust.role import Role

logger = logging.getLogger(__name__)

#: Stands in a node's log between a job and the fault in the node's input because of which it cannot be done.
CANNOT = " cannot be done: "


class Program(Protocol):
    """The program of a party's node process."""

    role: Role
    party: str

    def handle(self, command: Frame) -> Frame:
        """Answer one command without delay: long work goes into a :class:`Job`. The node's own policy decides, not the
        command.

        Raises:
            RefusedError: answered with its coarse code; the text stays in the local log.
        """
        ...

    def let_out(self, answer: Frame) -> Frame:
        """Return the same answer if it may leave: the last check before the socket.

        Raises:
            RefusedError: it may not leave.
        """
        ...


class Job:
    """At most one piece of long work at a time, in a thread of its own; its state is polled."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._state: JobState = "idle"
        self._name = ""

    @property
    def state(self) -> JobState:
        """``idle`` before the first work; afterwards the state of the latest."""
        with self._lock:
            return self._state

    @property
    def name(self) -> str:
        """The latest work; empty before the first."""
        with self._lock:
            return self._name

    def start(self, name: str, work: Callable[[], None]) -> bool:
        """Start ``work`` and return at once. Return False, and start nothing, if other work is going on."""
        with self._lock:
            if self._state == "working":
                return False
            self._state, self._name = "working", name
        threading.Thread(target=self._run, args=(name, work), name=name, daemon=True).start()
        return True

    def _run(self, name: str, work: Callable[[], None]) -> None:
        state: JobState = "failed"
        try:
            work()
            state = "done"
        except InputError as error:
            logger.error("%s%s%s", name, CANNOT, error)
        except LearngeneError as error:
            logger.error("%s failed: %s", name, error)
        except BaseException:  # whatever it is, a polling relay must learn that the work is over
            logger.exception("%s failed", name)
        finally:
            with self._lock:
                self._state = state

    def answer(self, role: Role, party: str) -> Frame:
        """The answer to a ``status`` command."""
        with self._lock:
            return Frame("status", fields={"role": role, "party": party, "state": self._state, "job": self._name})


def refusal(code: str) -> Frame:
    """The answer to a command that is not fulfilled: a coarse code and nothing else."""
    return Frame("refused", fields={"code": code})


def answer(program: Program, command: Frame) -> Frame:
    """The program's answer; every error becomes a coarse code; its details go only to the local log."""
    try:
        return program.let_out(program.handle(command))
    except RefusedError as error:
        logger.warning("refused %s (%s): %s", command.name, error.code, error)
        return refusal(error.code)
    except LearngeneError as error:
        logger.error("%s failed: %s", command.name, error)
        return refusal("failed")
    except Exception:
        logger.exception("%s failed", command.name)
        return refusal("failed")


def serve(
    listener: socket.socket, secret: bytes, program: Program, lifeline: int | None, *, warden: int | None = None
) -> None:
    """Serve couriers, one connection with one command at a time, until SIGTERM, SIGHUP or Ctrl-C; then return.

    Args:
        listener: the bound socket.
        secret: the secret that a courier must know.
        program: the party's own answers.
        lifeline: reading end of a pipe; when it closes, the whole process ends at once. Results are stored atomically
            before they are announced, so nothing is lost.
        warden: the connection to the warden (``protocol.confinement.warden``); when it closes, the process ends too,
            because refusals would no longer be logged.
    """
    if lifeline is not None:
        _end_with(lifeline, "lifeline", 0, "the lifeline closed: this node ends")
    if warden is not None:
        _end_with(warden, "warden", 1, "its warden was ended from outside, so this node ends; start it again")
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) != signal.SIG_IGN:  # as nohup(1) leaves it
                signal.signal(number, _interrupt)
    try:
        while True:
            connection, _ = listener.accept()
            with connection:
                _serve_one(connection, secret, program)
    except KeyboardInterrupt:
        logger.info("ended by a signal")


def _serve_one(connection: socket.socket, secret: bytes, program: Program) -> None:
    """Serve one connection. Nothing that a courier sends or fails to send ends the node."""
    try:
        answer_handshake(connection, secret)
        try:
            command = receive_frame(connection)
        except RefusedError as error:
            logger.warning("refused a frame (%s): %s", error.code, error)
            send_frame(connection, refusal(error.code))
            return
        reply = answer(program, command)
        try:
            send_frame(connection, reply)
        except MalformedError:
            logger.exception("the answer to %s is outside the format", command.name)
            send_frame(connection, refusal("failed"))
    except (DisconnectedError, HandshakeError) as error:
        logger.warning("%s", error)
    except Exception:
        logger.exception("a connection failed")


def _end_with(descriptor: int, name: str, code: int, why: str) -> None:
    """End the whole process with this exit code when the other end of a pipe or a pair of sockets closes."""

    def wait() -> None:
        try:
            while os.read(descriptor, 1):
                pass
        except OSError:
            logger.exception("the %s cannot be read", name)
        logger.log(logging.ERROR if code else logging.INFO, why)
        logging.shutdown()
        # End at once, whatever the other threads are doing.
        os._exit(code)

    threading.Thread(target=wait, name=name, daemon=True).start()


def _interrupt(number: int, stack: FrameType | None) -> None:
    raise KeyboardInterrupt
