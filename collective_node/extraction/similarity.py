"""The second criterion: similarity of the collective's layers to a pseudo-descendant's (arXiv 2305.02279)."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from collective_node.network.expandable_network import ExpandableNetwork, scaled
from collective_node.random_states import RandomStates
from collective_node.settings import CollectiveSettings
from collective_node.training import Observer, fit
from collective_node.training_set import TrainingSet
from protocol.learngene.architecture import Block
from protocol.learngene.images import DeviceImages
from protocol.learngene.network import ConvolutionBlock, build_blocks, initialise, layers_of

#: Widths of the pseudo-descendant at width factor 1: the seven convolutions of the paper's individual model.
DESCENDANT_WIDTHS = (64, 128, 256, 512, 512, 512, 512)
#: Its convolutions (0-based) that a 2x2 max-pool follows.
DESCENDANT_POOLED = (0, 1, 2)


class PseudoDescendant(nn.Module):
    """A light network, like an individual that inherits nothing: seven convolutions and a linear classifier."""

    def __init__(self, channels: int, outputs: int, width: float, generator: torch.Generator) -> None:
        super().__init__()
        widths = (channels, *(scaled(w, width) for w in DESCENDANT_WIDTHS))
        self.blocks = build_blocks(
            Block(role="stem", in_channels=before, out_channels=after, pool=number in DESCENDANT_POOLED)
            for number, (before, after) in enumerate(pairwise(widths))
        )
        self.classifier = nn.Linear(widths[-1], outputs)
        initialise(self, generator)

    def forward(self, x: Tensor) -> Tensor:
        """Images ``[N, C, H, W]`` to logits ``[N, outputs]``."""
        logits: Tensor = self.classifier(self.blocks(x).mean((2, 3)))
        return logits


def train_descendant(
    data: TrainingSet,
    outputs: int,
    settings: CollectiveSettings,
    random: RandomStates,
    observe: Observer | None = None,
) -> PseudoDescendant:
    """Train a pseudo-descendant from scratch on the collective's known classes, all at once.

    ``settings.descendant_epochs`` passes over the images at the peak learning rate of condensing, which also starts
    from random weights; without regularisers, as an individual trains.

    Args:
        data: the collective's training images of all known classes.
        outputs: number of known classes.
        random: draws weights, batches and augmentation.
    """
    descendant = PseudoDescendant(data.images.pixels.shape[3], outputs, settings.width, random["weights"])
    descendant = descendant.to(data.device).to(memory_format=torch.channels_last)
    fit(
        descendant.train(),
        dict(descendant.named_parameters()),
        data,
        settings.descendant_epochs,
        settings=settings.plain,
        learning_rate=settings.condense_learning_rate,
        random=random,
        observe=observe,
    )
    return descendant.eval()


class LinearAlignment:
    """Linear centred kernel alignment between two lists of representations, streamed: sums are kept, features are not.

    ``CKA(X, Y) = |Y'X|^2 / (|X'X| |Y'Y|)`` with Frobenius norms of column-centred features (Kornblith et al. 2019,
    *Similarity of Neural Network Representations Revisited*, section 3 and table 1). 1 for representations that differ
    by an orthogonal map, a scale and a shift; 0 for uncorrelated ones, and for a constant one. With fewer images than
    features the value is too large.
    """

    def __init__(self) -> None:
        self._count = 0
        self._origins: list[list[Tensor]] = []
        self._sums: list[list[Tensor]] = []
        self._squares: list[list[Tensor]] = []
        self._products: list[list[Tensor]] = []

    def add(self, first: Sequence[Tensor], second: Sequence[Tensor]) -> None:
        """Count one batch: features ``[n, p_i]`` and ``[n, q_j]`` of the same images."""
        sides = [[features.double() for features in side] for side in (first, second)]
        # Counted from the first image's features: sums of large numbers would lose small differences.
        self._origins = self._origins or [[x[0] for x in side] for side in sides]
        sides = [[x - x0 for x, x0 in zip(*pair, strict=True)] for pair in zip(sides, self._origins, strict=True)]
        sums = [[x.sum(0) for x in side] for side in sides]
        squares = [[x.T @ x for x in side] for side in sides]
        products = [[y.T @ x for y in sides[1]] for x in sides[0]]
        self._count += len(first[0])
        self._sums = _added(self._sums, sums)
        self._squares = _added(self._squares, squares)
        self._products = _added(self._products, products)

    def similarity(self) -> Tensor:
        """CKA of each of the first representations with each of the second: float64 ``[first, second]``.

        Raises:
            ValueError: fewer than two images.
        """
        if self._count < 2:
            raise ValueError("the similarity of representations needs two images at least")
        norms = [
            torch.stack([_norm(square, total, total, self._count) for square, total in zip(*side, strict=True)])
            for side in zip(self._squares, self._sums, strict=True)
        ]
        together = torch.stack(
            [
                torch.stack([_norm(product, y, x, self._count) for product, y in zip(row, self._sums[1], strict=True)])
                for row, x in zip(self._products, self._sums[0], strict=True)
            ]
        )
        scale = norms[0][:, None] * norms[1]
        return torch.where(scale > 0, together.square() / scale, 0.0).clamp(max=1)  # rounding


def _added(total: list[list[Tensor]], more: list[list[Tensor]]) -> list[list[Tensor]]:
    if not total:
        return more
    return [[a + b for a, b in zip(mine, yours, strict=True)] for mine, yours in zip(total, more, strict=True)]


def _norm(product: Tensor, left: Tensor, right: Tensor, count: int) -> Tensor:
    """Frobenius norm of a product of centred features, from the product and the sums of uncentred ones."""
    norm: Tensor = torch.linalg.matrix_norm(product - torch.outer(left, right) / count)
    return norm


@dataclass(frozen=True)
class Similarity:
    """Similarity of the collective's layers to a pseudo-descendant's.

    Attributes:
        layers: CKA of each collective layer with each layer of the descendant, 0 to 1.
    """

    layers: tuple[tuple[float, ...], ...]

    @property
    def per_layer(self) -> tuple[float, ...]:
        """For each collective layer, the largest value over the descendant's layers."""
        return tuple(max(row) for row in self.layers)


