"""The command ``learngene``: keys, trust, the relay's app; simulations where they are installed."""

import shutil
from importlib.metadata import entry_points
from importlib.resources import as_file, files
from pathlib import Path
from typing import Annotated

import typer

from protocol.errors import InputError
from protocol.keys import SigningKey
from protocol.node import Role
from protocol.terminal import make_app, run_app
from protocol.trust import TrustStore

#: Entry points of this group are called with the application and add their commands to it.
COMMANDS_GROUP = "learngene.commands"


def make() -> typer.Typer:
    """The application with all commands that this installation can run."""
    app = make_app(
        "Collective and individual learning through signed learngenes.\n\n"
        "\b\nExamples:\n"
        "  learngene run cifar100\n"
        "  learngene keygen --out signing.key\n"
        "  learngene trust add --trust trust.json --public HEX --role collective --party collective\n"
        "  learngene relay-app --out relay-app && flwr run relay-app my-superlink --stream"
    )
    app.command()(keygen)
    app.command("relay-app")(relay_app)
    trust = typer.Typer(help="The public keys that a node believes.", no_args_is_help=False)
    trust.command("add")(trust_add)
    trust.command("show")(trust_show)
    app.add_typer(trust, name="trust")
    _add_installed_commands(app)
    return app


def main() -> None:
    """Entry point of the console script."""
    run_app(make())


def keygen(out: Annotated[Path, typer.Option(help="File to write the private key to (mode 0600).")]) -> None:
    """Make a signing key and print its public half."""
    if not out.parent.is_dir():
        raise InputError(f"there is no folder {out.parent}")
    key = SigningKey.generate()
    key.save(out)
    typer.echo(f"public key     {key.public_hex}")
    typer.echo(f"fingerprint    {key.keyid}")


def trust_add(
    trust: Annotated[Path, typer.Option(help="Trust store; made where there is none.")],
    public: Annotated[str, typer.Option(help="The other party's public key: 64 hexadecimal digits.")],
    role: Annotated[str, typer.Option(help="collective or individual.")],
    party: Annotated[str, typer.Option(help="The other party's name.")],
) -> None:
    """Pin a public key. Compare its fingerprint with its owner over another channel first."""
    store = (TrustStore.load(trust) if trust.exists() else TrustStore()).with_key(public.lower(), _role(role), party)
    if not trust.parent.is_dir():
        raise InputError(f"there is no folder {trust.parent}")
    store.save(trust)
    typer.echo(f"fingerprint    {store.keys[-1].keyid}")


def trust_show(trust: Annotated[Path, typer.Option(help="Trust store.")]) -> None:
    """List the pinned keys: role, party, fingerprint."""
    for key in TrustStore.load(trust).keys:
        typer.echo(f"{key.role:<12} {key.party:<24} {key.keyid}")


def relay_app(out: Annotated[Path, typer.Option(help="Folder to make.")]) -> None:
    """Write the Flower app that orders a round between deployed nodes: `flwr run OUT <connection>`."""
    if out.exists():
        raise InputError(f"{out} exists already and is not overwritten; choose another folder")
    with as_file(files("protocol") / "flower_app" / "pyproject.toml") as source:
        try:
            out.mkdir(parents=True)
            shutil.copyfile(source, out / "pyproject.toml")
        except OSError as error:
            raise InputError(f"cannot write to {out}: {error.strerror or error}") from error
    typer.echo(f"{out / 'pyproject.toml'}")


def _role(text: str) -> Role:
    if text == "collective":
        return "collective"
    if text == "individual":
        return "individual"
    raise InputError(f"role must be collective or individual, not {text!r}")


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

    for name in ("run", "results", "report", "world"):
        app.command(name, hidden=True, context_settings={"ignore_unknown_options": True, "allow_extra_args": True})(
            explain
        )


if __name__ == "__main__":
    main()
