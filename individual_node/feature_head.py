"""The head of the condensed form: logistic regression on the inherited features, which stay as they are."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from protocol.images import DeviceImages, autocast
from protocol.network import ConvolutionBlock


@torch.no_grad()
def inherited_features(
    blocks: Sequence[ConvolutionBlock], handover: int, images: DeviceImages, rows: NDArray[np.int64]
) -> list[Tensor]:
    """Two views of each image: what the stem hands over to the top, and what the top makes of it.

    Each is summed over the image and its mirror image, then its square root is taken, which tames the long tail
    that features have after a ReLU (a power transform, Hu, Gripon and Pateux 2021, section 3.2).

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
            front = [stem(picture) for picture in (x, x.flip(3))]
            deep = [top(features) for features in front]
        for view, (plain, mirrored) in zip(views, (front, deep), strict=True):
            view.append((plain + mirrored).float().flatten(1).clamp(min=0).sqrt())
    return [torch.cat(view) for view in views]


def centred_and_normalised(views: Sequence[Tensor], centres: Sequence[Tensor]) -> Tensor:
    """``(f - centre) / |f - centre|`` of each view ``[..., n, F]`` less its centre ``[..., 1, F]``, side by side."""
    parts = [nn.functional.normalize(f - c, dim=-1) for f, c in zip(views, centres, strict=True)]
    return torch.cat(parts, -1)


def logistic_regression(x: Tensor, labels: Tensor, ways: int, penalty: float, iterations: int = 100) -> Tensor:
    """Multinomial logistic regression of many tasks at once, each with its own weights.

    Minimises ``sum_n CE(W x_n, y_n) + penalty / 2 |W|^2`` per task, the bias unpenalised: the tasks' convex problems
    are independent, so their sum is minimised by one L-BFGS in float64.

    Args:
        x: ``[tasks, n, F]``.
        labels: ``[tasks, n]``.

    Returns:
        ``[tasks, ways, F + 1]``, the bias last.
    """
    x = torch.cat([x.double(), torch.ones_like(x[..., :1]).double()], -1)
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
    return weight.detach()


def predict(weight: Tensor, x: Tensor) -> Tensor:
    """The most likely way of ``x [tasks, n, F]`` under weights ``[tasks, ways, F + 1]``: ``[tasks, n]``."""
    logits = x.double() @ weight[..., :-1].transpose(1, 2) + weight[..., -1][:, None]
    return logits.argmax(-1)