@torch.no_grad()
def compare(network: ExpandableNetwork, descendant: PseudoDescendant, images: DeviceImages) -> Similarity:
    """Compare every convolution of the collective with every one of a pseudo-descendant's, on the same images.

    A layer's features are its block's outputs (after BatchNorm, ReLU and its max-pool, if it has one), averaged over
    the positions of the map: so maps of different sizes compare, and memory depends on channels alone. Of each
    collective layer the largest similarity counts: it is like a descendant if some layer there does the same, and a
    mean would mark a layer down for being unlike layers at other depths.

    The follow-up paper asks the same question, which layers of the ancestor are most like a pseudo-descendant's, but
    learns the answer: meta-networks weigh pairs of layers while the descendant trains, guided by the ancestor. Here the
    descendant trains alone and the similarity is measured afterwards, without a parameter to learn.

    Args:
        network, descendant: both are put in evaluation mode.
        images: at least two, of known classes; preferably images that neither network was trained on.

    Raises:
        ValueError: fewer than two images.
    """
    network.eval()
    descendant.eval()
    alignment = LinearAlignment()
    for x, _ in images.in_order():
        alignment.add(*(layer_features(layers_of(model.blocks), x) for model in (network, descendant)))
    return Similarity(tuple(tuple(row) for row in alignment.similarity().tolist()))


def layer_features(layers: Sequence[ConvolutionBlock], x: Tensor) -> list[Tensor]:
    """Images ``[N, C, H, W]`` to each block's output, averaged over positions: ``[N, channels]`` each."""
    found = []
    for layer in layers:
        x = layer(x)
        found.append(x.mean((2, 3)))
    return found
