"""The command ``individual-node``: the node itself, exchanges by files, and a user's commands on a learngene."""

from protocol.commands.lazy_group import CommandEntry
from protocol.commands.node_commands import node_app
from protocol.commands.terminal import run_app
from protocol.node import import_guard

_EXCHANGE, _MODEL = "individual_node.exchange_commands:register", "individual_node.model_commands:register"

app = node_app(
    "individual",
    "individual_node.configuration:IndividualConfiguration",
    "individual_node.program:make",
    (
        CommandEntry("request", _EXCHANGE, "Write a request for a learngene, to be taken to the collective."),
        CommandEntry("inherit", _EXCHANGE, "Verify and keep a learngene that answers a request."),
        CommandEntry("bundle", _EXCHANGE, "Pack the newest learngene that the node inherited into one file."),
        CommandEntry("adapt", "individual_node.adapt_command:register", "Adapt a learngene to own pictures."),
        CommandEntry("predict", _MODEL, "Name pictures."),
        CommandEntry("export", _MODEL, "Write a model as one ONNX file."),
    ),
)


def main() -> None:
    """Entry point of the console script."""
    import_guard.install("individual_node")
    run_app(app)
