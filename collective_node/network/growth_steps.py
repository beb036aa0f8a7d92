"""One growth of the network: widen a convolution, add a convolution behind another, add outputs for new classes."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from collective_node.network.cosine_classifier import CosineClassifier
from collective_node.network.expandable_network import ExpandableNetwork, output_layer, replace_parameter
from collective_node.network.growth_of_tensors import Appended, Copied, Growth
from protocol.learngene.network import ConvolutionBlock


def add_outputs(network: ExpandableNetwork, count: int, generator: torch.Generator) -> Growth:
    """Add ``count`` outputs for new classes; the logits of the known ones stay as they are.

    New rows are drawn small (standard deviation ``fan_in ** -0.5 / 10``) so that a new class starts near logit 0. The
    directions of a cosine classifier have a length of about 1: it does not change the logits, but the shorter they are,
    the faster they turn.
    """
    layer = output_layer(network.classifier)
    deviation = layer.in_features**-0.5 / (1 if _is_cosine(network) else 10)
    rows = torch.randn((count, layer.in_features), generator=generator) * deviation
    last = next(name for name, module in network.named_modules() if module is layer)
    replace_parameter(layer, "weight", torch.cat([layer.weight.detach(), rows.to(layer.weight)]))
    layer.out_features += count
    moves: dict[str, Copied | Appended] = {f"{last}.weight": Appended(count)}
    if layer.bias is not None:
        replace_parameter(layer, "bias", torch.cat([layer.bias.detach(), layer.bias.new_zeros(count)]))
        moves[f"{last}.bias"] = Appended(count)
    return Growth(moves)


def _is_cosine(network: ExpandableNetwork) -> bool:
    return isinstance(network.classifier[-1], CosineClassifier)


def check_widening(widths: Sequence[int], index: int, extra: int) -> None:
    """Check that convolution ``index`` of a network with these ``widths`` can be widened by ``extra`` channels.

    Raises:
        ValueError: no such convolution, or ``extra`` is not between 1 and its channels.
    """
    _check_place(widths, index)
    if not 1 <= extra <= widths[index]:
        raise ValueError(
            f"convolution {index} has {widths[index]} channels and can be widened by 1 to {widths[index]}, not {extra}"
        )


def check_deepening(widths: Sequence[int], index: int, way: Literal["duplicate", "identity"], *, channels: int) -> None:
    """Check that a network with these ``widths`` can be deepened behind convolution ``index``.

    Args:
        channels: of the input images.

    Raises:
        ValueError: no such convolution, or it cannot be duplicated.
    """
    _check_place(widths, index)
    taken = widths[index - 1] if index else channels
    if way == "duplicate" and taken != widths[index]:
        raise ValueError(
            f"convolution {index} takes {taken} channels and gives {widths[index]}: "
            "only a layer with as many in as out can be duplicated; deepen it by identity"
        )


def _check_place(widths: Sequence[int], index: int) -> None:
    if not 0 <= index < len(widths):
        raise ValueError(f"there is no convolution {index}: the network has {len(widths)}, 0 the first")


def widen(
    network: ExpandableNetwork, index: int, extra: int, generator: torch.Generator, *, noise: float = 0.0
) -> Growth:
    """Widen convolution ``index`` by ``extra`` channels; the function stays the same (Net2WiderNet, Chen et al. 2016).

    Randomly chosen channels are replicated with their BatchNorm parameters and statistics. What a channel sends on is
    divided among its copies by random *unequal* fractions that sum to one: copies with equal fractions would get equal
    gradients for ever and never separate. In front of a cosine classifier the length of the features counts too: there
    both a copy and what reads it are multiplied by the square root of the copy's fraction.

    Args:
        index: convolution, 0-based.
        extra: channels to add, at most as many as there are.
        generator: chooses channels, fractions and noise (CPU).
        noise: standard deviation of the noise that is added to the weights of the new copies, as a share of the
            standard deviation of the layer's weights. Above 0 the function changes by about as much.

    Returns:
        How a tensor that belongs to the parameters follows, such as an optimiser's momentum.

    Raises:
        ValueError: no such convolution, or ``extra`` is not between 1 and its channels.
    """
    layers = network.layers
    check_widening(network.widths, index, extra)
    conv, norm = layers[index].conv, _batch_norm(layers[index])
    channels = conv.out_channels
    source, fraction = _replicated(channels, extra, generator)
    source, fraction = source.to(conv.weight.device), fraction.to(conv.weight)
    own, block = Copied(0, source, gradient=fraction), f"blocks.{index}"
    root = fraction.sqrt() if index + 1 == len(layers) and _is_cosine(network) else None
    affine = own if root is None else Copied(0, source, value=root, gradient=root)
    moves: dict[str, Copied | Appended] = {
        f"{block}.conv.weight": own,
        **{f"{block}.norm.{name}": affine for name in ("weight", "bias")},
    }
    if index + 1 < len(layers):
        onward = Copied(1, source, value=fraction)
        moves[f"blocks.{index + 1}.conv.weight"] = onward
        layers[index + 1].conv.in_channels += extra
        following: list[nn.Conv2d | nn.Linear] = [layers[index + 1].conv]
    else:
        onward = Copied(1, source, fraction if root is None else root, root, positions=network.positions)
        named = _behind_the_blocks(network)
        moves |= {f"{name}.weight": onward for name in named}
        for head in named.values():
            head.in_features += extra * network.positions
        following = [*named.values()]

    weight = own.follow(conv.weight.detach(), "value")
    if noise > 0:
        drawn = torch.randn(weight[channels:].shape, generator=generator).to(weight)
        weight[channels:] += drawn * noise * conv.weight.detach().std()
    replace_parameter(conv, "weight", weight)
    conv.out_channels += extra
    for name in ("weight", "bias"):
        replace_parameter(norm, name, affine.follow(getattr(norm, name).detach(), "value"))
    for name in ("running_mean", "running_var"):
        setattr(norm, name, getattr(norm, name)[source].clone())
    norm.num_features += extra
    for reader in following:
        replace_parameter(reader, "weight", onward.follow(reader.weight.detach(), "value"))
    return Growth(moves)


def _behind_the_blocks(network: ExpandableNetwork) -> dict[str, nn.Linear]:
    """The linear layers that take the last feature map, by name: the classifier's first one and the second head."""
    heads = [("classifier", network.classifier), ("turns", network.turns)]
    found = {}
    for head, module in ((name, module) for name, module in heads if module is not None):
        own, layer = next((name, one) for name, one in module.named_modules() if isinstance(one, nn.Linear))
        found[f"{head}.{own}" if own else head] = layer
    return found


