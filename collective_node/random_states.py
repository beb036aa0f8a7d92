"""The one registry of the collective's randomness: named streams, saved with every checkpoint."""

import copy
import hashlib
from collections.abc import Mapping
from typing import Literal, Self, get_args

import torch
from torch import Tensor

#: What is drawn. Each has a stream of its own, so that none depends on how much another drew.
Stream = Literal["weights", "growth", "outputs", "batches", "augmentation", "dropout", "fisher"]
STREAMS: tuple[Stream, ...] = get_args(Stream)


class RandomStates:
    """Random generators (CPU) by name, each seeded by the run's seed and its own name.

    The one thing drawn elsewhere is the sequence of tasks, which follows from the seed alone before anything begins.

    Args:
        seed: of the run.
    """

    def __init__(self, seed: int) -> None:
        self._generators = {name: torch.Generator().manual_seed(_seed_of(seed, name)) for name in STREAMS}

    def __getitem__(self, name: Stream) -> torch.Generator:
        """The generator of one stream."""
        return self._generators[name]

    def draw_seed(self, name: Stream) -> int:
        """A seed for randomness that takes no generator (dropout), drawn from a stream."""
        return int(torch.randint(2**62, (1,), generator=self[name]))

    def state(self) -> dict[str, Tensor]:
        """Where every stream stands, uint8 tensors by name."""
        return {name: generator.get_state() for name, generator in self._generators.items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Put every stream where ``state`` says.

        Raises:
            KeyError: a stream is missing.
        """
        for name, generator in self._generators.items():
            generator.set_state(state[name])

    def copy(self) -> Self:
        """Streams that go on from here on their own, for something that is tried and thrown away."""
        other = copy.copy(self)
        other._generators = {name: torch.Generator() for name in STREAMS}
        other.restore(self.state())
        return other


def _seed_of(seed: int, name: str) -> int:
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
