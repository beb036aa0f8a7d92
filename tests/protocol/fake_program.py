"""A small Program for tests of the door, the courier and the relay: it answers every command without any model."""

import logging
import threading
import time

from protocol.confinement.guards import Confinement
from protocol.errors import ExpiredError, InputError
from protocol.keys.party_keys import NodeKeys
from protocol.node.configuration import NodeConfiguration
from protocol.node.server import Job
from protocol.transport.frame import Frame
from protocol.trust.role import Role

SECRET_TEXT = "the patient's name is Ada"


class FakeProgram:
    """Answers as a collective or an individual would, with bytes that only name what they stand for."""

    def __init__(self, role: Role, party: str) -> None:
        self.role: Role = role
        self.party = party
        self.job = Job()
        self.release_work = threading.Event()
        self.commands: list[str] = []

    def handle(self, command: Frame) -> Frame:
        self.commands.append(command.name)
        match command.name:
            case "status":
                return self.job.answer(self.role, self.party)
            case "evolve" | "adapt":
                self.job.start(command.name, lambda: None)
                return Frame("accepted")
            case "work":
                started = self.job.start("work", lambda: bool(self.release_work.wait(10)))
                return Frame("accepted", numbers={"started": int(started)})
            case "fail":
                self.job.start("fail", self._fail)
                return Frame("accepted")
            case "request":
                return Frame("requested", parts={"request": f"{self.party} {command.fields['form']}".encode()})
            case "publish":
                return Frame(
                    "published", parts={"release": b"r", "grant": command.parts["request"], "blob": bytes(1000)}
                )
            case "inherit":
                return Frame("inherited", parts={"receipt": b"receipt of " + command.parts["grant"]})
            case "receipt":
                return Frame("accepted")
            case "echo":
                return Frame("echo", command.numbers, command.fields, command.parts)
            case "expired":
                raise ExpiredError(SECRET_TEXT)
            case "input":
                raise InputError(SECRET_TEXT)
            case "crash":
                raise ZeroDivisionError(SECRET_TEXT)
            case "nonsense":
                return Frame("NOT A WORD")
            case "sleep":
                time.sleep(command.numbers["seconds"])
                return Frame("slept")
            case _:
                raise ValueError(command.name)

    def let_out(self, answer: Frame) -> Frame:
        """This program has no gate."""
        return answer

    @staticmethod
    def _fail() -> None:
        raise RuntimeError(SECRET_TEXT)


def make(configuration: NodeConfiguration, confinement: Confinement, keys: NodeKeys) -> FakeProgram:
    """What the launcher calls."""
    if keys.encryption is not None:
        logging.info("opened %s %s", keys.signing.keyid, keys.encryption.public.hex())
    return FakeProgram(configuration.node.role, configuration.node.party)
