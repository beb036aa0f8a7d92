"""A node's program that the attacker controls: it makes the attacks that it is told. The real launcher starts it.

``python -m sims.boundary.hostile_program --config FILE [--unconfined] [--lifeline N]``, as a node's ``start``.
"""

import argparse
from pathlib import Path

from protocol.confinement.guards import Confinement
from protocol.keys.party_keys import NodeKeys
from protocol.node.configuration import NodeConfiguration
from protocol.node.launcher import launch
from protocol.transport.frame import Frame
from protocol.trust.role import Role
from sims.boundary.acts.act import Outcome
from sims.boundary.acts.all_acts import perform

#: The command that names an act and its aims.
ATTACK = "attack"


class HostileProgram:
    """Answers ``status`` as a node does, and makes the act of ``sims.boundary.acts`` that a command names."""

    role: Role = "collective"

    def __init__(self, party: str, confinement: Confinement) -> None:
        self.party = party
        self._confinement = confinement

    def handle(self, command: Frame) -> Frame:
        """The outcome of an act."""
        if command.name != ATTACK:
            return Frame("status", fields={"confinement": self._confinement.line})
        aims = {name: text for name, text in command.fields.items() if name != "act"}
        found = perform(command.fields["act"], aims)
        words = {"call": found.call, "error": found.error}
        return Frame(found.word, fields=words, parts={"evidence": found.evidence})

    def let_out(self, answer: Frame) -> Frame:
        """An attacker has no gate."""
        return answer


def outcome_of(answer: Frame) -> Outcome:
    """The outcome of an act, out of the answer that brought it."""
    words = answer.fields
    return Outcome(answer.name, answer.parts.get("evidence", b""), words.get("call", ""), words.get("error", ""))


def make(configuration: NodeConfiguration, confinement: Confinement, keys: NodeKeys) -> HostileProgram:
    """Make the program; the launcher calls this."""
    return HostileProgram(configuration.node.party, confinement)


def main() -> None:
    """Start it as a node is started."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--unconfined", action="store_true")
    parser.add_argument("--lifeline", type=int)
    given = parser.parse_args()
    model, program = f"{__spec__.name}:Configuration", f"{__spec__.name}:make"
    launch(given.config, None, model, program, lifeline=given.lifeline, unconfined=given.unconfined)


class Configuration(NodeConfiguration):
    """The table ``[node]`` alone."""


if __name__ == "__main__":
    main()
