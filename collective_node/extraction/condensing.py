"""Condensing: the collective trains a light stem in front of its own top layers, whose weights stay as they are."""

import copy
from itertools import pairwise

import torch
from torch import Tensor, nn

from collective_node.network.expandable_network import ExpandableNetwork, scaled
from collective_node.random_states import RandomStates
from collective_node.settings import CollectiveSettings
from collective_node.training import Observer, fit
from collective_node.training_set import TrainingSet
from protocol.errors import InputError
from protocol.learngene.architecture import Block
from protocol.learngene.images import autocast
from protocol.learngene.network import ConvolutionBlock, build_blocks, initialise, layers_of

#: Widths of the light stem at width factor 1; the last is the input width of the first top layer.
STEM_WIDTHS = (64, 128, 256)
#: Batches of 250 images that the BatchNorm statistics of a condensed network are averaged over.
STATISTICS_BATCHES = 40


class CondensedNetwork(nn.Module):
    """Stem, top layers and classifier of the collective; the condensed learngene is taken from them."""

    def __init__(self, stem: nn.Sequential, top: nn.Sequential, classifier: nn.Sequential) -> None:
        super().__init__()
        self.stem, self.top, self.classifier = stem, top, classifier

    def forward(self, x: Tensor) -> Tensor:
        """Images ``[N, C, H, W]`` to logits ``[N, classes]``."""
        logits: Tensor = self.classifier(self.top(self.stem(x)))
        return logits

    @property
    def layers(self) -> list[ConvolutionBlock]:
        """The blocks of stem and top, in order."""
        return [*layers_of(self.stem), *layers_of(self.top)]

    def describe(self) -> list[Block]:
        """Description of each block, in order."""
        stem = [block.describe("stem") for block in layers_of(self.stem)]
        return [*stem, *(block.describe("top") for block in layers_of(self.top))]


def stem_blocks(network: ExpandableNetwork, top: int, width: float) -> list[Block]:
    """Four light blocks that end with as many channels, and as small a map, as the top layers expect.

    The first of them end with a max-pool, as many as the collective has in front of its top layers.
    """
    first = network.layers[len(network.layers) - top].conv
    channels = network.layers[0].conv.in_channels
    widths = (channels, *(scaled(w, width) for w in STEM_WIDTHS), first.in_channels)
    halvings = sum(block.pool for block in network.layers[: len(network.layers) - top])
    return [
        Block(role="stem", in_channels=before, out_channels=after, pool=number < halvings)
        for number, (before, after) in enumerate(pairwise(widths))
    ]


def condense(
    network: ExpandableNetwork,
    top: int,
    data: TrainingSet,
    settings: CollectiveSettings,
    random: RandomStates,
    observe: Observer | None = None,
) -> CondensedNetwork:
    """Train a light stem in front of the network's last ``top`` layers.

    The weights of top layers and classifier are frozen; the BatchNorm statistics of all blocks are estimated again at
    the end, as averages over balanced batches without augmentation.

    Args:
        top: number of layers that are kept, fewer than all.
        data: the collective's training images of all known classes.
        random: draws the stem's weights, batches, augmentation and dropout.

    Raises:
        InputError: no layer is left for the stem to stand in for.
    """
    if not 1 <= top < len(network.layers):
        raise InputError(
            f"a stem cannot stand in front of {top} of {len(network.layers)} layers: set the collective's layers lower"
        )
    stem = build_blocks(stem_blocks(network, top, settings.width))
    initialise(stem, random["weights"])
    kept = nn.Sequential(*copy.deepcopy(network.layers[-top:]))
    condensed = CondensedNetwork(stem, kept, copy.deepcopy(network.classifier))
    condensed = condensed.to(data.device).to(memory_format=torch.channels_last)
    condensed.train()
    condensed.classifier.eval()
    for part in (condensed.top, condensed.classifier):
        part.requires_grad_(False)
    fit(
        condensed,
        dict(stem.named_parameters()),
        data,
        settings.condense_epochs,
        settings=settings,
        learning_rate=settings.condense_learning_rate,
        random=random,
        observe=observe,
    )
    estimate_statistics(condensed, data, random["batches"])
    return condensed.eval()


@torch.no_grad()
def estimate_statistics(model: nn.Module, data: TrainingSet, generator: torch.Generator) -> None:
    """Replace every BatchNorm's running statistics by plain averages over 40 balanced batches of 250."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # torch: a cumulative average
    for index in data.balanced(STATISTICS_BATCHES, 250, generator):
        with autocast(data.device):
            model(data.batch(index)[0])
    for norm in norms:
        norm.momentum = 0.1
