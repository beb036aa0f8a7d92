"""The individual's network, built from a learngene's own description (Algorithm 1, RECONSTRUCT)."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from individual_node.settings import OwnLayers
from individual_node.views import pictures_of, two_views
from protocol.errors import InputError
from protocol.learngene.architecture import Architecture, Block
from protocol.learngene.learngene import Learngene
from protocol.learngene.network import ConvolutionBlock, build_blocks, initialise, layers_of, load_blocks

#: Widths of the individual's own light blocks, as divisors of their last width: 64 128 256 512 for 512.
LIGHT_SHARES = (8, 4, 2, 1)
#: Number of the individual's own first blocks that a max-pool follows (appendix figure 1).
OWN_POOLS = 3
SUGGESTED = OwnLayers()


def own_widths(architecture: Architecture) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Channels of the individual's own convolutions in front of and behind the inherited ones, by default.

    Four in all, so that three inherited ones make the paper's seven (appendix figure 1):

    - top blocks: four in front, 1/8, 1/4, 1/2 and all of the channels that the first inherited one takes;
    - middle blocks: the last two of those in front, and two behind, with the width of the last inherited one;
    - front blocks: four behind, 1/8, 1/4, 1/2 and all of the last width of the paper's network, 8 times the channels of
      its first; behind a learngene that does not widen, all have its width (the equal widths of Figure 6 b). None is
      narrower than the last inherited one.

    A learngene that reaches from the image to the features needs no own blocks.
    """
    first, last = architecture.blocks[0], architecture.blocks[-1]
    light = tuple(max(1, first.in_channels // share) for share in LIGHT_SHARES)
    if architecture.complete:
        return (), ()
    if first.role == "top":
        return light, ()
    if first.role == "middle":
        return light[2:], (last.out_channels,) * 2
    final = LIGHT_SHARES[0] * first.out_channels if last.out_channels > first.out_channels else last.out_channels
    return (), tuple(max(last.out_channels, final // share) for share in LIGHT_SHARES)


def own_blocks(architecture: Architecture, own: OwnLayers = SUGGESTED) -> tuple[list[Block], list[Block]]:
    """The individual's own blocks in front of and behind the inherited ones.

    A max-pool follows the first three of them, or fewer if the image cannot be halved so often. They have the same
    normalisation as the inherited ones.

    Raises:
        InputError: the chosen widths do not fit the learngene; the text names both shapes.
    """
    front, back = own_widths(architecture)
    inherited = architecture.blocks[0]
    kernel = (inherited.out_channels, inherited.in_channels, 3, 3)
    channels = architecture.input.channels
    if own.front is not None:
        if architecture.complete or inherited.role == "front":
            raise InputError(
                f"own_front {own.front} has no place: the first inherited convolution {kernel} takes the image's "
                f"{channels} channels itself; leave own_front out"
            )
        front = own.front
        given = front[-1] if front else channels
        if given != inherited.in_channels:
            raise InputError(
                f"own_front {front} hands over [n, {given}, h, w], but the first inherited convolution {kernel} takes "
                f"[n, {inherited.in_channels}, h, w]: end own_front with {inherited.in_channels}"
            )
    if own.back is not None:
        back = own.back
    halvings = min(architecture.input.height, architecture.input.width).bit_length() - 1
    pools = min(OWN_POOLS, halvings - sum(block.pool for block in architecture.blocks))
    chain = [*pairwise((channels, *front)), *pairwise((architecture.features, *back))]
    blocks = [
        Block(role="stem", in_channels=before, out_channels=after, pool=number < pools, norm=inherited.norm)
        for number, (before, after) in enumerate(chain)
    ]
    return blocks[: len(front)], blocks[len(front) :]


def blocks_and_handover(architecture: Architecture, own: OwnLayers = SUGGESTED) -> tuple[list[Block], int]:
    """All blocks of an individual's network, and the number of those in front of its last part.

    The last part takes the first of the two views of an image and makes the second: it is the individual's own blocks
    behind the inherited ones, if there are any; otherwise the inherited ones, or their top if they begin with a stem.

    Raises:
        InputError: as :func:`own_blocks`.
    """
    front, back = own_blocks(architecture, own)
    blocks = [*front, *architecture.blocks, *back]
    return blocks, max(1, len(blocks) - len(back) if back else len(front) + architecture.stem_blocks)


class IndividualNetworks(nn.Module):
    """Networks of several target tasks side by side: independent, and trained as one grouped network.

    Args:
        architecture: the learngene's architecture.
        ways: classes of each task.
        networks: number of tasks.
        own: depth and width of the individual's own layers.
        view_shifts: shifted copies that are looked at beside each image, where nothing is trained.

    Attributes:
        features: values that one network's classifier takes.
        handover: number of blocks in front of the last part, see :func:`blocks_and_handover`.

    Raises:
        InputError: ``own`` does not fit the learngene.
    """

    def __init__(
        self,
        architecture: Architecture,
        *,
        ways: int,
        networks: int,
        own: OwnLayers = SUGGESTED,
        view_shifts: int = 0,
    ) -> None:
        super().__init__()
        front, _ = own_blocks(architecture, own)
        blocks, self.handover = blocks_and_handover(architecture, own)
        self.blocks = build_blocks(blocks, networks=networks)
        self._inherited = slice(len(front), len(front) + len(architecture.blocks))
        height, width = architecture.input.height, architecture.input.width
        for block in blocks:
            if block.pool:
                height, width = height // 2, width // 2
        last = blocks[-1].out_channels
        hidden, self.features = own.hidden or 2 * last, last * height * width

        def layer(before: int, after: int) -> nn.Conv2d:
            return nn.Conv2d(networks * before, networks * after, 1, groups=networks)

        self.classifier = nn.Sequential(
            layer(self.features, hidden), nn.ReLU(), layer(hidden, hidden), nn.ReLU(), layer(hidden, ways)
        )
        self.architecture, self.own = architecture, own
        self.networks, self.ways, self.view_shifts = networks, ways, view_shifts
        self._frozen = False

    @property
    def inherited(self) -> list[ConvolutionBlock]:
        """The blocks that a learngene fills."""
        return layers_of(self.blocks)[self._inherited]

    def freeze_inherited(self) -> None:
        """Freeze the inherited blocks: weights, and BatchNorm statistics in every mode."""
        self._frozen = True
        for block in self.inherited:
            block.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> "IndividualNetworks":
        """Set the mode as torch does, except that frozen blocks stay in evaluation mode."""
        super().train(mode)
        if self._frozen:
            for block in self.inherited:
                block.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Images ``[N, networks * C, H, W]`` to logits ``[N, networks, ways]``."""
        features = self.blocks(x)
        logits: Tensor = self.classifier(features.reshape(x.shape[0], -1, 1, 1))
        return logits.reshape(x.shape[0], self.networks, self.ways)

    def predict(self, x: Tensor) -> Tensor:
        """The logits of images ``[N, networks * C, H, W]``, each the mean over the image and its mirror image, and over
        their shifted copies: ``[N, networks, ways]``."""
        found = [self(picture) for picture in pictures_of(x, self.view_shifts)]
        return torch.stack(found).mean(0)

    def views(self, x: Tensor) -> list[Tensor]:
        """Both views of images ``[N, networks * C, H, W]``, see :func:`individual_node.views.two_views`:
        ``[networks, N, F]``."""
        found = two_views(self.blocks[: self.handover], self.blocks[self.handover :], x, self.view_shifts)
        return [view.unflatten(1, (self.networks, -1)).movedim(1, 0) for view in found]

    def network(self, index: int) -> "IndividualNetwork":
        """One of the networks by itself, in evaluation mode. It shares the memory of its weights with this one."""
        with torch.device("meta"):
            single = IndividualNetwork(self.architecture, ways=self.ways, own=self.own, view_shifts=self.view_shifts)
        state = {
            name: value if value.ndim == 0 else value.chunk(self.networks)[index]
            for name, value in self.state_dict().items()
        }
        single.side_by_side.load_state_dict(state, assign=True)
        return single.eval()


class IndividualNetwork(nn.Module):
    """The network of one target task; see :class:`IndividualNetworks`. Its weights are loaded later."""

    def __init__(
        self, architecture: Architecture, *, ways: int, own: OwnLayers = SUGGESTED, view_shifts: int = 0
    ) -> None:
        super().__init__()
        self.side_by_side = IndividualNetworks(architecture, ways=ways, networks=1, own=own, view_shifts=view_shifts)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images ``[n, C, H, W]`` to logits ``[n, ways]``: means over an image and its mirror image."""
        return self.side_by_side.predict(x)[:, 0]

    def parts(self) -> tuple[nn.Sequential, list[ConvolutionBlock], nn.Sequential]:
        """The part in front of the inherited blocks, these blocks, and the part behind, in evaluation mode: in this
        order they are the network as it is trained, without mirror images."""
        whole = self.side_by_side
        inherited = whole.inherited
        blocks = layers_of(whole.blocks)
        begin = blocks.index(inherited[0])
        behind = blocks[begin + len(inherited) :]
        column = nn.Unflatten(1, (whole.features, 1, 1))
        head = nn.Sequential(*behind, nn.Flatten(), column, *whole.classifier, nn.Flatten())
        self.eval()
        return nn.Sequential(*blocks[:begin]).eval(), inherited, head.eval()


def reconstruct(
    architecture: Architecture,
    learngene: Learngene | None,
    *,
    ways: int,
    generators: Sequence[torch.Generator],
    own: OwnLayers = SUGGESTED,
    view_shifts: int = 0,
) -> IndividualNetworks:
    """Fresh networks, one per generator, each drawn from its own generator alone, then filled from the learngene.

    So the first weights of a target task depend neither on the task before it nor on those that train beside it.

    Args:
        learngene: None for a network of the same architecture that inherits nothing.
        own: depth and width of the individual's own layers.
        view_shifts: as :class:`IndividualNetworks` takes it.

    Raises:
        InputError: ``own`` does not fit the learngene.
    """
    joint = IndividualNetworks(architecture, ways=ways, networks=len(generators), own=own, view_shifts=view_shifts)
    singles = []
    for generator in generators:
        single = IndividualNetworks(architecture, ways=ways, networks=1, own=own)
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
