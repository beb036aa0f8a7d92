"""A node's metrics, kept in its own state folder; they never cross the socket. Each party has a model of its own."""

import json
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import BaseModel, Field, StringConstraints, ValidationError

from protocol.encoding import strict_json
from protocol.errors import InputError, fault_line
from protocol.files import state_files
from protocol.files.atomic import write_atomically

#: Name of the file in a node's state folder.
METRICS_FILE = "metrics.json"
#: Largest file in bytes; a node with ten thousand target tasks writes less.
_MOST_BYTES = 16 << 20

#: A share in per cent.
Percent = Annotated[float, Field(ge=0, le=100)]
#: A name that can stand in a table, a figure and a file name.
Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9 ._-]{0,99}$")]

_Metrics = TypeVar("_Metrics", bound=BaseModel)


def write_metrics(state: Path, metrics: BaseModel) -> None:
    """Store the figures of a node, readable and sorted. A field that was not given is left out."""
    document = metrics.model_dump(mode="json", include=metrics.model_fields_set)
    data = json.dumps(document, indent=1, sort_keys=True, allow_nan=False) + "\n"
    write_atomically(state / METRICS_FILE, data.encode(), mode=0o600)


def read_metrics(state: Path, model: type[_Metrics]) -> _Metrics | None:
    """The figures that a node stored; None if there are none. A node that was taken over may have written anything.

    Raises:
        InputError: the file is not one that such a node writes.
    """
    data = state_files.read(state, METRICS_FILE, "the figures", max_bytes=_MOST_BYTES)
    if data is None:
        return None
    try:
        return model.model_validate(strict_json.parse_object(data))
    except ValidationError as error:
        raise InputError(f"{state / METRICS_FILE}: {fault_line(error)}") from None
    except ValueError as error:
        raise InputError(f"the figures {state / METRICS_FILE} are none that a node writes: {error}") from None
