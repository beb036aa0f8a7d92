"""Tests of condensing and of learngenes: which layers stand in a form, their role, state and Fisher diagonal."""

import copy
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import nn

from collective_node import weight_averaging
from collective_node.extraction.condensing import condense, recipe_of
from collective_node.extraction.extraction import check_layers, learngene_of, role_of, window_of
from collective_node.network.compact_network import CompactNetwork, blueprint_of
from collective_node.network.expandable_network import ExpandableNetwork, output_layer
from collective_node.network.growth_steps import add_outputs, deepen
from collective_node.random_states import RandomStates
from collective_node.settings import CollectiveSettings
from collective_node.training_set import TrainingSet
from protocol.errors import InputError
from protocol.learngene.architecture import COMPACT_FORMS, MOST_BLOCKS, Form
from protocol.learngene.images import DeviceImages, Normalisation
from protocol.learngene.learngene import Learngene
from protocol.learngene.network import ConvolutionBlock, build_blocks, initialise, layers_of, load_blocks

CLASSES = 5
WIDTHS = (4, 4, 8, 8, 16, 16, 16, 32, 32, 32, 32, 32, 32)
SETTINGS = CollectiveSettings(
    width=0.0625,
    batch_size=8,
    condense_epochs=0.5,
    condense_budget="own",
    condense_start="collective",
    condense_frozen=True,
    fisher_samples=30,
)
#: Output of each label: the network knows four of the five classes, in another order.
OUTPUTS = torch.tensor([2, -1, 0, 3, 1])


@pytest.fixture(autouse=True, scope="module")
def few_statistics() -> Iterator[None]:
    """BatchNorm statistics from 3 batches instead of 40."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weight_averaging, "STATISTICS_BATCHES", 3)
        yield


def made_images(per_class: int = 12) -> DeviceImages:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(CLASSES), per_class)
    base = rng.integers(0, 200, (CLASSES, 1, 1, 3))
    pixels = (base[labels] + rng.integers(0, 56, (len(labels), 32, 32, 3))).astype(np.uint8)
    return DeviceImages.load(pixels, labels, Normalisation.of(pixels), torch.device("cpu"))


IMAGES = made_images()
DATA = TrainingSet(IMAGES, tuple(torch.nonzero(IMAGES.labels == label)[:, 0] for label in (2, 4, 0, 3)), OUTPUTS)


def made_network(seed: int = 0) -> ExpandableNetwork:
    """A narrow network with statistics and affine parameters away from their initial values, in training mode."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    network = ExpandableNetwork(WIDTHS, hidden=16, dropout=0.5, generator=generator)
    add_outputs(network, 4, generator)
    for layer in network.layers:
        nn.init.uniform_(layer.norm.weight, 0.5, 1.5)
        nn.init.normal_(layer.norm.bias, std=0.3)
        nn.init.normal_(layer.norm.running_mean, std=0.3)
        nn.init.uniform_(layer.norm.running_var, 0.5, 2)
    nn.init.normal_(output_layer(network.classifier).weight)
    return network.train()


def made_condensed(network: ExpandableNetwork, top: int = 3) -> CompactNetwork:
    return condense(
        network, top, DATA, recipe_of("condensed", SETTINGS), SETTINGS.condense_epochs, SETTINGS, RandomStates(1)
    )


@pytest.fixture(scope="module")
def network() -> ExpandableNetwork:
    return made_network()


@pytest.fixture(scope="module")
def condensed(network: ExpandableNetwork) -> CompactNetwork:
    return made_condensed(network)


def learngene(
    form: Form,
    network: ExpandableNetwork,
    condensed: CompactNetwork,
    chosen: range = range(10, 13),
    settings: CollectiveSettings = SETTINGS,
) -> Learngene:
    generator = torch.Generator().manual_seed(4)
    compact = condensed if form in COMPACT_FORMS else None
    return learngene_of(form, network, compact, chosen, DATA, settings, generator)


