"""The compact network that a collective makes for individuals: a light stem, top layers and a classifier."""

import copy
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from collective_node.network.cosine_classifier import CosineClassifier
from collective_node.network.dropout import Dropout
from collective_node.network.expandable_network import ExpandableNetwork, scaled
from collective_node.settings import CompactClassifier
from protocol.errors import InputError
from protocol.learngene.architecture import Block, BlockRole, SizeName, sized_blocks, weights_of
from protocol.learngene.network import ConvolutionBlock, build_blocks, layers_of

#: Widths of the light stem at width factor 1; the next is the input width of the first top layer.
STEM_WIDTHS = (64, 128, 256)
#: Widths of the stem's blocks over those of the top layers, where a budget decides both.
STEM_SHARES = (8, 4, 2, 1)
#: Most channels that a block may have.
MOST_CHANNELS = 4096


class CompactNetwork(nn.Module):
    """Stem, top layers and classifier; a learngene that reaches from the image to the features is taken from them.

    It may hold smaller networks: each has the first channels of its convolutions, the classifier's weights for these,
    and BatchNorms of its own (Yu et al. 2019, *Slimmable neural networks*, section 3.3).

    Args:
        sizes: the smaller ones.
    """

    def __init__(
        self, stem: nn.Sequential, top: nn.Sequential, classifier: nn.Module, sizes: Sequence[SizeName] = ()
    ) -> None:
        super().__init__()
        self.stem, self.top, self.classifier = stem, top, classifier
        self.sizes = tuple(sizes)
        self._blocks = [sized_blocks(self.describe(), size) for size in self.sizes]
        self.size_norms = nn.ModuleList(
            nn.ModuleList(nn.BatchNorm2d(block.out_channels) for block in blocks.values()) for blocks in self._blocks
        )

    def features(self, x: Tensor) -> Tensor:
        """Images ``[N, C, H, W]`` to the last feature map ``[N, F, h, w]``."""
        found: Tensor = self.top(self.stem(x))
        return found

    def forward(self, x: Tensor) -> Tensor:
        """Images ``[N, C, H, W]`` to logits ``[N, classes]``."""
        logits: Tensor = self.classifier(self.features(x))
        return logits

    def logits_of(self, x: Tensor, number: int) -> Tensor:
        """Images ``[N, C, H, W]`` to logits ``[N, classes]``, by the smaller network of this number in ``sizes``."""
        layers = self.layers
        for (index, block), norm in zip(self._blocks[number].items(), self._norms_of(number), strict=True):
            kernel = layers[index].conv.weight[: block.out_channels, : block.in_channels]
            x = norm(nn.functional.conv2d(x, kernel, padding=1))
            x = torch.relu(nn.functional.max_pool2d(x, 2) if block.pool else x)
        logits: Tensor = self.classifier(Padded(layers[-1].conv.out_channels)(x))
        return logits

    @torch.no_grad()
    def smaller(self, number: int) -> "CompactNetwork":
        """A copy of the smaller network of this number by itself, in evaluation mode."""
        layers = self.layers
        parts: dict[BlockRole, list[Block]] = {"stem": [], "top": []}
        for block in self._blocks[number].values():
            parts[block.role].append(block)
        classifier = nn.Sequential(Padded(layers[-1].conv.out_channels), copy.deepcopy(self.classifier))
        found = CompactNetwork(build_blocks(parts["stem"]), build_blocks(parts["top"]), classifier)
        found = found.to(layers[0].conv.weight.device).to(memory_format=torch.channels_last)
        for layer, index, norm in zip(found.layers, self._blocks[number], self._norms_of(number), strict=True):
            outputs, inputs = layer.conv.weight.shape[:2]
            layer.conv.weight.copy_(layers[index].conv.weight[:outputs, :inputs])
            layer.norm.load_state_dict(norm.state_dict())
        return found.eval()

    def _norms_of(self, number: int) -> list[nn.Module]:
        norms = self.size_norms[number]
        assert isinstance(norms, nn.ModuleList)
        return list(norms)

    @property
    def layers(self) -> list[ConvolutionBlock]:
        """The blocks of stem and top, in order."""
        return [*layers_of(self.stem), *layers_of(self.top)]

    def describe(self) -> list[Block]:
        """Description of each block, in order."""
        stem = [block.describe("stem") for block in layers_of(self.stem)]
        return [*stem, *(block.describe("top") for block in layers_of(self.top))]


