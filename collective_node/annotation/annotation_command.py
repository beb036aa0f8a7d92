"""The command ``collective-node annotate``: its options."""

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the command to an application."""
    app.command()(annotate)


def annotate(
    config: Annotated[Path, typer.Option(help="Configuration file of the node whose images are to be named.")],
    port: Annotated[
        int,
        typer.Option(
            help="Port on 127.0.0.1; 0: the same for this node each time if it is free, else any.", min=0, max=65535
        ),
    ] = 0,
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Only print the address.")] = False,
) -> None:
    """Show the images that look unknown on a local page, where an annotator names or dismisses them."""
    # Imported when it is called: a command's help needs none of it.
    from collective_node.annotation.annotation_session import annotate_on_a_page

    annotate_on_a_page(config, port, browser=not no_browser)
