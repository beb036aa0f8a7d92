"""The individual's network, built from a learngene's own description (Algorithm 1, RECONSTRUCT)."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from protocol.architecture import Architecture, Block
from protocol.learngene import Learngene
from protocol.network import build_blocks, initialise, layers_of, load_blocks

#: The individual's own light blocks, as shares of the width that the inherited layers expect: 64 128 256 512 for 512.
LIGHT_SHARES = (8, 4, 2, 1)


def light_blocks(architecture: Architecture) -> list[Block]:
    """The individual's own blocks in front of a learngene: none for ``condensed``, the four light ones for ``paper``.

    A max-pool follows the first three (appendix figure 1), or as many as leave a map for the inherited ones to halve.
    """
    if architecture.form == "condensed":
        return []
    width = architecture.blocks[0].in_channels
    halvings = min(architecture.input.height, architecture.input.width).bit_length() - 1
    spare = halvings - sum(block.pool for block in architecture.blocks)
    widths = (architecture.input.channels, *(max(1, width // share) for share in LIGHT_SHARES))
    return [
        Block(role="stem", in_channels=before, out_channels=after, pool=number < min(3, spare))
        for number, (before, after) in enumerate(pairwise(widths))
    ]


class IndividualNetworks(nn.Module):
    """Networks of several target tasks side by side: independent, and trained as one grouped network.

    Args:
        architecture: what the learngene says.
        ways: classes of each task.
        networks: number of tasks.

    Attributes:
        inherited: the blocks that a learngene fills.
    """

    def __init__(self, architecture: Architecture, *, ways: int, networks: int) -> None:
        super().__init__()
        own = light_blocks(architecture)
        blocks = [*own, *architecture.blocks]
        self.blocks = build_blocks(blocks, networks=networks)
        self.inherited = layers_of(self.blocks)[len(own) :]
        height, width = architecture.input.height, architecture.input.width
        for block in blocks:
            if block.pool:
                height, width = height // 2, width // 2
        hidden = 2 * architecture.features
        features = architecture.features * height * width

        def layer(before: int, after: int) -> nn.Conv2d:
            return nn.Conv2d(networks * before, networks * after, 1, groups=networks)

        self.classifier = nn.Sequential(
            layer(features, hidden), nn.ReLU(), layer(hidden, hidden), nn.ReLU(), layer(hidden, ways)
        )
        self.networks, self.ways = networks, ways

    def forward(self, x: Tensor) -> Tensor:
        """Images ``[N, networks * C, H, W]`` to logits ``[N, networks, ways]``."""
        features = self.blocks(x)
        logits: Tensor = self.classifier(features.reshape(len(x), -1, 1, 1))
        return logits.reshape(len(x), self.networks, self.ways)


def reconstruct(
    architecture: Architecture, learngene: Learngene | None, *, ways: int, generators: Sequence[torch.Generator]
) -> IndividualNetworks:
    """Fresh networks, one per generator, each drawn from its own generator alone, then filled from the learngene.

    So what a target task starts from depends neither on the task before it nor on those that train beside it.

    Args:
        learngene: None for a network of the same architecture that inherits nothing.
    """
    joint = IndividualNetworks(architecture, ways=ways, networks=len(generators))
    singles = []
    for generator in generators:
        single = IndividualNetworks(architecture, ways=ways, networks=1)
        initialise(single, generator)
        singles.append(single.state_dict())
    joint.load_state_dict(
        {
            name: value if value.ndim == 0 else torch.cat([single[name] for single in singles])
            for name, value in singles[0].items()
        }
    )
    if learngene is not None:
        load_blocks(joint.inherited, learngene.tensors)
    return joint
