"""A node's program that is in the attacker's hands: it attacks as it is asked to. The real launcher starts it.

``python -m sims.boundary.hostile_program --config FILE [--unconfined] [--lifeline N]``, as a node's ``start``.
"""

import argparse
from pathlib import Path

from protocol.confinement.confine import Confinement
from protocol.launcher import launch
from protocol.node import Role
from protocol.node_configuration import NodeConfiguration
from protocol.node_keys import NodeKeys
from protocol.socket import Frame
from sims.boundary.hostile_acts import perform

#: The wish that names an act and its aims.
ATTACK = "attack"


class HostileProgram:
    """Answers ``status`` as a node does, and makes the attack of ``sims.boundary.hostile_acts`` that a wish names."""

    role: Role = "collective"

    def __init__(self, party: str, confinement: Confinement) -> None:
        self.party = party
        self._confinement = confinement

    def handle(self, wish: Frame) -> Frame:
        """The outcome of an attack; see :func:`sims.boundary.hostile_acts.perform`."""
        if wish.word != ATTACK:
            return Frame("status", words={"confinement": self._confinement.line})
        aims = {name: text for name, text in wish.words.items() if name != "act"}
        word, evidence, number = perform(wish.words["act"], aims)
        return Frame(word, numbers={"errno": number}, parts={"evidence": evidence})

    def let_out(self, answer: Frame) -> Frame:
        """An attacker has no gate."""
        return answer


def make(configuration: NodeConfiguration, confinement: Confinement, keys: NodeKeys) -> HostileProgram:
    """What the launcher calls."""
    return HostileProgram(configuration.node.party, confinement)


def main() -> None:
    """Start it as a node is started."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--unconfined", action="store_true")
    parser.add_argument("--lifeline", type=int)
    given = parser.parse_args()
    model, program = f"{__spec__.name}:Configuration", f"{__spec__.name}:make"
    launch(given.config, model, program, lifeline=given.lifeline, unconfined=given.unconfined)


class Configuration(NodeConfiguration):
    """The table ``[node]`` alone."""


if __name__ == "__main__":
    main()
