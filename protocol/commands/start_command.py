"""The command ``start`` of both kinds of node."""

import os
from pathlib import Path
from typing import Annotated

import typer

from protocol.confinement.isolated_start import become_isolated
from protocol.node.launcher import launch
from protocol.trust.role import Role


def register(app: typer.Typer, role: Role, model: str, program: str) -> None:
    """Add the command; ``model`` and ``program`` as in :func:`protocol.node.launcher.launch`."""

    @app.command()
    def start(
        config: Annotated[Path, typer.Option(help="Configuration file; `init` writes one.")],
        unconfined: Annotated[
            bool,
            typer.Option(
                "--unconfined", help="Run without confinement, where the kernel has none; every report says so."
            ),
        ] = False,
        lifeline: Annotated[
            int | None, typer.Option(help="Inherited file descriptor; the node ends when its other end closes.", min=0)
        ] = None,
    ) -> None:
        """Run the node until it is told to end (Ctrl-C, SIGTERM)."""
        config = Path(os.path.abspath(config))
        options = ["--unconfined"] * unconfined + ([] if lifeline is None else ["--lifeline", str(lifeline)])
        become_isolated(f"{role}_node", ["start", "--config", str(config), *options])
        launch(config, role, model, program, lifeline=lifeline, unconfined=unconfined)