class Padded(nn.Module):
    """Adds zeros for the channels that maps ``[N, c, h, w]`` lack: behind it, a classifier of all ``channels`` works
    with its weights for the first ones alone."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, x: Tensor) -> Tensor:
        """``[N, c, h, w]`` to ``[N, channels, h, w]``."""
        return nn.functional.pad(x, (0, 0, 0, 0, 0, self.channels - x.shape[1]))


def build_compact_classifier(
    kind: CompactClassifier, features: int, outputs: int, *, hidden: int, dropout: float
) -> nn.Sequential:
    """A classifier of the last feature map; its weights are torch's own until somebody initialises them.

    Args:
        kind: ``mlp`` has two hidden layers, as the collective's own; ``linear`` none; ``cosine`` is
            :class:`CosineClassifier`.
        features: values that it takes.
        hidden, dropout: of ``mlp``: units of each hidden layer, and the probability of dropping one in training.
    """
    if kind == "linear":
        return nn.Sequential(nn.Flatten(), nn.Linear(features, outputs))
    if kind == "cosine":
        return nn.Sequential(nn.Flatten(), CosineClassifier(features, outputs))
    layers: list[nn.Module] = [nn.Flatten()]
    for before, after in pairwise((features, hidden, hidden)):
        layers += [nn.Linear(before, after), nn.ReLU(), Dropout(dropout)]
    return nn.Sequential(*layers, nn.Linear(hidden, outputs))


@dataclass(frozen=True)
class Blueprint:
    """Blocks of a compact network: its stem and its top layers."""

    stem: tuple[Block, ...]
    top: tuple[Block, ...]

    @property
    def parameters(self) -> int:
        """Number of weights, without BatchNorm statistics."""
        return weights_of((*self.stem, *self.top))

    def of_size(self, size: SizeName) -> "Blueprint":
        """The blocks of a smaller size."""
        blocks = sized_blocks((*self.stem, *self.top), size).values()
        return Blueprint(
            tuple(block for block in blocks if block.role == "stem"),
            tuple(block for block in blocks if block.role == "top"),
        )

    def in_order(self, sizes: Iterable[SizeName]) -> tuple[SizeName, ...]:
        """Sizes from the smallest up."""
        return tuple(sorted(sizes, key=lambda size: self.of_size(size).parameters))


def blueprint_of(network: ExpandableNetwork, top: int, width: float) -> Blueprint:
    """A light stem of four blocks, and the network's own last ``top`` layers.

    The stem ends with as many channels, and as small a map, as the top layers expect: the first of its blocks end with
    a max-pool, as many as the collective has in front of its top layers.
    """
    kept = [layer.describe("top") for layer in network.layers[-top:]]
    widths = (network.layers[0].conv.in_channels, *(scaled(w, width) for w in STEM_WIDTHS), kept[0].in_channels)
    halvings = sum(block.pool for block in network.layers[: len(network.layers) - top])
    return Blueprint(_chain("stem", widths, range(halvings)), tuple(kept))


def blueprint_for(budget: int, *, channels: int, top: int, pools: Sequence[int] | None = None) -> Blueprint:
    """The widest compact network of at most ``budget`` weights.

    Its four stem blocks have an eighth, a quarter, a half and all of the channels of its top layers.

    Args:
        budget: weights, without BatchNorm statistics and classifier.
        channels: of the images.
        top: number of top layers.
        pools: numbers, from 1, of the blocks that a max-pool follows; None: those of the stem, and the last.

    Raises:
        InputError: the budget is too small for one channel in every block, or a pool has no block.
    """
    blocks = len(STEM_SHARES) + top
    pools = (*range(1, len(STEM_SHARES) + 1), blocks) if pools is None else pools
    if any(not 1 <= number <= blocks for number in pools):
        raise InputError(f"a compact network of {blocks} blocks cannot pool behind block {max(pools)}")
    behind = [number - 1 for number in pools]

    def of(width: int) -> Blueprint:
        stem = (channels, *(max(1, width // share) for share in STEM_SHARES))
        return Blueprint(
            _chain("stem", stem, behind),
            _chain("top", (width,) * (top + 1), [number - len(STEM_SHARES) for number in behind]),
        )

    fitting = bisect_right(range(1, MOST_CHANNELS + 1), budget, key=lambda width: of(width).parameters)
    if fitting == 0:
        raise InputError(f"a compact network of {blocks} blocks needs more than {budget} weights")
    return of(fitting)


def _chain(role: BlockRole, widths: Sequence[int], pools: Iterable[int]) -> tuple[Block, ...]:
    """Blocks of these widths, the input's first; a max-pool follows those in ``pools`` (from 0)."""
    pooled = set(pools)
    return tuple(
        Block(role=role, in_channels=before, out_channels=after, pool=number in pooled)
        for number, (before, after) in enumerate(pairwise(widths))
    )


def positions_of(blocks: Sequence[Block], height: int, width: int) -> int:
    """Positions of the last feature map for images of ``height`` x ``width``."""
    halvings = sum(block.pool for block in blocks)
    return (height >> halvings) * (width >> halvings)
