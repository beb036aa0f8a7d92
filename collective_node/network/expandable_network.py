"""The collective's network: convolutions that widen and deepen, and one classifier that grows (Eq. 1; appendix A.1)."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from collective_node.network.answers import Answers, full
from collective_node.network.cosine_classifier import CosineClassifier, UnitLength
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
        cosine: whether the classifier is a cosine classifier, which has no hidden layer.
        tells_turns: whether it has a second head, which tells by how many quarters an image was turned.
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
        cosine: bool = False,
        tells_turns: bool = False,
    ) -> None:
        super().__init__()
        pooled = [index in POOLED for index in range(len(widths))]
        self.blocks = build_blocks(
            Block(role="top", in_channels=before, out_channels=after, pool=pool)
            for (before, after), pool in zip(pairwise((channels, *widths)), pooled, strict=True)
        )
        self.classifier = build_classifier(widths[-1] * positions, hidden, dropout, cosine=cosine)
        self.turns = nn.Linear(widths[-1] * positions, 4) if tells_turns else None
        self.positions = positions
        initialise(self, generator)

    def forward(self, x: Tensor) -> Tensor:
        """Images ``[N, C, H, W]`` to logits ``[N, known classes]``; no softmax, cross-entropy takes logits."""
        logits: Tensor = self.classifier(self.blocks(x))
        return logits

    def features(self, x: Tensor) -> Tensor:
        """Images ``[N, C, H, W]`` to the last feature map ``[N, F, h, w]``."""
        found: Tensor = self.blocks(x)
        return found

    def answers(self, x: Tensor) -> Answers:
        """Logits, and what the second head says if there is one."""
        if self.turns is None:
            return Answers(full(self(x)))
        found = self.features(x)
        flat = full(found.flatten(1))
        return Answers(full(self.classifier(found)), flat, turns=self.turns(flat))

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


def build_classifier(features: int, hidden: int, dropout: float, *, cosine: bool = False) -> nn.Sequential:
    """The thin classifier, with one output per class (none yet): two hidden layers with ReLU and dropout, or none; or
    cosines of the features."""
    if cosine:
        classifier = CosineClassifier(features, 1)
        _without_rows(classifier.directions)
        return nn.Sequential(nn.Flatten(), UnitLength(), classifier)
    output = nn.Linear(hidden or features, 1)
    _without_rows(output)
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


def _without_rows(layer: nn.Linear) -> None:
    """Take all outputs from a layer; it was created with one, because torch warns of a layer without rows."""
    replace_parameter(layer, "weight", layer.weight.detach()[:0])
    if layer.bias is not None:
        replace_parameter(layer, "bias", layer.bias.detach()[:0])
    layer.out_features = 0


def output_layer(classifier: nn.Sequential) -> nn.Linear:
    """The classifier's last linear layer, with a row for each class; of a cosine classifier the classes' directions."""
    layer = classifier[-1]
    if isinstance(layer, CosineClassifier):
        return layer.directions
    assert isinstance(layer, nn.Linear)
    return layer


def output_weights(classifier: nn.Sequential) -> Tensor:
    """What the logits are linear in: ``[outputs, F]``, on what the classifier's last part takes."""
    layer = classifier[-1]
    return layer.weights if isinstance(layer, CosineClassifier) else output_layer(classifier).weight


def replace_parameter(module: nn.Module, name: str, value: Tensor) -> None:
    """Put a new parameter in the place of an old one, in its memory format."""
    if value.ndim == 4:
        value = value.contiguous(memory_format=torch.channels_last)
    setattr(module, name, nn.Parameter(value.clone(memory_format=torch.preserve_format)))
