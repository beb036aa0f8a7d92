"""Tests of the growing network: what widening and new outputs must keep, and that copies separate."""

import pytest
import torch
from torch import Tensor, nn

from collective_node.expandable_network import ExpandableNetwork, add_outputs, output_layer, widen

WIDTHS = (4, 4, 6, 6, 8, 8, 8, 8, 8, 8, 8, 8, 8)


def network(positions: int = 1, seed: int = 0) -> ExpandableNetwork:
    """A narrow network with statistics and affine parameters away from their initial values."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    made = ExpandableNetwork(WIDTHS, positions=positions, hidden=16, dropout=0.5, generator=generator)
    add_outputs(made, 5, generator)
    for layer in made.layers:
        nn.init.uniform_(layer.norm.weight, 0.5, 1.5)
        nn.init.normal_(layer.norm.bias, std=0.3)
        nn.init.normal_(layer.norm.running_mean, std=0.3)
        nn.init.uniform_(layer.norm.running_var, 0.5, 2)
    nn.init.normal_(output_layer(made.classifier).weight)
    return made.eval()


def images(side: int = 32) -> Tensor:
    return torch.randn(4, 3, side, side, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("index", range(13))
def test_widening_preserves_the_function(index: int) -> None:
    made, x = network(), images()
    before = made(x)
    widths = made.widths
    widen(made, index, 3, torch.Generator().manual_seed(2))
    assert made.widths == (*widths[:index], widths[index] + 3, *widths[index + 1 :])
    assert before.abs().max() > 0.1  # or the tolerance would say nothing
    torch.testing.assert_close(made(x), before, rtol=1e-5, atol=1e-5)


def test_widening_in_front_of_the_classifier_with_several_positions() -> None:
    made, x = network(positions=4), images(64)
    before = made(x)
    widen(made, 12, 8, torch.Generator().manual_seed(2))
    torch.testing.assert_close(made(x), before, rtol=1e-5, atol=1e-5)


def test_widening_twice_preserves_the_function() -> None:
    made, x = network(), images()
    before = made(x)
    generator = torch.Generator().manual_seed(3)
    for index, extra in ((4, 8), (4, 8), (12, 4), (0, 2)):
        widen(made, index, extra, generator)
    torch.testing.assert_close(made(x), before, rtol=1e-5, atol=1e-5)


def test_the_copies_separate_in_training() -> None:
    made = network()
    widen(made, 5, 8, torch.Generator().manual_seed(2))
    conv = made.layers[5].conv
    pairs = [
        (a, b) for a in range(8) for b in range(8, 16) if torch.equal(conv.weight.detach()[a], conv.weight.detach()[b])
    ]
    assert len(pairs) == 8
    made.train()
    optimiser = torch.optim.SGD(made.parameters(), 0.05)
    for _ in range(20):
        optimiser.zero_grad()
        nn.functional.cross_entropy(made(images()), torch.tensor([0, 1, 2, 3])).backward()
        optimiser.step()
    difference = torch.stack([(conv.weight[a] - conv.weight[b]).abs().max() for a, b in pairs])
    assert difference.min() > 1e-5


def test_equal_fractions_would_leave_twins() -> None:
    """The control of the test above: with halves, both copies get the same gradient for ever."""
    made = network()
    widen(made, 5, 8, torch.Generator().manual_seed(2))
    conv, following = made.layers[5].conv, made.layers[6].conv
    pairs = [
        (a, b) for a in range(8) for b in range(8, 16) if torch.equal(conv.weight.detach()[a], conv.weight.detach()[b])
    ]
    with torch.no_grad():
        for a, b in pairs:
            mean = (following.weight[:, a] + following.weight[:, b]) / 2
            following.weight[:, a], following.weight[:, b] = mean, mean
    made.train()
    optimiser = torch.optim.SGD(made.parameters(), 0.05)
    for _ in range(20):
        optimiser.zero_grad()
        nn.functional.cross_entropy(made(images()), torch.tensor([0, 1, 2, 3])).backward()
        optimiser.step()
    difference = torch.stack([(conv.weight[a] - conv.weight[b]).abs().max() for a, b in pairs])
    assert difference.max() < 1e-6


def test_new_outputs_leave_the_known_logits_alone() -> None:
    made, x = network(), images()
    before = made(x)
    add_outputs(made, 3, torch.Generator().manual_seed(4))
    assert made.outputs == 8
    assert output_layer(made.classifier).weight.shape[0] == 8
    torch.testing.assert_close(made(x)[:, :5], before)


@pytest.mark.parametrize(("index", "extra"), [(13, 1), (-1, 1), (0, 0), (0, 5)])
def test_a_widening_that_does_not_fit_is_refused(index: int, extra: int) -> None:
    with pytest.raises(ValueError, match="convolution"):
        widen(network(), index, extra, torch.Generator())
