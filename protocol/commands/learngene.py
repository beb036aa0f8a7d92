"""The command ``learngene``: keys, trust, bundle files, the relay's app; and simulations if they are installed."""

from collections.abc import Sequence
from importlib.metadata import entry_points

import typer

from protocol.commands.lazy_group import CommandEntry
from protocol.commands.terminal import make_app, run_app

#: Entry points of this group are sequences of more commands.
COMMANDS_GROUP = "learngene.commands"

_HERE = "protocol.commands"
COMMANDS: tuple[CommandEntry, ...] = (
    CommandEntry("keygen", f"{_HERE}.key_commands:register", "Make a private key and print its public half."),
    CommandEntry("trust", f"{_HERE}.trust_commands:register", "The public keys that nodes believe, signed by a root."),
    CommandEntry("inspect", f"{_HERE}.bundle_commands:register", "Show what a file says of itself."),
    CommandEntry("verify", f"{_HERE}.bundle_commands:register", "Verify a bundle file, and say step by step what was."),
    CommandEntry("audit", f"{_HERE}.audit_commands:register", "What crossed a site's border: show and verify the log."),
    CommandEntry("courier", f"{_HERE}.courier_commands:register", "Run Flower's SuperNode confined."),
    CommandEntry("doctor", f"{_HERE}.doctor_commands:register", "Say what this machine's operating system enforces."),
    CommandEntry("relay-app", f"{_HERE}.relay_app_command:register", "Write the Flower app that orders a round."),
)

#: Commands that an installation for nodes lacks.
_SIMULATIONS = ("run", "results", "report", "world", "leakage", "boundary", "privacy", "bench")


def make() -> typer.Typer:
    """The application with all commands of this installation; each is loaded when it is called."""
    return make_app(
        "Collective and individual learning through signed learngenes.\n\n"
        "\b\nExamples:\n"
        "  learngene run cifar100\n"
        "  learngene keygen --out root.key\n"
        "  learngene trust init --root-key root.key --out trust.json\n"
        "  learngene relay-app --out relay-app && flwr run relay-app my-superlink --stream",
        commands=(*COMMANDS, *_installed()),
    )


def main() -> None:
    """Entry point of the console script."""
    run_app(make())


def _installed() -> Sequence[CommandEntry]:
    entries: list[CommandEntry] = []
    for point in sorted(entry_points(group=COMMANDS_GROUP), key=lambda point: point.name):
        try:
            entries += point.load()
        except ImportError as error:
            # A node's installation without the package at all: calling them says what to install.
            needs = ((error.name or point.module).partition(".")[0],)
            entries += [CommandEntry(name, point.value, "", needs=needs, extra="sim") for name in _SIMULATIONS]
    return entries


if __name__ == "__main__":
    main()
