"""The transfer-free floor: whitened patches of the support images as filters, and a logistic head.

After Coates and Ng 2011, *The Importance of Encoding Versus Training with Sparse Coding and Vector Quantization*:
without any transfer it beats every published row of the paper's Table 3, so a learngene must beat it.
"""

import torch
from torch import Tensor, nn

from individual_node.logistic_regression import logistic_regression, predict
from protocol.learngene.images import autocast

PATCH = 6
#: Images at once on a processor: the responses to 400 filters and their mirror images, 2.3 MB an image, then stay in
#: its cache.
IN_CACHE = 2
#: Added to a patch's variance (images in 0..1) and to the eigenvalues of the patches' covariance.
CONTRAST, WHITENING = 10 / 255**2, 0.1


def random_patches(images: Tensor, count: int, generator: torch.Generator, size: int = PATCH) -> Tensor:
    """``count`` square patches at random places of ``[N, C, H, W]``: ``[count, C * size * size]``."""
    n, _, height, width = images.shape
    which = torch.randint(n, (count,), generator=generator)
    rows = torch.randint(height - size + 1, (count, 1), generator=generator) + torch.arange(size)
    columns = torch.randint(width - size + 1, (count, 1), generator=generator) + torch.arange(size)
    index = which[:, None, None].to(images.device)
    picked = images.permute(0, 2, 3, 1)[index, rows[:, :, None].to(images.device), columns[:, None].to(images.device)]
    return picked.permute(0, 3, 1, 2).flatten(1)


def contrast_normalised(patches: Tensor) -> Tensor:
    """Each patch ``[..., D]`` less its mean, over its standard deviation."""
    centred = patches - patches.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + CONTRAST).sqrt()


def whitening(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Mean ``[D]`` and symmetric whitening matrix ``[D, D]`` (ZCA) of contrast-normalised patches ``[n, D]``."""
    mean = patches.mean(0)
    values, vectors = torch.linalg.eigh(torch.cov((patches - mean).T.double()))
    matrix = vectors @ torch.diag((values.clamp(min=0) + WHITENING).rsqrt()) @ vectors.T
    return mean, matrix.to(patches)


def normalised_patches(images: Tensor) -> Tensor:
    """Every 6x6 patch of ``[N, C, H, W]``, contrast-normalised: ``[N, (H - 5) * (W - 5), C * 36]``."""
    return contrast_normalised(nn.functional.unfold(images, PATCH).transpose(1, 2))


def quadrant_means(side: int) -> Tensor:
    """``[4, side * side]``: averages a square map over its quadrants, which share the middle if ``side`` is odd."""
    half = -(-side // 2)
    line = torch.zeros(2, side)
    line[0, :half], line[1, -half:] = 1 / half, 1 / half
    return torch.einsum("ay,bx->abyx", line, line).reshape(4, side * side)


def encode(patches: Tensor, filters: Tensor, mean: Tensor, matrix: Tensor) -> Tensor:
    """Responses of whitened patches to the filters, rectified both ways, averaged over quadrants, and then over the
    image and its mirror image.

    A patch's response is ``f . M (p - mean)``. Since ``relu(-r) = relu(r) - r`` and averaging ``r`` is linear in the
    patches, only one rectified map is ever formed. The mirror image's response to a kernel is the image's response to
    the mirrored kernel, with left and right exchanged: the patches are cut out once.

    Args:
        patches: ``[N, side * side, D]``, contrast-normalised.
        filters: ``[K, D]``, in the whitened space.

    Returns:
        ``[N, 8 * K]``.
    """
    kernel = filters @ matrix
    mirrored = kernel.unflatten(1, (-1, PATCH, PATCH)).flip(3).flatten(1)
    both, shift = torch.cat([kernel, mirrored]), (kernel @ mean).repeat(2)
    pool = quadrant_means(round(patches.shape[1] ** 0.5)).to(patches)
    average = (pool @ patches) @ both.T - shift
    with autocast(patches.device):
        response = nn.functional.linear(patches, both, -shift)
        positive = (pool @ response.relu_()).float()
    average, positive = (_over_mirror_images(pooled) for pooled in (average, positive))
    return torch.cat([positive, positive - average], 1).flatten(1)


def _over_mirror_images(pooled: Tensor) -> Tensor:
    """``[N, 4, 2 * K]``, responses to kernels and mirrored kernels by quadrants (rows first), to the ``[N, 4, K]`` that
    are means over image and mirror image."""
    plain, mirrored = pooled.chunk(2, 2)
    return (plain + mirrored[:, [1, 0, 3, 2]]) / 2


def whitened_filters(
    images: Tensor, count: int, generator: torch.Generator, size: int = PATCH
) -> tuple[Tensor, Tensor, Tensor]:
    """Patches of ``images [N, C, H, W]`` that become filters of length one in the whitened space, ``[count, D]``, with
    the mean and the matrix of :func:`whitening`."""
    patches = contrast_normalised(random_patches(images, max(5000, 10 * count), generator, size))
    mean, matrix = whitening(patches)
    return nn.functional.normalize((patches[:count] - mean) @ matrix, dim=1), mean, matrix


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
    chosen, mean, matrix = whitened_filters(support, filters, generator)
    images = torch.cat([support, test])
    at_once = IN_CACHE if images.device.type == "cpu" else len(images)
    x = torch.cat([encode(normalised_patches(part), chosen, mean, matrix) for part in images.split(at_once)])
    known, unknown = x[: len(support)], x[len(support) :]
    centre, spread = known.mean(0), known.std(0) + 1e-2 * known.std()
    scale = spread * known.shape[1] ** 0.5
    weight = logistic_regression(((known - centre) / scale)[None], labels[None], ways, penalty)
    return predict(weight, ((unknown - centre) / scale)[None])[0]
