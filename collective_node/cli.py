"""The command ``collective-node``: the node itself, exchanges by files, releases, and the annotation page."""

from protocol.commands.lazy_group import CommandEntry
from protocol.commands.node_commands import node_app
from protocol.commands.terminal import run_app
from protocol.node import import_guard

_EXCHANGE = "collective_node.exchange_commands:register"

app = node_app(
    "collective",
    "collective_node.configuration:CollectiveConfiguration",
    "collective_node.program:make",
    (
        CommandEntry("grant", _EXCHANGE, "Answer a request with the newest learngene of its form, as a file."),
        CommandEntry("receipt", _EXCHANGE, "Take an individual's receipt."),
        CommandEntry("releases", _EXCHANGE, "List the releases of this node's run."),
        CommandEntry("withdraw", _EXCHANGE, "Take a release back: it is granted no more."),
        CommandEntry(
            "annotate",
            "collective_node.annotation.annotation_command:register",
            "Show the images that look unknown on a local page.",
            needs=("sklearn",),
            extra="annotate",
        ),
    ),
)


def main() -> None:
    """Entry point of the console script."""
    import_guard.install("collective_node")
    run_app(app)
