"""Compact networks: their sizes, what they start from, and what of the collective reaches which form."""

import copy
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from collective_node import weight_averaging
from collective_node.extraction.condensing import ask, condense, inherit, recipe_of
from collective_node.network.compact_network import CompactNetwork, blueprint_for, positions_of
from collective_node.network.cosine_classifier import CosineClassifier
from collective_node.network.expandable_network import ExpandableNetwork
from collective_node.network.growth_steps import add_outputs
from collective_node.random_states import RandomStates
from collective_node.settings import BUDGETS, REGULARISERS, CollectiveSettings
from collective_node.training_set import TrainingSet
from protocol.errors import InputError
from protocol.learngene.architecture import Block, CompactForm
from protocol.learngene.images import DeviceImages, Normalisation
from protocol.learngene.network import build_blocks, layers_of

WIDTHS = (4, 4, 4, 4, 8, 8, 8, 16, 16, 16, 16, 16, 16)
SETTINGS = CollectiveSettings(
    width=0.0625,
    condense_epochs=1,
    condense_budget="own",
    condense_start="collective",
    batch_size=8,
    distil_logits=0.5,
    distil_features=1.0,
)
CLASSES = 4


@pytest.fixture(autouse=True, scope="module")
def few_statistics() -> Iterator[None]:
    """BatchNorm statistics from 2 batches instead of 40."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weight_averaging, "STATISTICS_BATCHES", 2)
        yield


def made_data(classes: int = CLASSES) -> TrainingSet:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(classes), 6)
    pixels = rng.integers(0, 256, (len(labels), 32, 32, 3), dtype=np.uint8)
    images = DeviceImages.load(pixels, labels, Normalisation.of(pixels), torch.device("cpu"))
    rows = tuple(torch.nonzero(images.labels == label)[:, 0] for label in range(classes))
    return TrainingSet(images, rows, torch.arange(classes))


DATA = made_data()


def made_network(seed: int) -> ExpandableNetwork:
    generator = torch.Generator().manual_seed(seed)
    network = ExpandableNetwork(WIDTHS, hidden=16, dropout=0, generator=generator)
    add_outputs(network, CLASSES, generator)
    for layer in network.layers:
        nn.init.uniform_(layer.norm.weight, 0.5, 1.5, generator=generator)
    return network


def made(form: CompactForm, network: ExpandableNetwork, settings: CollectiveSettings = SETTINGS) -> CompactNetwork:
    recipe = recipe_of(form, settings)
    knowledge = ask(network, DATA, DATA.every_row) if recipe.distils else None
    return condense(network, 3, DATA, recipe, 1.0, settings, RandomStates(1), knowledge)


def differ(first: nn.Module, second: nn.Module) -> bool:
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    return any(not torch.equal(a, b) for a, b in pairs)


def test_direct_has_nothing_of_the_collectives_network_and_the_other_forms_have() -> None:
    one, other = made_network(0), made_network(1)
    assert not differ(made("direct", one), made("direct", other))
    assert differ(made("direct-inherited", one), made("direct-inherited", other))
    assert differ(made("condensed", one), made("condensed", other))
    from_labels = SETTINGS.model_copy(update={"condense_start": "random", "distil_logits": 0.0, "distil_features": 0.0})
    assert not differ(made("condensed", one, from_labels), made("condensed", other, from_labels))
    assert not differ(made("condensed", one, from_labels), made("direct", other))


def test_a_form_that_is_free_trains_every_block_and_one_that_is_frozen_its_stem_alone() -> None:
    network = made_network(0)
    free = made("condensed", network)
    for mine, theirs in zip(layers_of(free.top), network.layers[-3:], strict=True):
        assert not torch.equal(mine.conv.weight, theirs.conv.weight)
    frozen = made("condensed", network, SETTINGS.model_copy(update={"condense_frozen": True}))
    for mine, theirs in zip(layers_of(frozen.top), network.layers[-3:], strict=True):
        assert torch.equal(mine.conv.weight, theirs.conv.weight)
    assert not differ(frozen.classifier, network.classifier)


@pytest.mark.parametrize("form", ["condensed", "direct", "direct-inherited"])
@pytest.mark.parametrize("classifier", ["mlp", "linear", "cosine"])
def test_the_collective_stays_as_it_is(form: CompactForm, classifier: str) -> None:
    network = made_network(0)
    before = copy.deepcopy(network.state_dict())
    compact = made(form, network, SETTINGS.model_copy(update={"condense_classifier": classifier}))
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert compact(torch.randn(2, 3, 32, 32)).shape == (2, CLASSES)


def test_the_teacher_is_asked_about_each_image_and_its_mirror_image() -> None:
    network = made_network(0)
    knowledge = ask(network, DATA, torch.tensor([3, 7]))
    x, _ = DATA.batch(torch.tensor([7]))
    torch.testing.assert_close(knowledge.logits[7, 0], network(x)[0], rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(knowledge.logits[7, 1], network(x.flip(3))[0], rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(knowledge.features[7, 0], network.blocks(x).flatten(), rtol=1e-2, atol=1e-2)
    assert not knowledge.logits[0].any()


@pytest.mark.parametrize("budget", BUDGETS.values())
@pytest.mark.parametrize("top", [1, 3])
def test_a_budget_is_used_up_and_kept(budget: int, top: int) -> None:
    found = blueprint_for(budget, channels=3, top=top, pools=(1, 2, 3))
    blocks = [*found.stem, *found.top]
    assert found.parameters == sum(p.numel() for p in build_blocks(blocks).parameters()) <= budget
    wider = [block.model_copy(update=_one_wider(block, number)) for number, block in enumerate(blocks)]
    assert sum(p.numel() for p in build_blocks(wider).parameters()) > budget
    assert [number for number, block in enumerate(blocks, start=1) if block.pool] == [1, 2, 3]
    assert positions_of(blocks, 32, 32) == 16


def _one_wider(block: Block, number: int) -> dict[str, int]:
    """One channel more in the top layers, and as much more as their share in the stem at most."""
    return {"in_channels": block.in_channels + (number > 0), "out_channels": block.out_channels + 1}


def test_a_budget_that_is_too_small_and_a_pool_without_a_block_are_refused() -> None:
    with pytest.raises(InputError, match="needs more than 20 weights"):
        blueprint_for(20, channels=3, top=3, pools=())
    with pytest.raises(InputError, match="of 5 blocks cannot pool behind block 7"):
        blueprint_for(250_000, channels=3, top=1, pools=(1, 7))


def filled(widths: tuple[int, ...], seed: int) -> nn.Sequential:
    generator = torch.Generator().manual_seed(seed)
    pairs = pairwise(widths)
    blocks = build_blocks(Block(role="top", in_channels=a, out_channels=b, pool=False) for a, b in pairs)
    for value in [*blocks.parameters(), *(buffer for buffer in blocks.buffers() if buffer.is_floating_point())]:
        with torch.no_grad():
            value.copy_(torch.rand(value.shape, generator=generator) + 0.1)
    return blocks


def test_blocks_of_equal_widths_inherit_an_exact_copy() -> None:
    ancestor, heir = filled((5, 6, 7), 0), filled((5, 6, 7), 1)
    inherit(layers_of(heir), layers_of(ancestor))
    x = torch.randn(2, 5, 4, 4)
    torch.testing.assert_close(heir.eval()(x), ancestor.eval()(x), rtol=0, atol=0)


def test_a_narrower_block_computes_the_kept_channels_where_the_others_send_nothing() -> None:
    """Channels with scale and shift 0 are the smallest, and leaving them out changes nothing behind them."""
    ancestor, heir = filled((5, 6, 7), 0), filled((5, 4, 7), 1)
    first = layers_of(ancestor)[0].norm
    with torch.no_grad():
        for parameter in (first.weight, first.bias):
            parameter[[1, 4]] = 0
    inherit(layers_of(heir), layers_of(ancestor))
    x = torch.randn(2, 5, 4, 4)
    torch.testing.assert_close(heir.eval()(x), ancestor.eval()(x))


def test_a_wider_block_cannot_inherit() -> None:
    with pytest.raises(InputError, match="cannot start from the collective's, which have 6"):
        inherit(layers_of(filled((5, 7), 0)), layers_of(filled((5, 6), 1)))


def test_cosines_do_not_change_with_the_length_of_the_features() -> None:
    classifier = CosineClassifier(4, 3)
    x = torch.randn(5, 4)
    logits: Tensor = classifier(x)
    torch.testing.assert_close(classifier(10 * x), logits)
    assert float(logits.detach().abs().max()) <= float(classifier.scale.detach()) * (1 + 1e-5)


REGULARISED = {
    "condense_manifold_mixup": 1.0,
    "condense_rotation": 0.5,
    "condense_randaugment": 2,
    "condense_ema": 0.9,
    "condense_generations": 1,
    "parts": 2,
}


@pytest.mark.parametrize("form", ["condensed", "direct", "direct-inherited"])
def test_regularisers_change_a_form_and_leave_nothing_in_it(form: CompactForm) -> None:
    network = made_network(0)
    plain, regularised = made(form, network), made(form, network, SETTINGS.model_copy(update=REGULARISED))
    assert differ(plain, regularised)
    assert [*plain.state_dict()] == [*regularised.state_dict()]
    assert plain.describe() == regularised.describe()
    again = made(form, network, SETTINGS.model_copy(update=REGULARISED))
    assert not differ(regularised, again)


@pytest.mark.parametrize("name", ["condense_mixup", "condense_swa", *(name for name in REGULARISED if name != "parts")])
def test_every_regulariser_reaches_condensing(name: str) -> None:
    value = {"condense_mixup": 1.0, "condense_swa": 0.5, **REGULARISED}[name]
    network = made_network(0)
    assert differ(made("direct", network), made("direct", network, SETTINGS.model_copy(update={name: value})))


def test_a_regulariser_can_be_the_tasks_alone() -> None:
    network = made_network(0)
    tasks_alone: dict[str, object] = dict.fromkeys(REGULARISERS, 1) | {f"condense_{name}": 0 for name in REGULARISERS}
    assert not differ(made("direct", network), made("direct", network, SETTINGS.model_copy(update=tasks_alone)))


def test_a_generation_is_taught_by_the_one_before_and_all_share_the_passes() -> None:
    """Two generations are two trainings of half the length, one after the other; the second has new weights."""
    network = made_network(0)
    seen: list[tuple[int, int]] = []
    settings = SETTINGS.model_copy(update={"generation_weight": 0.7})
    found = condense(
        network,
        3,
        DATA,
        recipe_of("direct", settings),
        2.0,
        settings.model_copy(update={"condense_generations": 1}),
        RandomStates(1),
        observe=lambda step, steps: seen.append((step, steps)),
    )
    random = RandomStates(1)
    first = condense(network, 3, DATA, recipe_of("direct", settings), 1.0, settings, random)
    taught = settings.model_copy(update={"distil_logits": 0.7, "distil_features": 0.0})
    knowledge = ask(first, DATA, DATA.every_row)
    recipe = replace(recipe_of("direct", settings), distils=True)
    assert not differ(found, condense(network, 3, DATA, recipe, 1.0, taught, random, knowledge))
    assert seen == [(step, 6) for step in range(6)]


def test_a_teacher_that_knows_more_classes_is_asked_about_the_students_own() -> None:
    """Classes that were named later have the last outputs; with ``condense_known`` off nobody condenses them."""
    network = made_network(0)
    settings = SETTINGS.model_copy(update={"condense_known": False})
    expected = made("condensed", network, settings)
    add_outputs(network, 2, torch.Generator().manual_seed(0))
    assert not differ(made("condensed", network, settings), expected)


def test_features_of_several_positions_are_distilled_and_turned_too() -> None:
    """With fewer max-pools the last map has more than one position."""
    settings = SETTINGS.model_copy(
        update={
            "condense_budget": "0.25M",
            "condense_start": "random",
            "condense_pools": (1, 2, 3),
            "condense_rotation": 0.5,
        }
    )
    compact = made("condensed", made_network(0), settings)
    assert compact.features(torch.randn(2, 3, 32, 32)).shape[2:] == (4, 4)
