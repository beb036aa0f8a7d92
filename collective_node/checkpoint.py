"""What a killed collective goes on from: its whole state after the last task or cycle that it finished."""

import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from collective_node.collective import Collective
from collective_node.records import Comparison, CycleRecord, Named, TaskRecord
from protocol.errors import InputError
from protocol.storage import write_folder_atomically


class Progress(BaseModel):
    """Everything besides tensors.

    Attributes:
        setup: digest of what the tasks depend on: settings, seed, images and thread count. A checkpoint serves only the
            setup that made it.
        cycle_setup: digest of what the cycles depend on besides; None before the first.
        torch: version that computed it; another may round otherwise.
        known: known classes in the order of the outputs, as numbers.
        tasks, cycles, named, comparisons: what was recorded so far.
        sigma, rho: the gradient trend so far (Eq. 5), ``rho`` by task, then layer.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    setup: str
    cycle_setup: str | None
    torch: str
    known: list[int]
    tasks: list[TaskRecord]
    cycles: list[CycleRecord]
    named: list[Named]
    comparisons: list[Comparison]
    sigma: float | None
    rho: list[list[float | None]]


def store(
    folder: Path, setup: str, cycle_setup: str | None, collective: Collective, comparisons: list[Comparison]
) -> None:
    """Keep a collective's state; the one before it goes only when this one is on disk."""
    progress = Progress(
        setup=setup,
        cycle_setup=cycle_setup if collective.cycles or comparisons else None,
        torch=torch.__version__,
        known=collective.known,
        tasks=collective.tasks,
        cycles=collective.cycles,
        named=collective.named,
        comparisons=comparisons,
        sigma=collective.trend.sigma,
        rho=collective.trend.rho,
    )
    tensors = _prefixed("network", collective.network.state_dict())
    tensors |= _prefixed("momentum", collective.momentum)
    tensors |= _prefixed("random", collective.random.state())
    if collective.consolidation is not None:
        tensors |= _prefixed("consolidation", collective.consolidation.tensors())
    files = {"state.safetensors": save(tensors), "progress.json": progress.model_dump_json().encode()}
    folder.mkdir(mode=0o700, exist_ok=True)
    # Each state has a name of its own, so that none is ever replaced.
    name = f"state-{len(collective.tasks) + len(comparisons) + len(collective.cycles):04d}"
    write_folder_atomically(folder / name, files)
    for other in (*folder.glob("state-*"), *folder.glob(".state-*.part")):  # earlier ones, and what a kill left of one
        if other.name != name:
            shutil.rmtree(other)


def latest(folder: Path) -> tuple[Progress, dict[str, dict[str, Tensor]]] | None:
    """The newest checkpoint: progress, and tensors by what they belong to (``network``, ``momentum``, ``random``,
    ``consolidation``); None where there is none.

    Raises:
        InputError: it cannot be read.
    """
    found = sorted(folder.glob("state-*"))
    if not found:
        return None
    try:
        progress = Progress.model_validate_json((found[-1] / "progress.json").read_bytes())
        state = load((found[-1] / "state.safetensors").read_bytes())
    except (OSError, ValidationError, SafetensorError) as error:
        raise InputError(f"the checkpoint {found[-1]} cannot be read; remove it to go on from the start") from error
    tensors: dict[str, dict[str, Tensor]] = {}
    for name, value in state.items():
        part, _, rest = name.partition("/")
        tensors.setdefault(part, {})[rest] = value
    return progress, tensors


def _prefixed(part: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{part}/{name}": value.detach().contiguous() for name, value in tensors.items()}
