"""The log of crossings: one line for everything that left or entered a site, on disk before it is sent."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from protocol.envelope import digest
from protocol.errors import InputError, StorageFailedError

Direction = Literal["out", "in"]


class Crossing(BaseModel):
    """One line: when (unix s), which way, between whom, what kind, how many bytes and their SHA-256."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, populate_by_name=True)

    time: int
    direction: Direction
    sender: str = Field(alias="from")
    receiver: str = Field(alias="to")
    kind: str
    bytes: int
    digest: str


class Crossings:
    """Appends to ``crossings.jsonl`` of one party. The place for a chain of hashes over the lines is ``append``.

    Args:
        path: the log; its folder exists.
        party: the party whose log it is.
        clock: unix seconds.
    """

    def __init__(self, path: Path, party: str, clock: Callable[[], int]) -> None:
        self._path = path
        self._party = party
        self._clock = clock

    def append(self, direction: Direction, peer: str, kind: str, data: bytes) -> None:
        """Record that ``data`` goes ``out`` to, or came ``in`` from, ``peer``. Durable when it returns.

        Raises:
            StorageFailedError: the line could not be stored, so nothing may be sent.
        """
        sender, receiver = (self._party, peer) if direction == "out" else (peer, self._party)
        crossing = Crossing(
            time=self._clock(),
            direction=direction,
            sender=sender,
            receiver=receiver,
            kind=kind,
            bytes=len(data),
            digest=digest(data),
        )
        line = json.dumps(crossing.model_dump(by_alias=True), separators=(",", ":")).encode("ascii") + b"\n"
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "r+b", buffering=0) as file:
                # A crash may have left half a line: it gets its end, and the reader skips it.
                size = file.seek(0, os.SEEK_END)
                if size and os.pread(descriptor, 1, size - 1) != b"\n":
                    line = b"\n" + line
                if file.write(line) != len(line):
                    raise OSError("the line was cut short")
                os.fsync(descriptor)
        except OSError as error:
            raise StorageFailedError(
                f"cannot write the log of crossings {self._path}: {error}; nothing is sent"
            ) from error


def read_crossings(path: Path) -> list[Crossing]:
    """The lines of a log, in order; half a line that a crash left is skipped. No log: no crossings.

    Raises:
        InputError: the log cannot be read.
    """
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise InputError(f"cannot read the log of crossings {path}: {error.strerror}") from None
    crossings = []
    for line in lines:
        try:
            crossings.append(Crossing.model_validate_json(line))
        except ValidationError:
            continue
    return crossings
