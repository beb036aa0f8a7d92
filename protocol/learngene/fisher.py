"""The diagonal of the Fisher information, without a per-sample gradient ever being kept (Eq. 7)."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call

from protocol.learngene.images import full_float32
from protocol.learngene.learngene import Estimator
from protocol.learngene.network import ConvolutionBlock

#: Images and their labels (only ``empirical`` reads them).
Batches = Iterable[tuple[Tensor, Tensor | None]]


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
    """Whether the form by pairs needs fewer multiplications for a 3x3 convolution."""
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


def linear_squares(inputs: Tensor, squared: Tensor) -> Tensor:
    """Sum over samples and labels of the squared weight gradient of a linear layer, as one product of matrices.

    A sample's gradient is the outer product of its sensitivity and its input, so its square is that of the squares:
    ``sum_nl (s_nlo a_ni)^2 = sum_n (sum_l s_nlo^2) a_ni^2``.

    Args:
        inputs: ``[N, I]``.
        squared: squared sensitivities, summed over the labels, ``[N, O]``.

    Returns:
        ``[O, I]``.
    """
    return squared.T @ inputs.square()


class _Sum(Protocol):
    """The sums of one layer over one batch, fed with one label's gradients at the layer's output after another's."""

    def add(self, sensitivities: Tensor) -> None: ...

    def squares(self) -> dict[str, Tensor]: ...


class _Convolution:
    """A 3x3 convolution, in the form with fewer products."""

    def __init__(self, layer: nn.Conv2d, inputs: Tensor, labels: int) -> None:
        one = (1, 1)
        plain = (layer.stride, layer.padding, layer.dilation, layer.groups) == (one, one, one, 1)
        if layer.kernel_size != (3, 3) or not plain or layer.bias is not None:
            raise ValueError(f"the Fisher information is of plain 3x3 convolutions without a bias, not of {layer}")
        self._inputs = inputs
        height, width = inputs.shape[2:]
        self._pairs = pairs_are_cheaper(height, width, labels)
        self._collected: list[Tensor] = []
        self._total: Tensor | None = None

    def add(self, sensitivities: Tensor) -> None:
        if self._pairs:  # needs all labels at once, on small maps
            self._collected.append(sensitivities)
            return
        squares = convolution_by_unfolding(self._inputs, sensitivities[None])
        self._total = squares if self._total is None else self._total + squares

    def squares(self) -> dict[str, Tensor]:
        if self._pairs:
            return {"weight": convolution_by_pairs(self._inputs, torch.stack(self._collected))}
        assert self._total is not None
        return {"weight": self._total}


class _Normalisation:
    """A BatchNorm in evaluation mode, or a GroupNorm: ``weight * standardised + bias`` at every position."""

    def __init__(self, layer: nn.BatchNorm2d | nn.GroupNorm, inputs: Tensor) -> None:
        if isinstance(layer, nn.GroupNorm):
            self._standardised = nn.functional.group_norm(inputs, layer.num_groups, eps=layer.eps)
        else:
            mean, variance = layer.running_mean, layer.running_var
            assert mean is not None
            assert variance is not None
            scale = (variance + layer.eps).rsqrt()
            self._standardised = (inputs - mean[:, None, None]) * scale[:, None, None]
        self._weight = self._bias = inputs.new_zeros(inputs.shape[1])

    def add(self, sensitivities: Tensor) -> None:
        self._weight = self._weight + (sensitivities * self._standardised).sum((2, 3)).square().sum(0)
        self._bias = self._bias + sensitivities.sum((2, 3)).square().sum(0)

    def squares(self) -> dict[str, Tensor]:
        return {"weight": self._weight, "bias": self._bias}


class _Linear:
    """A linear layer that sees each image once."""

    def __init__(self, layer: nn.Linear, inputs: Tensor) -> None:
        if inputs.ndim != 2:
            raise ValueError(f"the Fisher information of a linear layer is taken of inputs [N, I], not {inputs.ndim}-d")
        self._inputs, self._has_bias = inputs, layer.bias is not None
        self._squared = inputs.new_zeros((len(inputs), layer.out_features))

    def add(self, sensitivities: Tensor) -> None:
        self._squared += sensitivities.square()

    def squares(self) -> dict[str, Tensor]:
        weight = linear_squares(self._inputs, self._squared)
        return {"weight": weight, "bias": self._squared.sum(0)} if self._has_bias else {"weight": weight}


def _sum_of(layer: nn.Module, inputs: Tensor, labels: int) -> _Sum:
    if isinstance(layer, nn.Conv2d):
        return _Convolution(layer, inputs, labels)
    if isinstance(layer, nn.BatchNorm2d | nn.GroupNorm):
        return _Normalisation(layer, inputs)
    assert isinstance(layer, nn.Linear)
    return _Linear(layer, inputs)


