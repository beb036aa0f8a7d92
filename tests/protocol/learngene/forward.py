"""The forward pass of a complete learngene, for tests: its blocks, filled from its tensors."""

import torch
from torch import Tensor

from protocol.learngene.learngene import Learngene
from protocol.learngene.network import build_blocks, layers_of, load_blocks


def features(learngene: Learngene, x: Tensor) -> Tensor:
    """Images ``[N, C, H, W]`` to the last feature map."""
    network = build_blocks(learngene.architecture.blocks).eval()
    load_blocks(layers_of(network), learngene.tensors)
    with torch.no_grad():
        found: Tensor = network(x)
    return found
