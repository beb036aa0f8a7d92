"""Growth of the tensors that belong to parameters: momentum, anchors and Fisher diagonals follow the network."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

#: What a tensor holds: the parameter (now or earlier), its gradient (or momentum), or a squared gradient.
Kind = Literal["value", "gradient", "square"]

_BLOCK = re.compile(r"^blocks\.(\d+)\.")


def convolution_of(name: str) -> int | None:
    """Number of the convolution whose weights have this name; None if the name is of another parameter."""
    found = _BLOCK.match(name)
    return int(found[1]) if found is not None and name[found.end() :] == "conv.weight" else None


@dataclass(frozen=True)
class Copied:
    """Entries along one axis are copied, each with a factor.

    The factors of gradients are those of the function-preserving widening: a channel whose effect is divided among its
    copies gets its own fraction of the gradient back at each copy, and the weights that read the copies get the whole.

    Attributes:
        axis: 0 for weights that make the channels, 1 for weights that read them.
        source: int64 ``[new]``, the old entry of each new one.
        value, gradient: factors ``[new]``; None: ones.
        positions: along axis 1, how many neighbouring entries belong to one channel (a flattened map).
    """

    axis: Literal[0, 1]
    source: Tensor
    value: Tensor | None = None
    gradient: Tensor | None = None
    positions: int = 1

    def follow(self, tensor: Tensor, kind: Kind) -> Tensor:
        """The tensor in its grown shape."""
        factor = self.value if kind == "value" else self.gradient
        if factor is not None and kind == "square":
            factor = factor.square()
        if self.positions > 1:
            tensor = tensor.unflatten(self.axis, (-1, self.positions))
        grown = tensor.index_select(self.axis, self.source.to(tensor.device))
        if factor is not None:
            along = [1] * grown.ndim
            along[self.axis] = -1
            grown = grown * factor.to(grown).reshape(along)
        return grown.flatten(self.axis, self.axis + 1) if self.positions > 1 else grown


@dataclass(frozen=True)
class Appended:
    """``count`` new entries at the end of axis 0, which start at 0."""

    count: int

    def follow(self, tensor: Tensor, kind: Kind) -> Tensor:
        """The tensor in its grown shape."""
        return torch.cat([tensor, tensor.new_zeros((self.count, *tensor.shape[1:]))])


@dataclass(frozen=True)
class Growth:
    """One growth of an :class:`collective_node.network.expandable_network.ExpandableNetwork`.

    Attributes:
        moves: by the name of each parameter that changed its shape (``network.named_parameters()``).
        inserted: number of the new block, None if there is none; the blocks from there on move by one.
    """

    moves: Mapping[str, Copied | Appended] = field(default_factory=dict)
    inserted: int | None = None

    def follow(self, name: str, tensor: Tensor, kind: Kind) -> Tensor:
        """A tensor shaped as parameter ``name`` was before the growth, in the shape that it has now."""
        move = self.moves.get(name)
        return tensor if move is None else move.follow(tensor, kind)

    def renamed(self, name: str) -> str:
        """The name that the parameter ``name`` has now."""
        found = _BLOCK.match(name)
        if self.inserted is None or found is None or int(found[1]) < self.inserted:
            return name
        return f"blocks.{int(found[1]) + 1}.{name[found.end() :]}"

    def follow_all(self, tensors: Mapping[str, Tensor], kind: Kind) -> dict[str, Tensor]:
        """Every tensor in its new shape, under its new name."""
        return {self.renamed(name): self.follow(name, tensor, kind) for name, tensor in tensors.items()}
