"""A node's figures, kept in its own state folder; they never cross the socket."""

import json
from collections.abc import Mapping
from pathlib import Path

from protocol.encoding import strict_json
from protocol.errors import InputError
from protocol.files import state_files
from protocol.files.atomic import write_atomically

#: Name of the file in a node's state folder.
METRICS_FILE = "metrics.json"
#: A node with ten thousand target tasks writes less.
_MOST_BYTES = 16 << 20


def write_metrics(state: Path, metrics: Mapping[str, object]) -> None:
    """Store the figures of a node, readable and sorted."""
    data = json.dumps(metrics, indent=1, sort_keys=True, allow_nan=False) + "\n"
    write_atomically(state / METRICS_FILE, data.encode(), mode=0o600)


def read_metrics(state: Path) -> dict[str, object] | None:
    """The figures that a node stored, as it says them: a node that was taken over may have written any. None: none.

    Raises:
        InputError: what stands there is no JSON object, or nothing that a node writes.
    """
    data = state_files.read(state, METRICS_FILE, "the figures", max_bytes=_MOST_BYTES)
    if data is None:
        return None
    try:
        return strict_json.parse_object(data)
    except ValueError as error:
        raise InputError(f"the figures {state / METRICS_FILE} are none that a node writes: {error}") from None
