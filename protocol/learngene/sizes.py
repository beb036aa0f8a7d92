"""Descent of a learngene to one of its sizes, for a device that cannot carry the whole."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from protocol.errors import InputError
from protocol.learngene.architecture import BLOCK_PARAMETERS, FULL, Architecture, Size, sized_blocks
from protocol.learngene.learngene import Learngene

Tensors = Mapping[str, NDArray[np.float32]]


def descend(learngene: Learngene, size: Size) -> Learngene:
    """One size of a learngene as a learngene by itself, without further sizes.

    A nested size has the first channels of the whole's convolutions, and BatchNorms of its own. Its Fisher diagonal is
    the whole's, of the weights that it has; that of its BatchNorms was taken of the whole's too. A size with weights of
    its own has no Fisher diagonal.

    Raises:
        InputError: the learngene has no such size.
    """
    whole = learngene.architecture
    if size == FULL:
        tensors = {name: array for name, array in learngene.tensors.items() if not name.startswith("size.")}
        return Learngene(whole.of_size(FULL), tensors, learngene.fisher, learngene.privacy)
    if size not in whole.sizes:
        raise InputError(f"the learngene has no size {size}; it has {sizes_in_words(whole)}")
    fisher = learngene.fisher if whole.size_weights == "nested" else None
    tensors = {name: array for name, array in learngene.tensors.items() if name.startswith("input.")}
    for number, (index, block) in enumerate(sized_blocks(whole.blocks, size).items()):
        own = f"size.{whole.sizes.index(size)}.block.{index}."
        for name, shape in block.tensors().items():
            full = f"block.{index}.{name}"
            given = learngene.tensors.get(own + name)
            tensors[f"block.{number}.{name}"] = _first(learngene.tensors[full], shape) if given is None else given
            if fisher is not None and name in BLOCK_PARAMETERS:
                tensors[f"fisher.block.{number}.{name}"] = _first(learngene.tensors[f"fisher.{full}"], shape)
    return Learngene(whole.of_size(size), tensors, fisher, learngene.privacy)


def largest_size(architecture: Architecture, most_weights: int) -> Size:
    """The largest size of at most so many weights.

    Raises:
        InputError: there is none.
    """
    every: tuple[Size, ...] = (FULL, *reversed(architecture.sizes))
    for size in every:
        if architecture.of_size(size).parameters <= most_weights:
            return size
    raise InputError(
        f"no size of the learngene has at most {most_weights:,} weights; it has {sizes_in_words(architecture)}"
    )


def sizes_in_words(architecture: Architecture) -> str:
    """Every size with its number of weights, the whole first."""
    every: tuple[Size, ...] = (FULL, *reversed(architecture.sizes))
    return ", ".join(f"{size} ({architecture.of_size(size).parameters:,} weights)" for size in every)


def _first(array: NDArray[np.float32], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """The first entries along the channels; a kernel's own sides are the same."""
    return np.ascontiguousarray(array[tuple(slice(side) for side in shape)])
