"""``python -m collective_node`` is the command ``collective-node``."""

from collective_node.cli import main

main()
