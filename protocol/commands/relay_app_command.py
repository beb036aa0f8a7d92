"""The command ``learngene relay-app``."""

from importlib.resources import as_file, files
from pathlib import Path
from typing import Annotated

import typer

from protocol.errors import InputError
from protocol.files.atomic import make_folder
from protocol.files.user_files import write_new
from protocol.output import say


def register(app: typer.Typer) -> None:
    """Add the command to an application."""
    app.command("relay-app")(relay_app)


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
