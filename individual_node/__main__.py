"""``python -m individual_node`` is the command ``individual-node``."""

from individual_node.cli import main

main()
