"""The collective's network: convolutions that widen and deepen, and one classifier that grows (Eq. 1; appendix A.1)."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from collective_node.network.dropout import Dropout
from protocol.learngene.architecture import Block
from protocol.learngene.network import ConvolutionBlock, build_blocks, initialise, layers_of

#: Convolutions (0-based) that a 2x2 max-pool follows.
POOLED = (1, 3, 6, 9, 12)
#: Hidden units of each of the classifier's two hidden layers, at width factor 1.
HIDDEN = 1024


def scaled(channels: int, width: float) -> int:
    """Channels at a width factor, at least one."""
    return max(1, round(channels * width))


class ExpandableNetwork(nn.Module):
    """Convolution blocks and a classifier, whose convolutions widen and whose outputs grow.

    Args:
        widths: output channels of each block.
        channels: channels of the input images.
        positions: positions of the last feature map that reach the classifier (1 for 32x32 images).
        hidden: units of each of the classifier's two hidden layers; 0: it has none.
        dropout: probability of dropping a hidden unit in training.
        generator: source of the initial weights (CPU).
    """

    def __init__(
        self,
        widths: Sequence[int],
        *,
        channels: int = 3,
        positions: int = 1,
        hidden: int,
        dropout: float,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        pooled = [index in POOLED for index in range(len(widths))]
        self.blocks = build_blocks(
            Block(role="top", in_channels=before, out_channels=after, pool=pool)
            for (before, after), pool in zip(pairwise((channels, *widths)), pooled, strict=True)
        )
        self.classifier = build_classifier(widths[-1] * positions, hidden, dropout)
        self.positions = positions
        initialise(self, generator)

    def forward(self, x: Tensor) -> Tensor:
        """Images ``[N, C, H, W]`` to logits ``[N, known classes]``; no softmax, cross-entropy takes logits."""
        logits: Tensor = self.classifier(self.blocks(x))
        return logits

    @property
    def layers(self) -> list[ConvolutionBlock]:
        """The blocks, in order."""
        return layers_of(self.blocks)

    @property
    def widths(self) -> tuple[int, ...]:
        """Output channels of each block."""
        return tuple(block.conv.out_channels for block in self.layers)

    @property
    def outputs(self) -> int:
        """Number of known classes."""
        return output_layer(self.classifier).out_features


def build_classifier(features: int, hidden: int, dropout: float) -> nn.Sequential:
    """The thin classifier: two hidden layers with ReLU and dropout, or none, then one output per class (none yet)."""
    output = nn.Linear(hidden or features, 1)  # created with one row, because torch warns of a layer without rows
    replace_parameter(output, "weight", output.weight.detach()[:0])
    replace_parameter(output, "bias", output.bias.detach()[:0])
    output.out_features = 0
    if hidden == 0:
        return nn.Sequential(nn.Flatten(), output)
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(features, hidden),
        nn.ReLU(),
        Dropout(dropout),
        nn.Linear(hidden, hidden),
        nn.ReLU(),
        Dropout(dropout),
        output,
    )


def output_layer(classifier: nn.Sequential) -> nn.Linear:
    """The classifier's last layer."""
    layer = classifier[-1]
    assert isinstance(layer, nn.Linear)
    return layer


def replace_parameter(module: nn.Module, name: str, value: Tensor) -> None:
    """Put a new parameter in the place of an old one, in its memory format."""
    if value.ndim == 4:
        value = value.contiguous(memory_format=torch.channels_last)
    setattr(module, name, nn.Parameter(value.clone(memory_format=torch.preserve_format)))
