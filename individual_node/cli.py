"""The command ``individual-node``: the node itself, exchanges by files, and what a user does with a learngene."""

from individual_node import exchange_commands, user_commands
from protocol.commands.node_commands import node_app
from protocol.commands.terminal import run_app
from protocol.node import import_contract

app = node_app("individual", "individual_node.configuration:IndividualConfiguration", "individual_node.program:make")
exchange_commands.register(app)
user_commands.register(app)


def main() -> None:
    """Entry point of the console script."""
    import_contract.install("individual_node")
    run_app(app)
