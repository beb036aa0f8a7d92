"""The command line of both kinds of node: ``start``, ``doctor``, ``clock``, ``init``, and the party's own commands.

No command is loaded before it is called: ``start`` confines its process before numpy or torch is loaded.
"""

from collections.abc import Sequence

import typer

from protocol.commands.lazy_group import CommandEntry
from protocol.commands.terminal import make_app
from protocol.trust.role import Role

#: A node's own name if its operator gives none.
_EXAMPLE_PARTY: dict[Role, str] = {"collective": "collective", "individual": "individual-1"}


def node_app(role: Role, model: str, program: str, commands: Sequence[CommandEntry] = ()) -> typer.Typer:
    """The command line of one kind of node.

    Args:
        model, program: as in :func:`protocol.node.launcher.launch`.
        commands: the party's own, listed after those of every node.
    """
    name, party = f"{role}-node", _EXAMPLE_PARTY[role]
    return make_app(
        f"The {role}'s node process: it holds the data, the model and the keys, and its one door is a socket.\n\n"
        "\b\nExamples:\n"
        f"  {name} init --out ~/{role} --data ~/images --party {party} --root HEX\n"
        f"  {name} doctor --config ~/{role}/config.toml\n"
        f"  {name} start --config ~/{role}/config.toml",
        commands=(*_common(role, model, program, party), *commands),
    )


def _common(role: Role, model: str, program: str, party: str) -> Sequence[CommandEntry]:
    def entry(name: str, source: str, summary: str, *arguments: str) -> CommandEntry:
        return CommandEntry(name, f"protocol.commands.{source}", summary, arguments)

    return (
        entry("start", "start_command:register", "Run the node until it is told to end.", role, model, program),
        entry(
            "doctor", "doctor_commands:register_node", "Say what holds for this node and what is wrong.", role, model
        ),
        entry("clock", "clock_commands:register", "Show the clock and the time that the node has decided by.", role),
        entry("init", "init_command:register", "Write a commented configuration and fresh keys.", role, party, model),
    )
