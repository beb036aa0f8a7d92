"""A logistic head on two views of a network's features, which are not changed."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from individual_node.head_choice import chosen_heads, scaled
from individual_node.logistic_regression import logistic_regression, predict
from individual_node.reconstruction import IndividualNetwork, blocks_and_handover
from individual_node.settings import HeadSettings, OwnLayers
from individual_node.views import SHIFTS, centred_and_normalised, shifted, two_views
from protocol.errors import InputError
from protocol.learngene.architecture import COMPLETE_FORMS, Architecture
from protocol.learngene.images import DeviceImages
from protocol.learngene.learngene import Learngene
from protocol.learngene.network import ConvolutionBlock, build_blocks, layers_of, load_blocks


@dataclass(frozen=True)
class FeatureHeads:
    """Logistic heads of several target tasks on the two views of a network's features.

    Attributes:
        centres: means of each task's support images, of each view: float32 ``[tasks, 1, F]``.
        weight: float64 ``[tasks, ways, F + 1]`` over both views side by side, the bias last.
    """

    centres: Sequence[Tensor]
    weight: Tensor

    @classmethod
    def fit(cls, views: Sequence[Tensor], labels: Tensor, ways: int, settings: HeadSettings) -> "FeatureHeads":
        """From the support images' views and labels.

        Args:
            views: each ``[tasks, copies * n, F]``: the images themselves, then shifted copies of all of them. The
                copies of an image, itself one of them, count together as one image.
            labels: of the images, ``[tasks, n]``.
        """
        copies = views[0].shape[1] // labels.shape[1]
        choices = chosen_heads(views, labels, ways, settings)
        centres = [view.mean(1, keepdim=True) for view in views]
        x, stem = centred_and_normalised(views, centres), views[0].shape[2]
        targets = labels.repeat(1, copies)
        counts = None if copies == 1 else torch.full(targets.shape, 1 / copies)
        weight = x.new_empty((len(x), ways, x.shape[2] + 1), dtype=torch.float64)
        for choice in dict.fromkeys(choices):
            at = torch.tensor([other == choice for other in choices], device=x.device).nonzero()[:, 0]
            some = None if counts is None else counts[: len(at)]
            fitted = logistic_regression(scaled(x[at], choice, stem), targets[at], ways, choice.penalty, some)
            weight[at] = torch.cat([scaled(fitted[..., :-1], choice, stem), fitted[..., -1:]], -1)
        return cls(centres, weight)

    def predict(self, views: Sequence[Tensor]) -> Tensor:
        """The most likely way of each image, from views ``[tasks, n, F]``: ``[tasks, n]``."""
        return predict(self.weight, centred_and_normalised(views, self.centres))


def handover_of(architecture: Architecture) -> int:
    """Number of blocks in the stem of a learngene that reaches from the image to the features.

    Raises:
        InputError: the learngene's form does not.
    """
    if not architecture.complete:
        raise InputError(
            f"a head on inherited features needs a learngene in the form {', '.join(COMPLETE_FORMS)}; this one is "
            f"{architecture.form}"
        )
    return architecture.stem_blocks


class FeatureHeadNetwork(nn.Module):
    """The classifier of one target task: the blocks of a network and a logistic head, as one network.

    Computed in float32 throughout. A new network is of no use until :func:`fit_feature_head` or a saved state fills its
    state.

    Args:
        architecture: of the learngene.
        ways: classes of the task.
        own: the individual's own layers around the inherited ones; None: the inherited ones alone.
        view_shifts: shifted copies that are looked at beside each image.

    Raises:
        InputError: the inherited layers alone do not reach from the image to the features, or ``own`` does not fit.
    """

    def __init__(
        self, architecture: Architecture, *, ways: int, own: OwnLayers | None = None, view_shifts: int = 0
    ) -> None:
        super().__init__()
        if own is None:
            described, handover = list(architecture.blocks), handover_of(architecture)
        else:
            described, handover = blocks_and_handover(architecture, own)
        blocks = build_blocks(described)
        self.stem, self.top = blocks[:handover], blocks[handover:]
        contract, self.view_shifts = architecture.input, view_shifts
        with torch.no_grad():
            views = self.eval().views(torch.zeros(1, contract.channels, contract.height, contract.width))
        for name, view in zip(("stem_centre", "top_centre"), views, strict=True):
            self.register_buffer(name, torch.zeros_like(view))
        self.linear = nn.Linear(sum(view.shape[1] for view in views), ways)

    @property
    def layers(self) -> list[ConvolutionBlock]:
        """The blocks of stem and top, in order."""
        return [*layers_of(self.stem), *layers_of(self.top)]

    def views(self, x: Tensor) -> list[Tensor]:
        """Both views of normalised images ``[n, C, H, W]``, each ``[n, F]``."""
        return two_views(self.stem, self.top, x, self.view_shifts)

    @property
    def centres(self) -> list[Tensor]:
        """Means of the support images' views, each ``[1, F]``."""
        return [self.get_buffer("stem_centre"), self.get_buffer("top_centre")]

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images ``[n, C, H, W]`` to logits ``[n, ways]``."""
        logits: Tensor = self.linear(centred_and_normalised(self.views(x), self.centres))
        return logits

    @torch.no_grad()
    def fit(self, images: DeviceImages, settings: HeadSettings) -> None:
        """Fit the head on all support images of a task and their labels 0..ways-1."""
        self.eval().requires_grad_(False)
        batches = [
            self.views(shifted(x, shift)) for shift in SHIFTS[: 1 + settings.shifts] for x, _ in images.in_order()
        ]
        views = [torch.cat(parts)[None] for parts in zip(*batches, strict=True)]
        heads = FeatureHeads.fit(views, images.labels[None], self.linear.out_features, settings)
        self.load_head(heads)

    @torch.no_grad()
    def load_head(self, heads: FeatureHeads, task: int = 0) -> None:
        """Take over the head of one task."""
        for buffer, centre in zip(self.centres, heads.centres, strict=True):
            buffer.copy_(centre[task])
        self.linear.weight.copy_(heads.weight[task, :, :-1])
        self.linear.bias.copy_(heads.weight[task, :, -1])


def fit_feature_head(
    learngene: Learngene, images: DeviceImages, *, ways: int, settings: HeadSettings
) -> FeatureHeadNetwork:
    """The classifier of one target task on the inherited features, from all its support images.

    Raises:
        InputError: the learngene does not reach from the image to the features.
    """
    network = FeatureHeadNetwork(learngene.architecture, ways=ways, view_shifts=settings.view_shifts)
    load_blocks(network.layers, learngene.tensors)
    network.to(images.pixels.device).to(memory_format=torch.channels_last).fit(images, settings)
    return network


def head_on_network(trained: IndividualNetwork, images: DeviceImages, settings: HeadSettings) -> FeatureHeadNetwork:
    """The classifier of one target task on the features of the network that was trained on it."""
    whole = trained.side_by_side
    network = FeatureHeadNetwork(whole.architecture, ways=whole.ways, own=whole.own, view_shifts=whole.view_shifts)
    for block, source in zip(network.layers, layers_of(whole.blocks), strict=True):
        block.load_state_dict(source.state_dict())
    network.to(images.pixels.device).to(memory_format=torch.channels_last).fit(images, settings)
    return network
