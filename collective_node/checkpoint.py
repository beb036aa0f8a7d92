"""What a killed collective goes on from: the network after its last task, and all that was recorded on the way."""

import shutil
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save

from collective_node.expandable_network import ExpandableNetwork
from protocol.errors import InputError
from protocol.storage import write_folder_atomically


class TaskRecord(BaseModel):
    """One finished task: its classes by name, how many are known after it, its steps, and accuracies in per cent on
    held-out images of all known classes and of those known before it (none before the first)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: int
    classes: list[str]
    known: int
    steps: int
    loss: float
    accuracy: float
    old_accuracy: float | None
    widths: list[int]
    seconds: float


class Progress(BaseModel):
    """Everything besides the weights.

    Attributes:
        setup: digest of settings, seed and data; a checkpoint serves only the setup that made it.
        known: known classes (indices of base classes) in the order of the outputs.
        tasks: a record per finished task.
        sigma, rho: the gradient trend so far (Eq. 5), ``rho`` by task, then layer.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    setup: str
    known: list[int]
    tasks: list[TaskRecord]
    sigma: float | None
    rho: list[list[float]]


def store(folder: Path, network: ExpandableNetwork, progress: Progress) -> None:
    """Keep the state after the last finished task; the one before it goes only when this one is on disk."""
    folder.mkdir(mode=0o700, exist_ok=True)
    name = f"task-{len(progress.tasks):04d}"
    tensors = {key: value.contiguous() for key, value in network.state_dict().items()}
    files = {"network.safetensors": save(tensors), "progress.json": progress.model_dump_json().encode()}
    write_folder_atomically(folder / name, files)
    for other in folder.glob("task-*"):
        if other.name != name:
            shutil.rmtree(other)


def latest(folder: Path) -> tuple[Progress, dict[str, torch.Tensor]] | None:
    """The newest checkpoint: progress and the network's state; None where there is none.

    Raises:
        InputError: it cannot be read.
    """
    found = sorted(folder.glob("task-*"))
    if not found:
        return None
    try:
        progress = Progress.model_validate_json((found[-1] / "progress.json").read_bytes())
        state = load((found[-1] / "network.safetensors").read_bytes())
    except (OSError, ValidationError, SafetensorError) as error:
        raise InputError(f"the checkpoint {found[-1]} cannot be read; remove it to go on from the start") from error
    return progress, state
