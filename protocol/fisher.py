"""The diagonal of the Fisher information, without a per-sample gradient ever being kept (Eq. 7)."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from protocol.learngene import Estimator
from protocol.network import ConvolutionBlock


@dataclass
class _Trace:
    """What one forward pass leaves behind for one block: convolution input and output, BatchNorm output."""

    block: ConvolutionBlock
    inputs: Tensor
    outputs: Tensor
    normalised: Tensor


def offsets_inside(height: int, width: int, dy: int, dx: int) -> tuple[slice, slice, slice, slice]:
    """Positions of an ``height`` x ``width`` map for which the kernel offset (dy, dx) lies inside the map.

    Returns rows and columns of the output position, then rows and columns of the input position.
    """
    rows = slice(max(0, -dy), height - max(0, dy))
    columns = slice(max(0, -dx), width - max(0, dx))
    return (
        rows,
        columns,
        slice(rows.start + dy, rows.stop + dy),
        slice(columns.start + dx, columns.stop + dx),
    )


def products_by_pairs(height: int, width: int) -> int:
    """Products per sample and weight plane when positions are paired: ``sum_offsets v (v + 1) / 2`` for the ``v``
    positions inside. 26 for 2x2 maps, 628 for 4x4."""
    total = 0
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            inside = (height - abs(dy)) * (width - abs(dx))
            total += inside * (inside + 1) // 2
    return total


def products_by_unfolding(height: int, width: int, labels: int) -> int:
    """Products per sample and weight plane when each sample's gradient is formed, once per label, and squared."""
    return 9 * (height * width + 1) * labels


def pairs_are_cheaper(height: int, width: int, labels: int) -> bool:
    """Which form of a 3x3 convolution's Fisher needs fewer multiplications."""
    return products_by_pairs(height, width) < products_by_unfolding(height, width, labels)


def convolution_by_pairs(inputs: Tensor, sensitivities: Tensor) -> Tensor:
    """Sum over samples and labels of the squared weight gradient of a 3x3 convolution, by pairs of positions.

    ``sum_n (sum_l a_nl u_nl)^2 = sum_n sum_{l <= m} c_lm (a_nl a_nm) (u_nl u_nm)``, ``c`` 2 off the diagonal: one
    product of matrices per kernel offset, over the positions for which it lies inside the map. The sum over labels is
    taken in ``u_nl u_nm`` first, so that any number of labels costs one product.

    Args:
        inputs: ``[N, I, H, W]``.
        sensitivities: gradients at the convolution's output, ``[labels, N, O, H, W]``, weighted by the square root of
            each label's probability.

    Returns:
        ``[O, I, 3, 3]``.
    """
    _, out, height, width = sensitivities.shape[1:]
    result = inputs.new_empty((out, inputs.shape[1], 3, 3))
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            rows, columns, from_rows, from_columns = offsets_inside(height, width, dy, dx)
            a = inputs[:, :, from_rows, from_columns].flatten(2)
            u = sensitivities[..., rows, columns].flatten(3).movedim(0, -1)  # [N, O, positions, labels]
            first, second = torch.triu_indices(a.shape[-1], a.shape[-1], device=a.device).unbind()
            twice = torch.where(first == second, 1.0, 2.0).to(a)
            a_pairs = (a[..., first] * a[..., second]).transpose(0, 1).flatten(1)
            u_pairs = (u @ u.transpose(-1, -2))[..., first, second].mul(twice).transpose(0, 1).flatten(1)
            result[:, :, dy + 1, dx + 1] = u_pairs @ a_pairs.T
    return result


def convolution_by_unfolding(inputs: Tensor, sensitivities: Tensor, at_once: int = 16) -> Tensor:
    """The same sum as :func:`convolution_by_pairs`, forming the gradient of ``at_once`` samples at a time."""
    out, channels = sensitivities.shape[2], inputs.shape[1]
    result = inputs.new_zeros((out, channels * 9))
    for start in range(0, len(inputs), at_once):
        patches = nn.functional.unfold(inputs[start : start + at_once], 3, padding=1).transpose(1, 2)
        for label in sensitivities:
            gradients = label[start : start + at_once].flatten(2) @ patches
            result += gradients.square().sum(0)
    return result.view(out, channels, 3, 3)


def _trace(blocks: Sequence[ConvolutionBlock], head: nn.Module, x: Tensor) -> tuple[Tensor, list[_Trace]]:
    traces = []
    for block in blocks:
        outputs = block.conv(x)
        normalised = block.norm(outputs)
        traces.append(_Trace(block, x.detach(), outputs.detach(), normalised))
        x = torch.relu(normalised)
        if block.pool:
            x = nn.functional.max_pool2d(x, 2)
    return head(x), traces


