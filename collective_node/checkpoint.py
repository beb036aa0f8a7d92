"""Checkpoints of an evolution: the whole state of a collective after the last task or cycle that it finished."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from collective_node.collective import Collective
from collective_node.ewc import EwcPenalty
from collective_node.records import Comparison, CycleRecord, Named, TaskRecord
from protocol.encoding import strict_json
from protocol.encoding.earlier_words import in_todays_words
from protocol.errors import InputError
from protocol.files import state_files
from protocol.files.atomic import write_folder_atomically

_WHAT = "the checkpoint"
#: Name of the EWC penalty's tensors in a checkpoint.
_EWC = "consolidation"
_TENSORS, _PROGRESS = "state.safetensors", "progress.json"
_is_state = re.compile(r"state-[0-9]{4,9}").fullmatch
_is_left_over = re.compile(r"\.?state-[0-9]{4,9}(\.[a-z0-9_]+\.part)?").fullmatch
_MOST_PROGRESS_BYTES = 16 << 20
#: Largest header of a tensor file, in bytes.
_MOST_HEADER_BYTES = 1 << 20
_LONGEST_NAME = 256


class Progress(BaseModel):
    """Everything in a checkpoint but the tensors.

    Attributes:
        setup: fingerprint of what the tasks depend on: settings, seed, images and thread count. A checkpoint can be
            used only with the setup that it was made with.
        cycle_setup: fingerprint of what the cycles depend on besides the tasks; None before the first cycle.
        torch: version that computed it; another version may round differently.
        known: known classes in the order of the outputs, as numbers.
        tasks, cycles, named, comparisons: the records so far.
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
    """Store a collective's state; the state before it is removed only when this one is on disk."""
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
    if collective.ewc is not None:
        tensors |= _prefixed(_EWC, collective.ewc.tensors())
    files = {_TENSORS: save(tensors), _PROGRESS: progress.model_dump_json().encode()}
    state_files.subfolder(folder.parent, folder.name, "the folder of checkpoints")
    # Each state has a name of its own, so no file is ever replaced.
    name = f"state-{len(collective.tasks) + len(comparisons) + len(collective.cycles):04d}"
    write_folder_atomically(folder / name, files)
    for other in _entries(folder):  # earlier ones, and what a kill left of one
        if other != name and _is_left_over(other):
            state_files.remove(folder / other)


@dataclass(frozen=True)
class Found:
    """The newest checkpoint of a folder, before its tensors are read: its progress says which tensors it must hold.

    A process that was taken over may have written anything: nothing is unpickled, and what does not fit is refused.
    """

    folder: Path
    name: str
    progress: Progress

    def check(self, *, tasks: int, cycles: int, comparisons: int, stream: int) -> None:
        """Check that a run could have this progress: no more tasks, cycles or comparisons than given, cycles only after
        all tasks, and rows inside the stream.

        Raises:
            InputError: no run can have this progress.
        """
        found = self.progress
        rows = [row for named in found.named for row in named.rows]
        names = [name for named in found.named for name in named.names]
        whole = (
            len(found.tasks) <= tasks
            and (len(found.tasks) == tasks or not (found.cycles or found.comparisons))
            and len(found.cycles) == len(found.named) <= cycles
            and len(found.comparisons) <= comparisons
            and all(len(named.rows) == len(named.names) for named in found.named)
            and len(rows) == len(set(rows))
            and all(0 <= row < stream for row in rows)
            and all(0 < len(name) <= _LONGEST_NAME for name in names)
            and len(found.rho) == len(found.tasks)
        )
        if not whole:
            raise self._refusal("it tells of a life that no run has")

    def restore(self, collective: Collective) -> None:
        """Restore the state of a collective that was already grown to the size in ``progress``.

        Raises:
            InputError: the tensors are not those of such a collective.
        """
        found, network = self.progress, collective.network
        if found.known != collective.known or any(len(row) != len(network.layers) for row in found.rho):
            raise self._refusal("it tells of another network")
        parameters = dict(network.named_parameters())
        device = next(iter(parameters.values())).device
        parts = {
            "network": network.state_dict(),
            "random": collective.random.state(),
            "momentum": parameters,
            _EWC: {f"{kind}.{name}": value for kind in ("anchor", "fisher") for name, value in parameters.items()},
        }
        state = self._tensors({f"{part}/{name}": value for part, all in parts.items() for name, value in all.items()})
        try:
            # Stricter than torch, which accepts a network without its batch counts.
            if state["network"].keys() != parts["network"].keys():
                raise KeyError("network")
            network.load_state_dict(state["network"])
            collective.random.restore(state["random"])
            if _EWC in state:
                collective.ewc = EwcPenalty.from_tensors(
                    {name: value.to(device) for name, value in state[_EWC].items()}
                )
        except (KeyError, ValueError, RuntimeError):
            raise self._refusal("its tensors are not whole") from None
        collective.momentum = {name: value.to(device) for name, value in state.get("momentum", {}).items()}
        collective.trend.sigma, collective.trend.rho = found.sigma, found.rho
        collective.tasks, collective.cycles = found.tasks, found.cycles

    def _tensors(self, allowed: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
        """The tensors by the part that they belong to; each is one of ``allowed``, of its type and shape."""
        size = sum(value.numel() * value.element_size() for value in allowed.values())
        data = state_files.read(
            self.folder.parent,
            f"{self.folder.name}/{self.name}/{_TENSORS}",
            _WHAT,
            max_bytes=size + _MOST_HEADER_BYTES,
        )
        try:
            state = load(b"" if data is None else data)
        except (SafetensorError, ValueError, TypeError, KeyError, RuntimeError):
            raise self._refusal("its tensors cannot be read") from None
        tensors: dict[str, dict[str, Tensor]] = {}
        for name, value in state.items():
            known = allowed.get(name)
            if known is None or (value.dtype, value.shape) != (known.dtype, known.shape):
                raise self._refusal("it holds other tensors than its network has")
            part, _, rest = name.partition("/")
            tensors.setdefault(part, {})[rest] = value
        return tensors

    def _refusal(self, why: str) -> InputError:
        return _refusal(self.folder / self.name, why)


def latest(folder: Path) -> Found | None:
    """The newest checkpoint; None if there is none.

    Raises:
        InputError: it cannot be read.
    """
    names = [name for name in _entries(folder) if _is_state(name)]
    if not names:
        return None
    name = max(names, key=lambda name: int(name.removeprefix("state-")))
    data = state_files.read(folder.parent, f"{folder.name}/{name}/{_PROGRESS}", _WHAT, max_bytes=_MOST_PROGRESS_BYTES)
    try:
        document = strict_json.parse(b"" if data is None else data)
        return Found(folder, name, Progress.model_validate(in_todays_words(document)))
    except ValidationError:
        raise _refusal(folder / name, "its progress is of another form") from None
    except ValueError as error:
        raise _refusal(folder / name, str(error)) from None


def _entries(folder: Path) -> list[str]:
    return state_files.entries(folder.parent, folder.name, "the folder of checkpoints")


def _refusal(path: Path, why: str) -> InputError:
    return InputError(f"the checkpoint {path} cannot be read: {why}; remove it to go on from the start")


def _prefixed(part: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{part}/{name}": value.detach().contiguous() for name, value in tensors.items()}