@pytest.mark.parametrize("top", [1, 3, 6, 12])
def test_condensing_keeps_the_top_weights_and_estimates_its_statistics_anew(
    network: ExpandableNetwork, top: int
) -> None:
    condensed = made_condensed(network, top)
    kept = layers_of(condensed.top)
    assert len(kept) == top
    for mine, original in zip(kept, network.layers[-top:], strict=True):
        assert torch.equal(mine.conv.weight, original.conv.weight)
        assert torch.equal(mine.norm.weight, original.norm.weight)
        assert not torch.equal(mine.norm.running_mean, original.norm.running_mean)  # type: ignore[arg-type]
        # Counted from zero: only the batches without augmentation are in the statistics.
        assert int(mine.norm.num_batches_tracked) == 3  # type: ignore[arg-type]
    x = torch.randn(2, 3, 32, 32)
    assert condensed.stem(x).shape == network.blocks[: 13 - top](x).shape
    assert condensed(x).shape == (2, 4)


def test_the_stem_is_light_and_learns() -> None:
    network = made_network()
    blocks = blueprint_of(network, 3, SETTINGS.width).stem
    assert [block.out_channels for block in blocks] == [4, 8, 16, 32]
    untrained = build_blocks(blocks)
    initialise(untrained, RandomStates(1)["weights"])
    condensed = made_condensed(network)
    assert not condensed.training
    for before, after in zip(untrained.parameters(), condensed.stem.parameters(), strict=True):
        assert before.shape == after.shape
        assert not torch.equal(before, after)
    weights = [sum(p.numel() for p in part.parameters()) for part in (condensed.stem, network.blocks[:10])]
    assert weights[0] < weights[1]


def test_the_collective_itself_is_not_changed_by_condensing() -> None:
    network = made_network()
    before = copy.deepcopy(network.state_dict())
    made_condensed(network)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_a_stem_fits_a_network_that_was_deepened() -> None:
    network = made_network()
    deepen(network, 12, "duplicate")
    deepen(network, 9, "identity")
    condensed = made_condensed(network, 2)
    x = torch.randn(2, 3, 32, 32)
    assert condensed.stem(x).shape == network.blocks[:13](x).shape


def test_a_stem_in_front_of_every_layer_is_refused(network: ExpandableNetwork) -> None:
    for top in (0, 13, 14):
        with pytest.raises(InputError, match=f"in front of {top} of 13 layers"):
            made_condensed(network, top)


def test_the_windows_of_the_forms() -> None:
    chosen = range(7, 10)
    assert window_of("paper", chosen, 13) == chosen
    assert window_of("condensed", chosen, 13) == range(10, 13)
    assert window_of("paper-front", chosen, 13) == range(3)
    assert window_of("paper-middle", chosen, 13) == range(5, 8)
    # An odd layer more stands behind the middle.
    assert window_of("paper-middle", chosen, 14) == range(5, 8)
    assert window_of("paper-middle", range(11), 13) == range(1, 12)


@pytest.mark.parametrize(
    ("form", "layers", "most"),
    [
        ("paper", 13, 13),
        ("paper-front", 13, 13),
        ("paper-middle", 13, 11),
        ("condensed", 13, 12),
        ("direct", 13, 12),
        ("paper", 36, MOST_BLOCKS),
        ("paper-middle", 36, MOST_BLOCKS),
        ("condensed", 36, MOST_BLOCKS - 4),
    ],
)
def test_a_form_that_cannot_hold_so_many_layers_says_how_many_it_can(form: Form, layers: int, most: int) -> None:
    assert len(window_of(form, range(most), layers)) == most
    with pytest.raises(InputError, match=f"the form {form} holds at most {most} of the network's {layers}"):
        window_of(form, range(most + 1), layers)