def _replicated(channels: int, extra: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Choose ``extra`` channels to replicate; returns the old channel of each new one, and its fraction."""
    copied = torch.randperm(channels, generator=generator)[:extra]
    share = torch.ones(channels, dtype=torch.float64)
    # At least a tenth from one half: two copies differ by a fifth and get clearly different gradients.
    part = 0.1 + 0.3 * torch.rand(extra, generator=generator).double()
    part = torch.where(torch.rand(extra, generator=generator) < 0.5, part, 1 - part)
    share[copied] = 1 - part
    return torch.cat([torch.arange(channels), copied]), torch.cat([share, part])


def deepen(network: ExpandableNetwork, index: int, way: Literal["duplicate", "identity"]) -> Growth:
    """Put a new convolution behind convolution ``index`` (0-based), in front of its max-pool if it has one.

    ``identity`` (Net2DeeperNet, Chen et al. 2016): the function stays the same in evaluation mode. Its BatchNorm starts
    from the moments that the layer's outputs would have if they were normally distributed before the ReLU, so that it
    changes little in training mode too. ``duplicate`` (the paper's way): a copy of the layer, which changes the
    function; the layer must have as many channels in as out.

    Raises:
        ValueError: no such convolution, or it cannot be duplicated.
    """
    check_deepening(network.widths, index, way, channels=network.layers[0].conv.in_channels)
    layer = network.layers[index]
    channels = layer.conv.out_channels
    made = ConvolutionBlock(channels, channels, pool=layer.pool)
    made = made.to(layer.conv.weight).to(memory_format=torch.channels_last)
    made.train(layer.training)
    if way == "duplicate":
        made.load_state_dict(layer.state_dict())
    else:
        _pass_on(made, _batch_norm(layer))
    layer.pool = False
    blocks = list(network.blocks)
    network.blocks = nn.Sequential(*blocks[: index + 1], made, *blocks[index + 1 :])
    return Growth({}, inserted=index + 1)


@torch.no_grad()
def _pass_on(block: ConvolutionBlock, before: nn.BatchNorm2d) -> None:
    """Make ``block`` the identity on what a ReLU lets through behind the BatchNorm ``before``."""
    block.conv.weight.zero_()
    channel = torch.arange(block.conv.out_channels)
    block.conv.weight[channel, channel, 1, 1] = 1.0
    # Moments of max(y, 0) for y ~ N(bias, weight^2).
    middle, spread = before.bias, before.weight.abs().clamp(min=1e-3)
    z = middle / spread
    normal = torch.distributions.Normal(torch.zeros_like(z), torch.ones_like(z))
    density, below = normal.log_prob(z).exp(), normal.cdf(z)
    mean = middle * below + spread * density
    variance = ((middle.square() + spread.square()) * below + middle * spread * density - mean.square()).clamp(min=1e-4)
    norm = _batch_norm(block)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(variance)
    norm.weight.copy_((variance + norm.eps).sqrt())
    norm.bias.copy_(mean)


def _batch_norm(block: ConvolutionBlock) -> nn.BatchNorm2d:
    assert isinstance(block.norm, nn.BatchNorm2d)
    return block.norm
