"""All acts, in the order of the table."""

# Each registers its own when it is imported.
from . import (  # noqa: F401
    code,
    files,
    ipc,
    machine,
    metadata,
    network,
    privileges,
    processes,
    programs,
    resources,
    signals,
    terminal,
    views,
    writing,
)
from .act import ACTS, REGISTERED, Outcome, Trial, perform

__all__ = ["ACTS", "TRIALS", "Outcome", "Trial", "perform"]

_ORDER = (
    *("files", "programs", "views", "code", "writing", "metadata", "processes", "signals", "privileges", "terminal"),
    *("ipc", "machine", "network", "resources"),
)
TRIALS: tuple[Trial, ...] = tuple(
    sorted(REGISTERED, key=lambda trial: _ORDER.index(ACTS[trial.act].__module__.rpartition(".")[2]))
)