@pytest.mark.parametrize(("form", "most"), [("paper-middle", 11), ("condensed", 12), ("direct", 12)])
def test_what_a_form_cannot_hold_is_refused_before_training(form: Form, most: int) -> None:
    check_layers(CollectiveSettings(layers=most, forms=(form,)), layers=13, tasks=1)
    with pytest.raises(InputError, match=f"holds at most {most} of the network's 13 layers, not {most + 1}.*lower"):
        check_layers(CollectiveSettings(layers=most + 1, forms=(form,)), layers=13, tasks=1)


def test_more_layers_than_the_network_will_have_and_too_few_tasks_are_refused_before_training() -> None:
    with pytest.raises(InputError, match="14 layers to inherit, but the network has 13"):
        check_layers(CollectiveSettings(layers=14), layers=13, tasks=13)
    check_layers(CollectiveSettings(layers=None), layers=13, tasks=6)
    with pytest.raises(InputError, match="from 5 tasks"):
        check_layers(CollectiveSettings(layers=None), layers=13, tasks=5)


def test_the_role_says_where_a_window_stands() -> None:
    assert [role_of(window, 13) for window in (range(3), range(5, 8), range(10, 13))] == ["front", "middle", "top"]
    assert role_of(range(13), 13) == "front"


@pytest.mark.parametrize(
    ("form", "chosen", "first", "role"),
    [
        ("paper", range(10, 13), 10, "top"),
        ("paper", range(3, 6), 3, "middle"),
        ("paper", range(2), 0, "front"),
        ("paper-middle", range(10, 13), 5, "middle"),
        ("paper-front", range(10, 13), 0, "front"),
    ],
)
def test_a_learngene_holds_the_collectives_own_layers(
    network: ExpandableNetwork, condensed: CompactNetwork, form: Form, chosen: range, first: int, role: str
) -> None:
    made = learngene(form, network, condensed, chosen)
    assert made.architecture.form == form
    assert [block.role for block in made.architecture.blocks] == [role] * len(chosen)
    for number in range(len(chosen)):
        original = network.layers[first + number]
        assert made.architecture.blocks[number].pool == original.pool
        for name, value in original.state_dict().items():
            if name != "norm.num_batches_tracked":
                np.testing.assert_array_equal(made.tensors[f"block.{number}.{name}"], value.numpy())


def test_the_whole_form_holds_every_layer_and_hands_over_where_a_compact_one_does(network: ExpandableNetwork) -> None:
    made = learngene_of("whole", network, None, range(10, 13), DATA, SETTINGS, torch.Generator())
    assert [block.role for block in made.architecture.blocks] == ["stem"] * 10 + ["top"] * 3
    assert made.architecture.complete
    built = build_blocks(made.architecture.blocks).eval()
    load_blocks([block for block in built if isinstance(block, ConvolutionBlock)], made.tensors)
    x, _ = IMAGES.batch(torch.arange(8))
    torch.testing.assert_close(built(x), network.blocks(x), rtol=1e-4, atol=1e-5)


def test_a_network_with_more_layers_than_a_learngene_holds_is_not_sent_whole() -> None:
    assert window_of("whole", range(3), MOST_BLOCKS) == range(MOST_BLOCKS)
    with pytest.raises(InputError, match=f"at most {MOST_BLOCKS} layers"):
        window_of("whole", range(3), MOST_BLOCKS + 1)


