"""Tests of the growing network: what widening and new outputs must keep, and that copies separate."""

import copy

import pytest
import torch
from torch import Tensor, nn

from collective_node.network.expandable_network import ExpandableNetwork, output_layer
from collective_node.network.growth_of_tensors import Growth
from collective_node.network.growth_steps import add_outputs, deepen, widen

WIDTHS = (4, 4, 6, 6, 8, 8, 8, 8, 8, 8, 8, 8, 8)


#: Hidden units, or the other classifier.
CLASSIFIERS = (0, 16, "cosine")


def network(positions: int = 1, seed: int = 0, classifier: int | str = 16) -> ExpandableNetwork:
    """A narrow network with statistics and affine parameters away from their initial values, and a second head."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    made = ExpandableNetwork(
        WIDTHS,
        positions=positions,
        hidden=classifier if isinstance(classifier, int) else 0,
        dropout=0.5,
        generator=generator,
        cosine=classifier == "cosine",
        tells_turns=True,
    )
    add_outputs(made, 5, generator)
    for layer in made.layers:
        nn.init.uniform_(layer.norm.weight, 0.5, 1.5)
        nn.init.normal_(layer.norm.bias, std=0.3)
        nn.init.normal_(layer.norm.running_mean, std=0.3)
        nn.init.uniform_(layer.norm.running_var, 0.5, 2)
    nn.init.normal_(output_layer(made.classifier).weight)
    return made.eval()


def both(made: ExpandableNetwork, x: Tensor) -> Tensor:
    """Logits of classes, then those of turns, of images."""
    answers = made.answers(x)
    assert answers.turns is not None
    return torch.cat([answers.logits, answers.turns], 1)


def images(side: int = 32) -> Tensor:
    return torch.randn(4, 3, side, side, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("classifier", CLASSIFIERS)
@pytest.mark.parametrize("index", range(13))
def test_widening_preserves_the_function(index: int, classifier: int | str) -> None:
    made, x = network(classifier=classifier), images()
    before = both(made, x)
    widths = made.widths
    widen(made, index, 3, torch.Generator().manual_seed(2))
    assert made.widths == (*widths[:index], widths[index] + 3, *widths[index + 1 :])
    assert before.abs().max() > 0.1  # or the tolerance would say nothing
    torch.testing.assert_close(both(made, x), before, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("classifier", CLASSIFIERS)
def test_widening_in_front_of_the_classifier_with_several_positions(classifier: int | str) -> None:
    made, x = network(positions=4, classifier=classifier), images(64)
    before = both(made, x)
    widen(made, 12, 8, torch.Generator().manual_seed(2))
    torch.testing.assert_close(both(made, x), before, rtol=1e-5, atol=1e-5)


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


@pytest.mark.parametrize("classifier", CLASSIFIERS)
def test_new_outputs_leave_the_known_logits_alone(classifier: int | str) -> None:
    made, x = network(classifier=classifier), images()
    before = made(x)
    add_outputs(made, 3, torch.Generator().manual_seed(4))
    assert made.outputs == 8
    assert output_layer(made.classifier).weight.shape[0] == 8
    torch.testing.assert_close(made(x)[:, :5], before)


@pytest.mark.parametrize(("index", "extra"), [(13, 1), (-1, 1), (0, 0), (0, 5)])
def test_a_widening_that_does_not_fit_is_refused(index: int, extra: int) -> None:
    with pytest.raises(ValueError, match="convolution"):
        widen(network(), index, extra, torch.Generator())


def gradients(made: ExpandableNetwork, x: Tensor) -> dict[str, Tensor]:
    made.zero_grad()
    nn.functional.cross_entropy(both(made, x), torch.tensor([0, 1, 2, 6])).backward()
    return {name: value.grad.clone() for name, value in made.named_parameters() if value.grad is not None}


@pytest.mark.parametrize("classifier", CLASSIFIERS)
@pytest.mark.parametrize(("index", "positions"), [(0, 1), (5, 1), (11, 1), (12, 1), (12, 4)])
def test_what_follows_a_widening_as_a_gradient_is_the_gradient_of_the_widened_network(
    index: int, positions: int, classifier: int | str
) -> None:
    """So an optimiser's momentum, a sum of gradients, goes on as if the network had been that wide before."""
    made, x = (
        network(positions=positions, classifier=classifier).double(),
        images(32 if positions == 1 else 64).double(),
    )
    before = gradients(made, x)
    growth = widen(made, index, 3, torch.Generator().manual_seed(2))
    followed, after = growth.follow_all(before, "gradient"), gradients(made, x)
    assert set(followed) == set(after)
    assert before[f"blocks.{index}.conv.weight"].shape != after[f"blocks.{index}.conv.weight"].shape
    for name, gradient in after.items():
        torch.testing.assert_close(followed[name], gradient, rtol=1e-9, atol=1e-12, msg=name)


@pytest.mark.parametrize("classifier", CLASSIFIERS)
@pytest.mark.parametrize(("index", "positions"), [(3, 1), (12, 1), (12, 4)])
def test_what_follows_a_widening_as_a_value_is_the_widened_parameter(
    index: int, positions: int, classifier: int | str
) -> None:
    made = network(positions=positions, classifier=classifier)
    before = {name: value.detach().clone() for name, value in made.named_parameters()}
    growth = widen(made, index, 4, torch.Generator().manual_seed(2))
    followed = growth.follow_all(before, "value")
    assert all(torch.equal(followed[name], value) for name, value in made.named_parameters())


