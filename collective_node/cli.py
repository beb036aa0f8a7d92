"""The command ``collective-node``."""

from protocol.node_commands import node_app
from protocol.terminal import run_app

app = node_app("collective", "collective_node.configuration:CollectiveConfiguration", "collective_node.program:make")


def main() -> None:
    """Entry point of the console script."""
    run_app(app)
