"""The transfer-free floor: whitened patches of the support images as filters, and a logistic head.

After Coates and Ng 2011, *The Importance of Encoding Versus Training with Sparse Coding and Vector Quantization*: with
no transfer at all it beats every published row of the paper's Table 3, so any learngene has to beat it.
"""

import torch
from torch import Tensor, nn

from individual_node.feature_head import logistic_regression, predict
from protocol.images import autocast

PATCH = 6
#: Added to a patch's variance (images in 0..1) and to the eigenvalues of the patches' covariance.
CONTRAST, WHITENING = 10 / 255**2, 0.1


def random_patches(images: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """``count`` patches of 6x6 at random places of ``[N, C, H, W]``: ``[count, C * 36]``."""
    n, _, height, width = images.shape
    which = torch.randint(n, (count,), generator=generator)
    rows = torch.randint(height - PATCH + 1, (count, 1), generator=generator) + torch.arange(PATCH)
    columns = torch.randint(width - PATCH + 1, (count, 1), generator=generator) + torch.arange(PATCH)
    index = which[:, None, None].to(images.device)
    picked = images.permute(0, 2, 3, 1)[index, rows[:, :, None].to(images.device), columns[:, None].to(images.device)]
    return picked.permute(0, 3, 1, 2).flatten(1)


def contrast_normalised(patches: Tensor) -> Tensor:
    """Each patch less its mean, over its standard deviation."""
    centred = patches - patches.mean(1, keepdim=True)
    return centred / (centred.square().mean(1, keepdim=True) + CONTRAST).sqrt()


def whitening(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Mean ``[D]`` and symmetric whitening matrix ``[D, D]`` (ZCA) of contrast-normalised patches ``[n, D]``."""
    mean = patches.mean(0)
    values, vectors = torch.linalg.eigh(torch.cov((patches - mean).T.double()))
    matrix = vectors @ torch.diag((values.clamp(min=0) + WHITENING).rsqrt()) @ vectors.T
    return mean, matrix.to(patches)


def encode(images: Tensor, filters: Tensor, mean: Tensor, matrix: Tensor) -> Tensor:
    """Responses of whitened, normalised patches to the filters, rectified both ways, averaged over quadrants.

    A patch's response is ``f . M (c(p) - mean)``: one convolution with ``f M``, corrected for each patch's own mean
    and deviation, so that no patch is ever copied out.

    Args:
        images: ``[N, C, H, W]`` in 0..1.
        filters: ``[K, D]``, in the whitened space.

    Returns:
        ``[N, 8 * K]``.
    """
    channels = images.shape[1]
    kernel = filters @ matrix
    shift = kernel @ mean
    local_mean = nn.functional.avg_pool2d(images.mean(1, keepdim=True), PATCH, 1)
    local_square = nn.functional.avg_pool2d(images.square().mean(1, keepdim=True), PATCH, 1)
    deviation = (local_square - local_mean.square() + CONTRAST).clamp(min=CONTRAST).sqrt()
    with autocast(images.device):
        # The image's own mean goes first: it changes no response and keeps the products small.
        centre = images.mean((1, 2, 3), keepdim=True)
        raw = nn.functional.conv2d(images - centre, kernel.view(-1, channels, PATCH, PATCH))
    total = kernel.sum(1)[:, None, None]
    response = (raw.float() - total * (local_mean - centre)) / deviation - shift[:, None, None]
    both = torch.cat([response.relu(), (-response).relu()], 1)
    return nn.functional.adaptive_avg_pool2d(both, 2).flatten(1)


@torch.no_grad()
def floor_predictions(
    support: Tensor,
    labels: Tensor,
    test: Tensor,
    *,
    ways: int,
    filters: int,
    penalty: float,
    generator: torch.Generator,
) -> Tensor:
    """Predict the ways of one task's test images from its support images alone.

    Args:
        support: ``[n, C, H, W]`` in 0..1.
        labels: ``[n]``.
        test: ``[m, C, H, W]`` in 0..1.
        filters: patches that become filters.
        penalty: of the logistic head.

    Returns:
        ``[m]``.
    """
    patches = contrast_normalised(random_patches(support, max(5000, 10 * filters), generator))
    mean, matrix = whitening(patches)
    chosen = nn.functional.normalize((patches[:filters] - mean) @ matrix, dim=1)
    x = torch.cat([encode(part, chosen, mean, matrix) for part in torch.cat([support, test]).split(50)])
    known, unknown = x[: len(support)], x[len(support) :]
    centre, spread = known.mean(0), known.std(0) + 1e-2 * known.std()
    scale = spread * known.shape[1] ** 0.5
    weight = logistic_regression(((known - centre) / scale)[None], labels[None], ways, penalty)
    return predict(weight, ((unknown - centre) / scale)[None])[0]
