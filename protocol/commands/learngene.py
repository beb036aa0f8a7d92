"""The command ``learngene``: keys, trust, bundle files, the relay's app; simulations where they are installed."""

from importlib.metadata import entry_points
from importlib.resources import as_file, files
from pathlib import Path
from typing import Annotated

import typer

from protocol.commands import (
    audit_commands,
    bundle_commands,
    courier_commands,
    doctor_commands,
    key_commands,
    trust_commands,
)
from protocol.commands.terminal import make_app, run_app
from protocol.errors import InputError
from protocol.files.atomic import make_folder
from protocol.files.user_files import write_new
from protocol.output import say

#: Entry points of this group are called with the application and add their commands to it.
COMMANDS_GROUP = "learngene.commands"


def make() -> typer.Typer:
    """The application with all commands that this installation can run."""
    app = make_app(
        "Collective and individual learning through signed learngenes.\n\n"
        "\b\nExamples:\n"
        "  learngene run cifar100\n"
        "  learngene keygen --out root.key\n"
        "  learngene trust init --root-key root.key --out trust.json\n"
        "  learngene relay-app --out relay-app && flwr run relay-app my-superlink --stream"
    )
    key_commands.register(app)
    trust_commands.register(app)
    bundle_commands.register(app)
    audit_commands.register(app)
    courier_commands.register(app)
    doctor_commands.register(app)
    app.command("relay-app")(relay_app)
    _add_installed_commands(app)
    return app


def main() -> None:
    """Entry point of the console script."""
    run_app(make())


def relay_app(out: Annotated[Path, typer.Option(help="Folder to make.")]) -> None:
    """Write the Flower app that orders a round between deployed nodes: `flwr run OUT <connection>`."""
    if out.exists():
        raise InputError(f"{out} exists already and is not overwritten; choose another folder")
    with as_file(files("protocol") / "flower_app" / "pyproject.toml") as source:
        try:
            make_folder(out, mode=0o755)
            write_new(out / "pyproject.toml", source.read_bytes(), mode=0o644)
        except OSError as error:
            raise InputError(f"cannot write to {out}: {error.strerror or error}") from error
    say(f"{out / 'pyproject.toml'}")


def _add_installed_commands(app: typer.Typer) -> None:
    for point in sorted(entry_points(group=COMMANDS_GROUP), key=lambda point: point.name):
        try:
            point.load()(app)
        except ModuleNotFoundError as error:
            # A node's installation: no simulations, no figures.
            _explain_missing(app, error.name or point.module)


def _explain_missing(app: typer.Typer, module: str) -> None:
    """In place of the commands that cannot be loaded, some that say what to install."""

    def explain() -> None:
        raise InputError(f"simulations need the module {module}; install it with: pip install 'learngene[sim]'")

    for name in ("run", "results", "report", "world", "leakage"):
        app.command(name, hidden=True, context_settings={"ignore_unknown_options": True, "allow_extra_args": True})(
            explain
        )


if __name__ == "__main__":
    main()
