"""The registry of the collective's random streams, which every checkpoint holds."""

import copy
import hashlib
from collections.abc import Mapping
from typing import Literal, Self, get_args

import torch
from torch import Tensor

#: Names of the random streams: each purpose has its own, so that none depends on how much another drew.
Stream = Literal["weights", "growth", "outputs", "batches", "augmentation", "dropout", "fisher"]
STREAMS: tuple[Stream, ...] = get_args(Stream)


class RandomStates:
    """Random generators (CPU) by name, each seeded by the run's seed and its own name.

    Only the sequence of tasks is drawn elsewhere: it follows from the seed alone.

    Args:
        seed: of the run.
    """

    def __init__(self, seed: int) -> None:
        self._generators = {name: torch.Generator().manual_seed(_seed_of(seed, name)) for name in STREAMS}

    def __getitem__(self, name: Stream) -> torch.Generator:
        """The generator of one stream."""
        return self._generators[name]

    def draw_seed(self, name: Stream) -> int:
        """Draw a seed from a stream, for randomness that takes no generator (dropout)."""
        return int(torch.randint(2**62, (1,), generator=self[name]))

    def state(self) -> dict[str, Tensor]:
        """The state of every stream, uint8 tensors by name."""
        return {name: generator.get_state() for name, generator in self._generators.items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Restore the state of every stream.

        Raises:
            KeyError: a stream is missing.
        """
        for name, generator in self._generators.items():
            generator.set_state(state[name])

    def copy(self) -> Self:
        """Copy the streams in their present state, for a trial."""
        other = copy.copy(self)
        other._generators = {name: torch.Generator() for name in STREAMS}
        other.restore(self.state())
        return other


def _seed_of(seed: int, name: str) -> int:
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
