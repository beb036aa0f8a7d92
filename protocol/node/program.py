"""What the programs of both parties have in common: their endpoint, device, events and job."""

from collections.abc import Callable
from typing import Generic

import torch

from protocol.confinement.guards import Confinement
from protocol.errors import PolicyDeniedError
from protocol.keys.party_keys import NodeKeys
from protocol.learngene.images import choose_device
from protocol.learngene.side_by_side import set_worker_count, usable_cores
from protocol.node.configuration import NodeTable
from protocol.node.endpoints import EndpointT, endpoint_of
from protocol.node.events import Events
from protocol.node.server import Job
from protocol.transport.frame import Frame
from protocol.trust.role import Role


class PartyProgram(Generic[EndpointT]):
    """A :class:`protocol.node.server.Program` that answers ``status``; each party adds what it fulfils besides.

    Args:
        node: the table ``[node]`` of its configuration.
        confinement: what the operating system enforces.
        keys: the node's private keys, opened before it was confined.
        endpoint: the party's own kind.

    Raises:
        InputError: a device, key or trust store is missing or wrong.
    """

    role: Role

    def __init__(self, node: NodeTable, confinement: Confinement, keys: NodeKeys, endpoint: type[EndpointT]) -> None:
        self.party = node.party
        self._node, self._confinement = node, confinement
        self._device = choose_device(node.device)
        # Torch's own choice knows of no quota.
        threads = node.threads or min(torch.get_num_threads(), usable_cores())
        torch.set_num_threads(threads)
        # A GPU does one thing after another.
        set_worker_count(threads if self._device.type == "cpu" else 1)
        self._endpoint: EndpointT = endpoint_of(node, keys, endpoint, start=True)
        self._events = Events(node.state / "events.jsonl")
        self._job = Job()

    def handle(self, command: Frame) -> Frame:
        """Answer one command of the relay; see :class:`protocol.node.server.Program`."""
        if command.name == "status":
            return self._job.answer(self.role, self.party)
        answer = self._fulfil(command)
        if answer is None:
            raise PolicyDeniedError(f"the {self.role} does not know the command {command.name!r}")
        return answer

    def let_out(self, answer: Frame) -> Frame:
        """The same answer, if the gate lets it leave; see :class:`protocol.exchange.egress.Gate`."""
        return self._endpoint.gate.let_frame_out(answer, self.party)

    def _fulfil(self, command: Frame) -> Frame | None:
        """The answer to a command of the party's own; None where it knows no such command."""
        raise NotImplementedError

    def _begin(self, name: str, work: Callable[[], None]) -> Frame:
        """Start long work if none is going on; the answer says what is going on."""
        self._job.start(name, work)
        return self._job.answer(self.role, self.party)

    def _circumstances(self) -> dict[str, object]:
        """The circumstances of the party's figures: what they were made on."""
        return {
            "device": str(self._device),
            "threads": torch.get_num_threads(),
            "confinement": self._confinement.line,
        }
