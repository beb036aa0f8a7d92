"""The head of the condensed form: logistic regression on the centred, normalised inherited features."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from protocol.images import DeviceImages, autocast


@torch.no_grad()
def inherited_features(blocks: nn.Module, images: DeviceImages, rows: NDArray[np.int64]) -> Tensor:
    """Features of the rows' images, averaged over the image and its mirror image: float32 ``[len(rows), F]``."""
    found = []
    for index in torch.from_numpy(rows).split(256):
        x, _ = images.batch(index)
        with autocast(images.pixels.device):
            features = blocks(x) + blocks(x.flip(3))
        found.append(features.float().flatten(1))
    return torch.cat(found)


def centred_and_normalised(features: Tensor, centre: Tensor) -> Tensor:
    """``(f - centre) / |f - centre|`` of features ``[..., F]``."""
    return nn.functional.normalize(features - centre, dim=-1)


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