def fisher_diagonal(
    blocks: Sequence[ConvolutionBlock],
    head: nn.Module,
    batches: Batches,
    estimator: Estimator,
    generator: torch.Generator,
    *,
    front: nn.Module | None = None,
) -> tuple[dict[str, Tensor], int]:
    """Diagonal of the Fisher information of every block parameter, averaged over the images (Eq. 7).

    Of the network as it stands: evaluation mode (each image's gradient is its own), the network's own precision, no
    autocast. ``exact`` takes the expectation over all of the model's labels; ``sampled`` draws one label per image
    from the model; ``empirical`` uses the data's labels and is not the Fisher information of the model.

    The blocks may be in the middle of a network, as an individual's inherited ones are (Algorithm 1): the parts before
    and after them are only passed through.

    Args:
        blocks: the blocks whose diagonal is wanted, one after the other; in evaluation mode.
        head: from the last block's output to logits ``[n, classes]``; in evaluation mode.
        batches: inputs ``[n, C, H, W]``, one per image, and the images' labels ``[n]`` (only ``empirical`` reads them).
        generator: draws the labels of ``sampled`` (CPU).
        front: from the inputs to the first block; None if the inputs go straight into the first block. In evaluation
            mode.

    Returns:
        The diagonal by parameter name (``block.<i>.<parameter>``), shaped as the parameters and at least 0, and the
        number of images.

    Raises:
        ValueError: no image, a part in training mode, or ``empirical`` without labels.
    """
    layers: dict[str, nn.Module] = {}
    for number, block in enumerate(blocks):
        layers |= {f"block.{number}.conv": block.conv, f"block.{number}.norm": block.norm}
    network = nn.Sequential(*([] if front is None else [front]), *blocks, head)
    return _diagonal(network, layers, batches, estimator, generator)


def fisher_of_network(
    network: nn.Module, batches: Batches, estimator: Estimator, generator: torch.Generator
) -> tuple[dict[str, Tensor], int]:
    """:func:`fisher_diagonal` of every parameter of a network of 3x3 convolutions, BatchNorms or GroupNorms, and linear
    layers.

    Args:
        network: images to logits ``[n, classes]``; in evaluation mode.

    Returns:
        The diagonal by the names of ``network.named_parameters()``, and the number of images.

    Raises:
        ValueError: as above, or a parameter belongs to another kind of layer.
    """
    kinds = nn.Conv2d | nn.BatchNorm2d | nn.GroupNorm | nn.Linear
    layers = {name: module for name, module in network.named_modules() if isinstance(module, kinds)}
    strangers = [name for name, _ in network.named_parameters() if name.rpartition(".")[0] not in layers]
    if strangers:
        raise ValueError(f"{strangers[0]} belongs to no convolution, normalisation or linear layer")
    return _diagonal(network, layers, batches, estimator, generator)


def _diagonal(
    network: nn.Module,
    layers: Mapping[str, nn.Module],
    batches: Batches,
    estimator: Estimator,
    generator: torch.Generator,
) -> tuple[dict[str, Tensor], int]:
    if any(module.training for module in network.modules() if not isinstance(module, nn.Sequential)):
        raise ValueError("the Fisher information is taken of the published network: put it in evaluation mode")
    total: dict[str, Tensor] = {}
    count = 0
    with full_float32():
        for x, labels in batches:
            for name, value in _batch(network, layers, x, labels, estimator, generator).items():
                total[name] = value if name not in total else total[name] + value
            count += len(x)
    if count == 0:
        raise ValueError("the Fisher information needs at least one image")
    return {name: (value / count).clamp(min=0) for name, value in total.items()}, count


@contextmanager
def _traced(layers: Mapping[str, nn.Module]) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
    """Record each layer's input (detached) and output while the network runs; the first output starts the graph."""
    traces: dict[str, tuple[Tensor, Tensor]] = {}

    def record(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if name in traces:
                raise ValueError(f"{name} is used twice: its gradient would be a sum over both uses")
            if not output.requires_grad:
                output.requires_grad_(True)
            traces[name] = inputs[0].detach(), output

        return hook

    handles = [layer.register_forward_hook(record(name)) for name, layer in layers.items()]
    try:
        yield traces
    finally:
        for handle in handles:
            handle.remove()


def _batch(
    network: nn.Module,
    layers: Mapping[str, nn.Module],
    x: Tensor,
    labels: Tensor | None,
    estimator: Estimator,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """Sums over one batch of the squared gradients of the log-likelihood."""
    # With every weight a constant, the graph begins at the first requested layer and holds nothing before it.
    constants = {name: parameter.detach() for name, parameter in network.named_parameters()}
    with torch.enable_grad(), _traced(layers) as traces:
        log_likelihood: Tensor = functional_call(network, constants, (x.detach(),)).log_softmax(1)
    probability = log_likelihood.detach().exp()
    if estimator == "exact":
        chosen = torch.arange(probability.shape[1], device=x.device)[:, None].expand(-1, len(x))
        weight = probability.T.sqrt()
    else:
        if estimator == "sampled":
            labels = torch.multinomial(probability.cpu().double(), 1, generator=generator)[:, 0].to(x.device)
        elif labels is None:
            raise ValueError("the empirical Fisher needs the images' labels")
        chosen = labels[None]
        weight = torch.ones_like(chosen, dtype=probability.dtype)
    outputs = [output for _, output in traces.values()]
    sums = {name: _sum_of(layers[name], inputs, len(chosen)) for name, (inputs, _) in traces.items()}
    # Each label's gradients are weighted by the square root of its probability, so that their squares are by it.
    for label, share in zip(chosen, weight, strict=True):
        objective = (log_likelihood.gather(1, label[:, None])[:, 0] * share).sum()
        gradients = torch.autograd.grad(objective, outputs, retain_graph=True)
        for layer, gradient in zip(sums.values(), gradients, strict=True):
            layer.add(gradient)
    return {f"{name}.{own}": value for name, layer in sums.items() for own, value in layer.squares().items()}
