"""The collective's network: thirteen convolutions that widen, and one classifier that grows (Eq. 1; appendix A.1)."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from protocol.architecture import Block
from protocol.network import ConvolutionBlock, build_blocks, initialise, layers_of

#: Base widths of the thirteen convolutions, at width factor 1.
BASE_WIDTHS = (64, 64, 64, 64, 128, 128, 128, 256, 256, 256, 256, 256, 256)
#: Convolutions (0-based) that a 2x2 max-pool follows.
POOLED = (1, 3, 6, 9, 12)
#: Hidden units of each of the classifier's two hidden layers, at width factor 1.
HIDDEN = 1024


def scaled(channels: int, width: float) -> int:
    """Channels at a width factor, at least one."""
    return max(1, round(channels * width))


class ExpandableNetwork(nn.Module):
    """Convolution blocks and a classifier of two hidden layers, whose convolutions widen and whose outputs grow.

    Args:
        widths: output channels of each block.
        channels: channels of the input images.
        positions: positions of the last feature map that reach the classifier (1 for 32x32 images).
        hidden: units of each hidden layer.
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
    """The thin classifier: two hidden layers with ReLU and dropout, then one output per class (none yet)."""
    output = nn.Linear(hidden, 1)  # made with a row, because torch warns of a layer without any
    _replace(output, "weight", output.weight.detach()[:0])
    _replace(output, "bias", output.bias.detach()[:0])
    output.out_features = 0
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(features, hidden),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Linear(hidden, hidden),
        nn.ReLU(),
        nn.Dropout(dropout),
        output,
    )


def output_layer(classifier: nn.Sequential) -> nn.Linear:
    """The classifier's last layer."""
    layer = classifier[-1]
    assert isinstance(layer, nn.Linear)
    return layer


def add_outputs(network: ExpandableNetwork, count: int, generator: torch.Generator) -> None:
    """Add ``count`` outputs for new classes; the logits of the known ones stay as they are.

    New rows are drawn small (standard deviation ``fan_in ** -0.5 / 10``) so that a new class starts near logit 0.
    """
    layer = output_layer(network.classifier)
    rows = torch.randn((count, layer.in_features), generator=generator) * (layer.in_features**-0.5 / 10)
    _replace(layer, "weight", torch.cat([layer.weight.detach(), rows.to(layer.weight)]))
    _replace(layer, "bias", torch.cat([layer.bias.detach(), layer.bias.new_zeros(count)]))
    layer.out_features += count


def widen(network: ExpandableNetwork, index: int, extra: int, generator: torch.Generator) -> None:
    """Widen convolution ``index`` by ``extra`` channels; the function stays the same (Net2WiderNet, Chen et al. 2016).

    Randomly chosen channels are replicated with their BatchNorm parameters and statistics. What a channel sends on is
    divided among its copies by random *unequal* fractions that sum to one: copies with equal fractions would get equal
    gradients for ever and never separate.

    Args:
        index: convolution, 0-based.
        extra: channels to add, at most as many as there are.
        generator: chooses channels and fractions (CPU).

    Raises:
        ValueError: no such convolution, or ``extra`` is not between 1 and its channels.
    """
    layers = network.layers
    if not 0 <= index < len(layers):
        raise ValueError(f"there is no convolution {index}: the network has {len(layers)}")
    conv, norm = layers[index].conv, layers[index].norm
    channels = conv.out_channels
    if not 1 <= extra <= channels:
        raise ValueError(
            f"convolution {index} has {channels} channels and can be widened by 1 to {channels}, not {extra}"
        )
    copied = torch.randperm(channels, generator=generator)[:extra]
    source = torch.cat([torch.arange(channels), copied]).to(conv.weight.device)
    share = torch.ones(channels)
    # At least a fifth apart from one half, so that the two copies get clearly different gradients.
    part = 0.1 + 0.3 * torch.rand(extra, generator=generator)
    part = torch.where(torch.rand(extra, generator=generator) < 0.5, part, 1 - part)
    share[copied] = 1 - part
    fraction = torch.cat([share, part]).to(conv.weight)

    _replace(conv, "weight", conv.weight.detach()[source])
    conv.out_channels += extra
    for name in ("weight", "bias"):
        _replace(norm, name, getattr(norm, name).detach()[source])
    for name in ("running_mean", "running_var"):
        setattr(norm, name, getattr(norm, name)[source].clone())
    norm.num_features += extra

    if index + 1 < len(layers):
        following = layers[index + 1].conv
        _replace(following, "weight", following.weight.detach()[:, source] * fraction[None, :, None, None])
        following.in_channels += extra
    else:
        first = network.classifier[1]
        assert isinstance(first, nn.Linear)
        weight = first.weight.detach().unflatten(1, (channels, network.positions))
        _replace(first, "weight", (weight[:, source] * fraction[None, :, None]).flatten(1))
        first.in_features += extra * network.positions


def _replace(module: nn.Module, name: str, value: Tensor) -> None:
    """Put a new parameter in the place of an old one, in its memory format."""
    if value.ndim == 4:
        value = value.contiguous(memory_format=torch.channels_last)
    setattr(module, name, nn.Parameter(value.clone(memory_format=torch.preserve_format)))