def fisher_diagonal(
    blocks: Sequence[ConvolutionBlock],
    head: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor | None]],
    estimator: Estimator,
    generator: torch.Generator,
) -> tuple[dict[str, Tensor], int]:
    """Diagonal of the Fisher information of every block parameter, averaged over the images (Eq. 7).

    Of the network as it is published: evaluation mode (each image's gradient is its own), the blocks' own precision,
    no autocast. ``exact`` takes the expectation over all of the model's labels; ``sampled`` draws one label per image
    from the model; ``empirical`` uses the data's labels and is not the Fisher information of the model.

    Args:
        blocks: the blocks whose diagonal is wanted, one after the other; in evaluation mode.
        head: from the last block's output to logits; in evaluation mode.
        batches: inputs ``[n, C, H, W]`` of the first block, one per image, and the images' labels ``[n]`` (read by
            ``empirical`` only).
        generator: draws the labels of ``sampled`` (CPU).

    Returns:
        The diagonal by parameter name (``block.<i>.<parameter>``), shaped as the parameters and at least 0, and the
        number of images.

    Raises:
        ValueError: no image, a block in training mode, or ``empirical`` without labels.
    """
    if any(block.training for block in blocks) or head.training:
        raise ValueError("the Fisher information is taken of the published network: put it in evaluation mode")
    total: dict[str, Tensor] = {}
    count = 0
    # TF32 would round the products to ten bits.
    cudnn, products = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, products.allow_tf32
    cudnn.allow_tf32 = products.allow_tf32 = False
    try:
        for x, labels in batches:
            for name, value in _batch(blocks, head, x, labels, estimator, generator).items():
                total[name] = value if name not in total else total[name] + value
            count += len(x)
    finally:
        cudnn.allow_tf32, products.allow_tf32 = before
    if count == 0:
        raise ValueError("the Fisher information needs at least one image")
    return {name: (value / count).clamp(min=0) for name, value in total.items()}, count


def _batch(
    blocks: Sequence[ConvolutionBlock],
    head: nn.Module,
    x: Tensor,
    labels: Tensor | None,
    estimator: Estimator,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """Sums over one batch of the squared gradients of the log-likelihood."""
    with torch.enable_grad():
        logits, traces = _trace(blocks, head, x.detach().requires_grad_(True))
        log_likelihood = logits.log_softmax(1)
    probability = log_likelihood.detach().exp()
    if estimator == "exact":
        chosen = torch.arange(logits.shape[1], device=x.device)[:, None].expand(-1, len(x))
        weight = probability.T.sqrt()
    else:
        if estimator == "sampled":
            labels = torch.multinomial(probability.cpu().double(), 1, generator=generator)[:, 0].to(x.device)
        elif labels is None:
            raise ValueError("the empirical Fisher needs the images' labels")
        chosen = labels[None]
        weight = torch.ones_like(chosen, dtype=x.dtype)
    # d[label, trace]: gradients at each BatchNorm's output, weighted by the square root of the label's probability.
    gradients: list[list[Tensor]] = [[] for _ in traces]
    for label, share in zip(chosen, weight, strict=True):
        objective = (log_likelihood.gather(1, label[:, None])[:, 0] * share).sum()
        found = torch.autograd.grad(objective, [trace.normalised for trace in traces], retain_graph=True)
        for collected, gradient in zip(gradients, found, strict=True):
            collected.append(gradient)
    result: dict[str, Tensor] = {}
    for number, trace in enumerate(traces):
        result.update(_block(number, trace, torch.stack(gradients[number])))
    return result


def _block(number: int, trace: _Trace, at_norm: Tensor) -> dict[str, Tensor]:
    """Sums for one block from the gradients ``[labels, n, O, H, W]`` at its BatchNorm's output."""
    norm = trace.block.norm
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None
    assert variance is not None
    scale = (variance + norm.eps).rsqrt()
    standardised = (trace.outputs - mean[:, None, None]) * scale[:, None, None]
    at_convolution = at_norm * (norm.weight.detach() * scale)[:, None, None]
    height, width = trace.inputs.shape[2:]
    convolution = convolution_by_pairs if pairs_are_cheaper(height, width, len(at_norm)) else convolution_by_unfolding
    prefix = f"block.{number}"
    return {
        f"{prefix}.conv.weight": convolution(trace.inputs, at_convolution),
        f"{prefix}.norm.weight": (at_norm * standardised).sum((3, 4)).square().sum((0, 1)),
        f"{prefix}.norm.bias": at_norm.sum((3, 4)).square().sum((0, 1)),
    }
