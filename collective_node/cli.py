"""The command ``collective-node``."""

from pathlib import Path
from typing import Annotated

import typer

from collective_node import exchange_commands
from protocol.commands.node_commands import node_app
from protocol.commands.terminal import run_app
from protocol.node import import_contract

app = node_app("collective", "collective_node.configuration:CollectiveConfiguration", "collective_node.program:make")
exchange_commands.register(app)


@app.command()
def annotate(
    config: Annotated[Path, typer.Option(help="Configuration file of the node whose images are to be named.")],
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1; 0: any.", min=0, max=65535)] = 0,
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Only print the address.")] = False,
) -> None:
    """Show the images that look unknown on a local page, where an annotator names or dismisses them."""
    # Flower's web libraries and scikit-learn: no other command needs them.
    from collective_node.annotation.annotation_command import annotate as serve

    serve(config, port=port, browser=not no_browser)


def main() -> None:
    """Entry point of the console script."""
    import_contract.install("collective_node")
    run_app(app)
