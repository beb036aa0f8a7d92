"""The command ``individual-node``: the node itself, and what a user does with what it inherited."""

from individual_node import user_commands
from protocol.node_commands import node_app
from protocol.terminal import run_app

app = node_app("individual", "individual_node.configuration:IndividualConfiguration", "individual_node.program:make")
user_commands.register(app)


def main() -> None:
    """Entry point of the console script."""
    run_app(app)