def test_what_follows_as_a_square_is_the_square_of_what_follows_as_a_gradient() -> None:
    made = network()
    drawn = {name: torch.randn_like(value) for name, value in made.named_parameters()}
    growth = widen(made, 7, 4, torch.Generator().manual_seed(2))
    squares = growth.follow_all({name: value.square() for name, value in drawn.items()}, "square")
    for name, value in growth.follow_all(drawn, "gradient").items():
        torch.testing.assert_close(squares[name], value.square())


def test_noise_on_copied_weights_has_the_stated_size_and_leaves_the_old_ones_alone() -> None:
    made = ExpandableNetwork(
        (64,) * 13, positions=1, hidden=16, dropout=0.0, generator=torch.Generator().manual_seed(0)
    )
    old = made.layers[4].conv.weight.detach().clone()
    quiet, noisy = [_widened(made, old, noise) for noise in (0.0, 0.25)]
    assert torch.equal(noisy[:64], old)
    added = noisy[64:] - quiet[64:]
    assert float(added.std() / old.std()) == pytest.approx(0.25, rel=0.02)


def _widened(made: ExpandableNetwork, old: Tensor, noise: float) -> Tensor:
    other = copy.deepcopy(made)
    widen(other, 4, 64, torch.Generator().manual_seed(3), noise=noise)
    return other.layers[4].conv.weight.detach()


@pytest.mark.parametrize("index", [0, 1, 6, 12])
def test_an_identity_layer_preserves_the_function(index: int) -> None:
    made, x = network(), images()
    before, widths = made(x), made.widths
    deepen(made, index, "identity")
    assert made.widths == (*widths[: index + 1], widths[index], *widths[index + 1 :])
    assert before.abs().max() > 0.1
    torch.testing.assert_close(made(x), before, rtol=1e-5, atol=1e-5)


def test_an_identity_layer_changes_little_in_training_mode() -> None:
    """Its BatchNorm expects the moments that it will see; one that expects mean 0 and variance 1 would change much."""
    made, x = network().train(), torch.randn(256, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    for layer in made.layers:
        layer.norm.momentum = 1.0
    made.classifier.eval()
    first = nn.Sequential(*made.blocks[:3])
    before = first(x)
    deepen(made, 2, "identity")
    through = made.blocks[3](before)
    naive = nn.functional.batch_norm(before, None, None, training=True).relu()
    assert (through - before).abs().mean() < 0.25 * (naive - before).abs().mean()


def test_the_max_pool_stays_behind_the_deepened_pair() -> None:
    made = network()
    pooled = [layer.pool for layer in made.layers]
    deepen(made, 1, "identity")
    assert pooled[1]
    assert [layer.pool for layer in made.layers] == [pooled[0], False, True, *pooled[2:]]


def test_a_duplicate_is_a_copy_of_the_layer_in_front_of_it() -> None:
    made = network()
    growth = deepen(made, 5, "duplicate")
    original, copied = made.layers[5].state_dict(), made.layers[6].state_dict()
    assert all(torch.equal(copied[name], value) for name, value in original.items())
    assert copied["conv.weight"].data_ptr() != original["conv.weight"].data_ptr()
    assert growth.renamed("blocks.5.conv.weight") == "blocks.5.conv.weight"
    assert growth.renamed("blocks.6.conv.weight") == "blocks.7.conv.weight"
    assert growth.renamed("classifier.1.weight") == "classifier.1.weight"


def test_after_deepening_every_old_parameter_is_found_under_its_new_name() -> None:
    made = network()
    before = {name: value.detach().clone() for name, value in made.named_parameters()}
    followed = deepen(made, 8, "identity").follow_all(before, "value")
    now = dict(made.named_parameters())
    assert all(torch.equal(now[name], value) for name, value in followed.items())
    assert {name for name in now if name not in followed} == {
        "blocks.9.conv.weight",
        "blocks.9.norm.weight",
        "blocks.9.norm.bias",
    }


def test_a_layer_that_changes_the_width_cannot_be_duplicated() -> None:
    with pytest.raises(ValueError, match="takes 6 channels and gives 8"):
        deepen(network(), 4, "duplicate")
    with pytest.raises(ValueError, match="there is no convolution 13"):
        deepen(network(), 13, "identity")


def test_new_outputs_start_what_belongs_to_them_at_zero() -> None:
    made = network()
    drawn = {name: torch.randn_like(value) for name, value in made.named_parameters()}
    followed = add_outputs(made, 2, torch.Generator().manual_seed(0)).follow_all(drawn, "gradient")
    assert {name: value.shape for name, value in followed.items()} == {
        name: value.shape for name, value in made.named_parameters()
    }
    last = f"classifier.{len(made.classifier) - 1}"
    assert torch.equal(followed[f"{last}.weight"][:5], drawn[f"{last}.weight"])
    assert not followed[f"{last}.weight"][5:].any()
    assert not followed[f"{last}.bias"][5:].any()
    cosine = network(classifier="cosine")
    rows = {"classifier.2.directions.weight": cosine.classifier[2].directions.weight.detach().clone()}
    followed = add_outputs(cosine, 2, torch.Generator().manual_seed(0)).follow_all(rows, "gradient")
    (grown,) = followed.values()
    assert torch.equal(grown[:5], rows["classifier.2.directions.weight"])
    assert not grown[5:].any()


def test_nothing_follows_a_growth_that_changed_nothing() -> None:
    value = torch.randn(3)
    assert Growth().follow("classifier.1.bias", value, "gradient") is value
