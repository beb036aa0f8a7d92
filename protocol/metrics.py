"""A node's figures, kept in its own state folder; they never cross the socket."""

import json
from collections.abc import Mapping
from pathlib import Path

from protocol.storage import write_atomically

#: Name of the file in a node's state folder.
METRICS_FILE = "metrics.json"


def write_metrics(state: Path, metrics: Mapping[str, object]) -> None:
    """Store the figures of a node, readable and sorted."""
    data = json.dumps(metrics, indent=1, sort_keys=True, allow_nan=False) + "\n"
    write_atomically(state / METRICS_FILE, data.encode(), mode=0o600)