def test_the_condensed_learngene_holds_stem_and_top_and_computes_the_same_features_alone(
    network: ExpandableNetwork, condensed: CompactNetwork
) -> None:
    made = learngene("condensed", network, condensed)
    assert [block.role for block in made.architecture.blocks] == ["stem"] * 4 + ["top"] * 3
    built = build_blocks(made.architecture.blocks).eval()
    load_blocks([block for block in built if isinstance(block, ConvolutionBlock)], made.tensors)
    x, _ = IMAGES.batch(torch.arange(8))
    torch.testing.assert_close(built(x), condensed.top(condensed.stem(x)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", ["condensed", "paper", "paper-middle", "paper-front"])
def test_a_learngene_carries_its_input_contract_and_a_diagonal_and_no_classifier(
    network: ExpandableNetwork, condensed: CompactNetwork, form: Form
) -> None:
    made = learngene(form, network, condensed)
    contract = made.architecture.input
    assert (contract.height, contract.width, contract.channels) == (32, 32, 3)
    np.testing.assert_array_equal(made.tensors["input.mean"], IMAGES.mean.numpy())
    np.testing.assert_array_equal(made.tensors["input.std"], IMAGES.std.numpy())
    assert made.fisher is not None
    assert made.fisher.samples == 30
    assert all(np.all(t >= 0) for name, t in made.tensors.items() if name.startswith("fisher"))
    assert any(t.max() > 0 for name, t in made.tensors.items() if name.startswith("fisher"))
    assert not any("classifier" in name for name in made.tensors)


def test_no_image_counts_twice_in_the_fisher_diagonal(network: ExpandableNetwork, condensed: CompactNetwork) -> None:
    settings = SETTINGS.model_copy(update={"fisher_samples": 1024})
    made = learngene("paper", network, condensed, settings=settings)
    assert made.fisher is not None
    assert made.fisher.samples == 4 * 12


@pytest.mark.parametrize("estimator", ["exact", "empirical"])
@pytest.mark.parametrize(
    ("form", "chosen", "first"),
    [
        ("paper", range(10, 13), 10),
        ("paper", range(7, 9), 7),
        ("paper-middle", range(10, 13), 5),
        ("paper-front", range(10, 13), 0),
    ],
)
def test_the_diagonal_is_taken_through_the_whole_network(
    network: ExpandableNetwork, condensed: CompactNetwork, form: Form, chosen: range, first: int, estimator: str
) -> None:
    """Eq. 7 image by image and label by label, through whatever stands in front of the layers and behind them."""
    settings = SETTINGS.model_copy(update={"fisher_estimator": estimator, "fisher_samples": 3})
    made = learngene(form, network, condensed, chosen, settings)
    rows = DATA.distinct(3, torch.Generator().manual_seed(4))
    network.eval()
    for number in range(len(chosen)):
        layer = network.layers[first + number]
        parameters = [layer.conv.weight, layer.norm.weight, layer.norm.bias]
        expected = [torch.zeros_like(parameter) for parameter in parameters]
        for row in rows:
            image, label = IMAGES.batch(row[None])
            log_likelihood = network(image).log_softmax(1)[0]
            for output, value in enumerate(log_likelihood):
                share = value.exp().item() if estimator == "exact" else float(output == OUTPUTS[label])
                gradients = torch.autograd.grad(value, parameters, retain_graph=True)
                for total, gradient in zip(expected, gradients, strict=True):
                    total += share * gradient.square() / 3
        for name, total in zip(("conv.weight", "norm.weight", "norm.bias"), expected, strict=True):
            found = torch.from_numpy(np.array(made.tensors[f"fisher.block.{number}.{name}"]))
            assert total.max() > 0
            assert (found - total).abs().max() < 1e-4 * total.max()


def test_the_same_generator_gives_the_same_learngene(network: ExpandableNetwork, condensed: CompactNetwork) -> None:
    first, second = (learngene("paper-front", network, condensed) for _ in range(2))
    assert all(np.array_equal(value, second.tensors[name]) for name, value in first.tensors.items())


@pytest.mark.parametrize("form", ["paper", "whole", "paper-front"])
def test_a_second_head_stays_at_the_collective(form: Form, condensed: CompactNetwork) -> None:
    """With it and without it the learngene and its Fisher diagonal are the same, bit for bit."""
    network = made_network()
    plain = learngene(form, network, condensed)
    network.turns = nn.Linear(WIDTHS[-1], 4)
    found = learngene(form, network, condensed)
    assert found.architecture == plain.architecture
    assert found.tensors.keys() == plain.tensors.keys()
    assert all(np.array_equal(value, plain.tensors[name]) for name, value in found.tensors.items())
