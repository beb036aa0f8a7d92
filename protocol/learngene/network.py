"""Blocks of convolutions as torch modules, built from an architecture and filled from a learngene."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from protocol.learngene.architecture import (
    BLOCK_PARAMETERS,
    BLOCK_STATISTICS,
    Architecture,
    Block,
    BlockRole,
    Norm,
    groups_of,
)


class ConvolutionBlock(nn.Module):
    """3x3 convolution without bias, normalisation, ReLU and, if asked for, a 2x2 max-pool.

    Args:
        in_channels, out_channels: channels of one network.
        pool: whether a 2x2 max-pool follows.
        networks: how many independent networks run side by side as one grouped convolution. Input and output are
            then ``[N, networks * channels, H, W]``, and the normalisation keeps each network apart.
        norm: BatchNorm, or GroupNorm in ``groups_of(out_channels)`` groups.
    """

    norm: nn.BatchNorm2d | nn.GroupNorm

    def __init__(
        self, in_channels: int, out_channels: int, *, pool: bool, networks: int = 1, norm: Norm = "batch"
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            networks * in_channels, networks * out_channels, 3, padding=1, bias=False, groups=networks
        )
        if norm == "batch":
            self.norm = nn.BatchNorm2d(networks * out_channels)
        else:
            self.norm = nn.GroupNorm(networks * groups_of(out_channels), networks * out_channels)
        self.pool = pool
        self.networks = networks

    def forward(self, x: Tensor) -> Tensor:
        """``[N, networks * in_channels, H, W]`` to ``[N, networks * out_channels, H', W']``."""
        x = self.norm(self.conv(x))
        # The largest of four is the same before and after ReLU, which then has a quarter of the work.
        return torch.relu(nn.functional.max_pool2d(x, 2) if self.pool else x)

    def describe(self, role: BlockRole) -> Block:
        """One network's block, as a learngene describes it."""
        return Block(
            role=role,
            in_channels=self.conv.in_channels // self.networks,
            out_channels=self.conv.out_channels // self.networks,
            pool=self.pool,
            norm="batch" if isinstance(self.norm, nn.BatchNorm2d) else "group",
        )


def layers_of(blocks: nn.Sequential) -> list[ConvolutionBlock]:
    """The blocks of a chain, in order."""
    return [block for block in blocks if isinstance(block, ConvolutionBlock)]


def build_blocks(blocks: Iterable[Block], *, networks: int = 1) -> nn.Sequential:
    """Blocks with torch's own random initialisation, in order."""
    return nn.Sequential(
        *(ConvolutionBlock(b.in_channels, b.out_channels, pool=b.pool, networks=networks, norm=b.norm) for b in blocks)
    )


def initialise(blocks: nn.Module, generator: torch.Generator) -> None:
    """Draw new weights for every convolution (He, fan-in, from ``generator`` on the CPU) and reset every normalisation.

    He et al. 2015, *Delving Deep into Rectifiers*, equation 10: variance ``2 / fan_in``.
    """
    for module in blocks.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            fan_in = module.weight.shape[1:].numel()
            values = torch.randn(module.weight.shape, generator=generator) * (2.0 / fan_in) ** 0.5
            with torch.no_grad():
                module.weight.copy_(values)
                if module.bias is not None:
                    module.bias.zero_()
        elif isinstance(module, nn.BatchNorm2d | nn.GroupNorm):
            module.reset_parameters()


def average_statistics(model: nn.Module) -> list[nn.BatchNorm2d]:
    """Let every BatchNorm begin its running statistics anew, as plain averages over the batches from now on; returns
    them."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # torch: a cumulative average
    return norms


def block_tensors(blocks: Sequence[ConvolutionBlock]) -> dict[str, Tensor]:
    """Parameters and running statistics of the blocks of one network, by the blob's names (``block.<i>.<name>``)."""
    names = BLOCK_PARAMETERS + BLOCK_STATISTICS
    found: dict[str, Tensor] = {}
    for index, block in enumerate(blocks):
        state = block.state_dict(keep_vars=True)
        found.update({f"block.{index}.{name}": state[name] for name in names if name in state})
    return found


def load_blocks(blocks: Sequence[ConvolutionBlock], tensors: Mapping[str, NDArray[np.float32]]) -> None:
    """Copy a learngene's tensors into blocks; if the blocks hold several networks, into every one of them.

    Raises:
        ValueError: a tensor's shape is not the block's; both shapes are named.
    """
    for name, target in block_tensors(blocks).items():
        networks = blocks[int(name.split(".")[1])].networks
        source = torch.from_numpy(np.array(tensors[name]))  # a copy: the blob's view is read-only
        if (source.shape[0] * networks, *source.shape[1:]) != tuple(target.shape):
            raise ValueError(f"{name}: the learngene holds {tuple(source.shape)}, the network {tuple(target.shape)}")
        with torch.no_grad():
            target.copy_(source.repeat(networks, *([1] * (source.ndim - 1))))


def describe(architecture: Architecture) -> str:
    """One readable line, such as ``3 -> 16p -> 32p -> 64p -> 64p | 64 -> 64 -> 64p`` (``p``: max-pool)."""
    parts = [str(architecture.blocks[0].in_channels)]
    role = architecture.blocks[0].role
    for block in architecture.blocks:
        parts.append("|" if block.role != role else "->")
        role = block.role
        parts.append(f"{block.out_channels}{'p' if block.pool else ''}")
    return " ".join(parts)
