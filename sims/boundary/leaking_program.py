"""The program of a node that was taken over: it answers with its party's data, in any of the ways of
:mod:`sims.boundary.leaks`; ``python -m sims.boundary.leaking_program`` runs it in a node process.
"""

import argparse
import contextlib
import os
import socket
import stat
import time
from pathlib import Path

from protocol.confinement.guards import Confinement
from protocol.encoding.calendar import unix_seconds
from protocol.errors import RefusedError
from protocol.exchange.audit import Crossings
from protocol.exchange.egress import Gate
from protocol.keys.encryption_key import EncryptionKey
from protocol.keys.party_keys import NodeKeys
from protocol.node.configuration import NodeConfiguration
from protocol.node.launcher import launch
from protocol.node.server import Program
from protocol.transport.frame import Frame
from protocol.transport.local_socket import send_frame
from protocol.trust.policy_file import load_policy
from protocol.trust.role import Role
from sims.boundary.leaks.all_leaks import LEAKS
from sims.boundary.leaks.leak import DATA_BYTES, PARTNER, honest_messages

#: Word of the command that leaves out the gate, for the control.
WITHOUT_GATE = "without-gate"
#: The command on which the program writes to its courier itself.
PAST_THE_GATE = "past-the-gate"
#: The command whose answer is delayed if the bit of the data that its word ``bit`` names is set, and the delay in
#: seconds.
DELAY, DELAY_SECONDS = "delay", 0.15


class LeakingProgram:
    """Answers the command ``leak`` in the way that its word ``name`` says, with the first bytes of ``private.bin``.

    The gate is the real one, asked as a party's own program asks it: for the messages first, then for the answer. A
    command with the word ``gate`` = ``WITHOUT_GATE`` is answered without it.
    """

    role: Role

    def __init__(self, configuration: NodeConfiguration, keys: NodeKeys) -> None:
        node = configuration.node
        self.role, self.party = node.role, node.party
        encryption = keys.encryption or EncryptionKey.generate()
        self._honest = honest_messages(self.role, keys.signing, encryption, run_id=node.run_id, now=unix_seconds())
        self._data = (node.data / "private.bin").read_bytes().ljust(DATA_BYTES, b"\0")
        self._gate = Gate(
            load_policy(node.policy, self.role),
            Crossings(node.state / "crossings.jsonl", node.party, unix_seconds),
            key=keys.signing,
            run_id=node.run_id,
            is_partner=PARTNER.keyid.__eq__,
        )
        self._guarded = True

    def handle(self, command: Frame) -> Frame:
        """The leak that is asked for."""
        self._guarded = command.fields.get("gate") != WITHOUT_GATE
        if command.name == DELAY:
            place = int(command.fields["bit"])
            time.sleep(DELAY_SECONDS * (self._data[place // 8] >> (7 - place % 8) & 1))
        if command.name in ("status", DELAY):
            return Frame("status", fields={"role": self.role, "party": self.party, "state": "idle", "job": ""})
        if command.name == PAST_THE_GATE:
            _write_past(Frame("metrics", parts={"metrics": self._data[:DATA_BYTES]}))
            return Frame("accepted")
        leak = next(leak for leak in LEAKS if (leak.role, leak.name) == (self.role, command.fields["name"]))
        answer = leak.hide(self._honest, self._data[:DATA_BYTES])
        if self._guarded:
            self._clear(answer)
        return answer

    def let_out(self, answer: Frame) -> Frame:
        """Ask the gate, unless it is left out."""
        return self._gate.let_frame_out(answer, self.party) if self._guarded else answer

    def _clear(self, answer: Frame) -> None:
        """Let the gate clear all messages that it allows."""
        parts = answer.parts
        try:
            self._gate.let_out("the-other", parts)
        except RefusedError:
            for name, data in parts.items():
                with contextlib.suppress(RefusedError):
                    self._gate.let_out("the-other", {name: data})


def make(configuration: NodeConfiguration, confinement: Confinement, keys: NodeKeys) -> Program:
    """Make the program; the launcher calls this."""
    return LeakingProgram(configuration, keys)


def _write_past(answer: Frame) -> None:
    """Write to the connected client without the gate: code in a process can use its descriptors."""
    for number in range(3, 256):
        with contextlib.suppress(OSError):
            if stat.S_ISSOCK(os.fstat(number).st_mode):
                # Its kind is said, as asking for it is refused here.
                with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, os.dup(number)) as found:
                    # A connection through the door has a peer and the door's name; the door itself has no peer.
                    if found.getpeername() is not None and found.getsockname():
                        send_frame(found, answer)


def main() -> None:
    """Take the options of a node's ``start``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--lifeline", type=int)
    parser.add_argument("--unconfined", action="store_true")
    given = parser.parse_args()
    own = "sims.boundary.leaking_program"
    launch(
        given.config,
        None,
        f"{own}:NodeConfiguration",
        f"{own}:make",
        lifeline=given.lifeline,
        unconfined=given.unconfined,
    )


if __name__ == "__main__":
    main()
