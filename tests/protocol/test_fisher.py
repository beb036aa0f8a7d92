"""Tests of the Fisher diagonal: against per-sample autograd in float64, and of the form that each layer takes."""

import pytest
import torch
from torch import Tensor, nn

from protocol.architecture import Block
from protocol.fisher import (
    convolution_by_pairs,
    convolution_by_unfolding,
    fisher_diagonal,
    pairs_are_cheaper,
    products_by_pairs,
)
from protocol.learngene import Estimator
from protocol.network import ConvolutionBlock, block_tensors, build_blocks

CLASSES = 4


def network(seed: int = 0) -> tuple[list[ConvolutionBlock], nn.Module]:
    """Three blocks on 8x8 images with statistics and affine parameters away from their initial values."""
    torch.manual_seed(seed)
    blocks = build_blocks(
        [
            Block(role="stem", in_channels=3, out_channels=5, pool=True),
            Block(role="stem", in_channels=5, out_channels=6, pool=True),
            Block(role="top", in_channels=6, out_channels=4, pool=True),
        ]
    ).double()
    head = nn.Sequential(nn.Flatten(), nn.Linear(4, CLASSES)).double()
    for block in blocks:
        nn.init.uniform_(block.norm.weight, 0.5, 1.5)
        nn.init.normal_(block.norm.bias)
        nn.init.normal_(block.norm.running_mean)
        nn.init.uniform_(block.norm.running_var, 0.5, 2)
    return list(blocks.eval()), head.eval()


def by_autograd(
    blocks: list[ConvolutionBlock], head: nn.Module, x: Tensor, estimator: Estimator, labels: Tensor
) -> dict[str, Tensor]:
    """The definition: one gradient per image and label, squared, weighted, averaged."""
    parameters = {name: t for name, t in block_tensors(blocks).items() if t.requires_grad}
    total = {name: torch.zeros_like(t) for name, t in parameters.items()}
    for image, label in zip(x, labels, strict=True):
        log_likelihood = head(nn.Sequential(*blocks)(image[None])).log_softmax(1)[0]
        for c in range(CLASSES):
            weight = log_likelihood[c].exp().item() if estimator == "exact" else float(c == int(label))
            found = torch.autograd.grad(log_likelihood[c], list(parameters.values()), retain_graph=True)
            for name, gradient in zip(parameters, found, strict=True):
                total[name] += weight * gradient.square() / len(x)
    return total


@pytest.mark.parametrize("estimator", ["exact", "sampled", "empirical"])
def test_agrees_with_per_sample_autograd_in_float64(estimator: Estimator) -> None:
    blocks, head = network()
    x = torch.randn(7, 3, 8, 8, dtype=torch.float64)
    labels = torch.randint(0, CLASSES, (7,))
    if estimator == "sampled":  # the same draws, from the same generator
        probability = head(nn.Sequential(*blocks)(x)).softmax(1)
        labels = torch.multinomial(probability, 1, generator=torch.Generator().manual_seed(3))[:, 0]
    expected = by_autograd(blocks, head, x, estimator, labels)
    found, count = fisher_diagonal(blocks, head, [(x, labels)], estimator, torch.Generator().manual_seed(3))
    assert count == 7
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert value.max() > 0
        assert (found[name] - value).abs().max() <= 1e-12 * value.max(), name


def test_the_sum_over_batches_is_the_average_over_images() -> None:
    blocks, head = network()
    x = torch.randn(6, 3, 8, 8, dtype=torch.float64)
    generator = torch.Generator()
    whole, _ = fisher_diagonal(blocks, head, [(x, None)], "exact", generator)
    parts, count = fisher_diagonal(blocks, head, [(x[:2], None), (x[2:], None)], "exact", generator)
    assert count == 6
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-12, atol=0)


@pytest.mark.parametrize(("height", "width"), [(2, 2), (4, 4), (1, 1), (3, 5)])
def test_both_forms_of_a_convolution_agree(height: int, width: int) -> None:
    inputs = torch.randn(5, 3, height, width, dtype=torch.float64)
    sensitivities = torch.randn(2, 5, 4, height, width, dtype=torch.float64)
    torch.testing.assert_close(
        convolution_by_pairs(inputs, sensitivities),
        convolution_by_unfolding(inputs, sensitivities, at_once=2),
        rtol=1e-12,
        atol=1e-12,
    )


def test_the_form_is_chosen_by_the_count_of_multiplications() -> None:
    assert products_by_pairs(2, 2) == 26
    assert products_by_pairs(4, 4) == 628
    assert pairs_are_cheaper(2, 2, labels=1)
    assert not pairs_are_cheaper(4, 4, labels=1)
    assert pairs_are_cheaper(4, 4, labels=64)  # the sum over labels is taken before the product
    assert not pairs_are_cheaper(32, 32, labels=64)


def test_training_mode_is_refused() -> None:
    blocks, head = network()
    blocks[1].train()
    with pytest.raises(ValueError, match="evaluation mode"):
        fisher_diagonal(blocks, head, [(torch.randn(1, 3, 8, 8).double(), None)], "exact", torch.Generator())


def test_without_an_image_there_is_no_fisher() -> None:
    blocks, head = network()
    with pytest.raises(ValueError, match="at least one image"):
        fisher_diagonal(blocks, head, [], "sampled", torch.Generator())
