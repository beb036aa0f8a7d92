"""The head of the complete forms: logistic regression on the inherited features, which are not changed."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from protocol.errors import InputError
from protocol.learngene.architecture import COMPLETE_FORMS, Architecture
from protocol.learngene.images import DeviceImages, autocast
from protocol.learngene.learngene import Learngene
from protocol.learngene.network import ConvolutionBlock, build_blocks, layers_of, load_blocks


def two_views(stem: nn.Module, top: nn.Module, x: Tensor) -> list[Tensor]:
    """Two views of each image: the output of the stem, which is the top's input, and the output of the top.

    Each is summed over the image and its mirror image, then its square root is taken, which tames the long tail
    that features have after a ReLU (a power transform, Hu, Gripon and Pateux 2021, section 3.2).

    Args:
        stem, top: the inherited blocks, in evaluation mode.
        x: normalised images ``[n, C, H, W]``.

    Returns:
        float32 ``[n, F]`` for the stem's and for the top's features.
    """
    front = [stem(picture) for picture in (x, x.flip(3))]
    deep = [top(features) for features in front]
    return [(plain + mirrored).float().flatten(1).clamp(min=0).sqrt() for plain, mirrored in (front, deep)]


@torch.no_grad()
def inherited_features(
    blocks: Sequence[ConvolutionBlock], handover: int, images: DeviceImages, rows: NDArray[np.int64]
) -> list[Tensor]:
    """Both views of many images, as :func:`two_views` has them, in bfloat16 if the machine has it.

    Args:
        blocks: the inherited blocks, in evaluation mode.
        handover: number of blocks in the stem.
        rows: which images.

    Returns:
        float32 ``[len(rows), F]`` for the stem's and for the top's features.
    """
    stem, top = nn.Sequential(*blocks[:handover]), nn.Sequential(*blocks[handover:])
    views: list[list[Tensor]] = [[], []]
    for index in torch.from_numpy(rows).split(256):
        x, _ = images.batch(index)
        with autocast(images.pixels.device):
            found = two_views(stem, top, x)
        for view, part in zip(views, found, strict=True):
            view.append(part)
    return [torch.cat(view) for view in views]


def centred_and_normalised(views: Sequence[Tensor], centres: Sequence[Tensor]) -> Tensor:
    """``(f - centre) / |f - centre|`` of each view ``[..., n, F]`` less its centre ``[..., 1, F]``, side by side."""
    parts = [nn.functional.normalize(f - c, dim=-1) for f, c in zip(views, centres, strict=True)]
    return torch.cat(parts, -1)


def logistic_regression(x: Tensor, labels: Tensor, ways: int, penalty: float, iterations: int = 100) -> Tensor:
    """Multinomial logistic regression of many tasks at once, each with its own weights.

    Minimises ``sum_n CE(W x_n, y_n) + penalty / 2 |W|^2`` per task, the bias unpenalised: the tasks' convex problems
    are independent, so their sum is minimised by one L-BFGS in float64. With more features than images it works in the
    space that the images span: the penalty keeps the weights in it, and is the same in its coordinates.

    Args:
        x: ``[tasks, n, F]``.
        labels: ``[tasks, n]``.

    Returns:
        ``[tasks, ways, F + 1]``, the bias last.
    """
    x, basis = x.double(), None
    if x.shape[1] < x.shape[2]:
        basis, coordinates = torch.linalg.qr(x.transpose(1, 2))
        x = coordinates.transpose(1, 2)
    x = torch.cat([x, torch.ones_like(x[..., :1])], -1)
    weight = x.new_zeros((len(x), ways, x.shape[-1])).requires_grad_(True)
    optimiser = torch.optim.LBFGS(
        [weight], max_iter=iterations, tolerance_grad=1e-7, line_search_fn="strong_wolfe", history_size=20
    )

    def closure() -> float:
        optimiser.zero_grad()
        logits = x @ weight.transpose(1, 2)
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
        loss = loss + 0.5 * penalty * weight[..., :-1].square().sum()
        loss.backward()
        return float(loss.detach())

    with torch.enable_grad():
        optimiser.step(closure)
    found = weight.detach()
    return found if basis is None else torch.cat([found[..., :-1] @ basis.transpose(1, 2), found[..., -1:]], -1)


def predict(weight: Tensor, x: Tensor) -> Tensor:
    """The most likely way of ``x [tasks, n, F]`` under weights ``[tasks, ways, F + 1]``: ``[tasks, n]``."""
    logits = x.double() @ weight[..., :-1].transpose(1, 2) + weight[..., -1][:, None]
    return logits.argmax(-1)


@dataclass(frozen=True)
class FeatureHeads:
    """Logistic heads of several target tasks on the two views of the inherited features.

    Attributes:
        centres: means of each task's support images, of each view: float32 ``[tasks, 1, F]``.
        weight: float64 ``[tasks, ways, F + 1]`` over both views side by side, the bias last.
    """

    centres: Sequence[Tensor]
    weight: Tensor

    @classmethod
    def fit(cls, views: Sequence[Tensor], labels: Tensor, ways: int, penalty: float) -> "FeatureHeads":
        """From the support images' views, each ``[tasks, n, F]``, and labels ``[tasks, n]``."""
        centres = [view.mean(1, keepdim=True) for view in views]
        return cls(centres, logistic_regression(centred_and_normalised(views, centres), labels, ways, penalty))

    def predict(self, views: Sequence[Tensor]) -> Tensor:
        """The most likely way of each image, from views ``[tasks, n, F]``: ``[tasks, n]``."""
        return predict(self.weight, centred_and_normalised(views, self.centres))


def handover_of(architecture: Architecture) -> int:
    """Number of blocks in the stem of a learngene that reaches from the image to the features.

    Raises:
        InputError: the learngene has another form.
    """
    if not architecture.complete:
        raise InputError(
            f"a head on inherited features needs a learngene in the form {', '.join(COMPLETE_FORMS)}; this one is "
            f"{architecture.form}"
        )
    return architecture.stem_blocks


class FeatureHeadNetwork(nn.Module):
    """The classifier of one target task: inherited blocks and a logistic head, as one network.

    Computed in float32 throughout. A new network is of no use until :func:`fit_feature_head` or a saved state fills its
    state.

    Args:
        architecture: of a learngene in a complete form.
        ways: classes of the task.

    Raises:
        InputError: the learngene has another form.
    """

    def __init__(self, architecture: Architecture, *, ways: int) -> None:
        super().__init__()
        handover = handover_of(architecture)
        blocks = build_blocks(architecture.blocks)
        self.stem, self.top = blocks[:handover], blocks[handover:]
        contract = architecture.input
        with torch.no_grad():
            views = self.eval().views(torch.zeros(1, contract.channels, contract.height, contract.width))
        for name, view in zip(("stem_centre", "top_centre"), views, strict=True):
            self.register_buffer(name, torch.zeros_like(view))
        self.linear = nn.Linear(sum(view.shape[1] for view in views), ways)

    def views(self, x: Tensor) -> list[Tensor]:
        """Both views of normalised images ``[n, C, H, W]``, each ``[n, F]``."""
        return two_views(self.stem, self.top, x)

    @property
    def centres(self) -> list[Tensor]:
        """Means of the support images' views, each ``[1, F]``."""
        return [self.get_buffer("stem_centre"), self.get_buffer("top_centre")]

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images ``[n, C, H, W]`` to logits ``[n, ways]``."""
        logits: Tensor = self.linear(centred_and_normalised(self.views(x), self.centres))
        return logits

    @torch.no_grad()
    def load_head(self, heads: FeatureHeads, task: int = 0) -> None:
        """Take over the head of one task."""
        for buffer, centre in zip(self.centres, heads.centres, strict=True):
            buffer.copy_(centre[task])
        self.linear.weight.copy_(heads.weight[task, :, :-1])
        self.linear.bias.copy_(heads.weight[task, :, -1])


@torch.no_grad()
def fit_feature_head(learngene: Learngene, images: DeviceImages, *, ways: int, penalty: float) -> FeatureHeadNetwork:
    """The classifier of one target task from all its support images and their labels 0..ways-1.

    Raises:
        InputError: the learngene is not in a complete form.
    """
    network = FeatureHeadNetwork(learngene.architecture, ways=ways)
    load_blocks([*layers_of(network.stem), *layers_of(network.top)], learngene.tensors)
    network.to(images.pixels.device).to(memory_format=torch.channels_last).eval().requires_grad_(False)
    batches = [network.views(x) for x, _ in images.in_order()]
    views = [torch.cat(parts)[None] for parts in zip(*batches, strict=True)]
    network.load_head(FeatureHeads.fit(views, images.labels[None], ways, penalty))
    return network
