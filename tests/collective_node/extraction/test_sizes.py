"""Sizes of a learngene: the smaller networks in a compact one, what trains them, and what becomes of them."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from collective_node import weight_averaging
from collective_node.batch_gradient import BatchGradient
from collective_node.extraction.condensing import condense, recipe_of
from collective_node.extraction.extraction import check_sizes, learngene_of
from collective_node.mixing import Mix
from collective_node.network.compact_network import Blueprint, CompactNetwork, blueprint_for
from collective_node.network.expandable_network import ExpandableNetwork
from collective_node.network.growth_steps import add_outputs
from collective_node.objectives import Batch, CrossEntropy, Sandwich, soft_label_loss
from collective_node.random_states import RandomStates
from collective_node.settings import CollectiveSettings
from collective_node.training_set import TrainingSet
from protocol.errors import InputError
from protocol.learngene.architecture import CompactForm, SizeName, sized_blocks
from protocol.learngene.images import DeviceImages, Normalisation
from protocol.learngene.learngene import Learngene
from protocol.learngene.sizes import descend
from tests.protocol.learngene.forward import features

SIZES: tuple[SizeName, ...] = ("x0.5", "x0.35", "x0.5-shallow", "x0.7")
IN_ORDER: tuple[SizeName, ...] = ("x0.5-shallow", "x0.35", "x0.5", "x0.7")
SETTINGS = CollectiveSettings(
    width=0.0625,
    batch_size=16,
    condense_budget="0.25M",
    condense_pools=(1, 2, 3, 4),
    condense_sizes=SIZES,
    condense_learning_rate=0.05,
    fisher_samples=20,
    label_smoothing=0.0,
)
CLASSES = 4
WIDTHS = (4, 4, 4, 4, 8, 8, 8, 16, 16, 16, 16, 16, 16)
X = torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True, scope="module")
def few_statistics() -> Iterator[None]:
    """BatchNorm statistics from 2 batches instead of 40, of a narrow network."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weight_averaging, "STATISTICS_BATCHES", 2)
        patch.setattr("collective_node.settings.BUDGETS", {"0.25M": 150_000})
        yield


def made_data() -> TrainingSet:
    """Images of one colour each, with noise: easy to learn."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(CLASSES), 12)
    base = rng.integers(0, 200, (CLASSES, 1, 1, 3))
    pixels = (base[labels] + rng.integers(0, 56, (len(labels), 16, 16, 3))).astype(np.uint8)
    images = DeviceImages.load(pixels, labels, Normalisation.of(pixels), torch.device("cpu"))
    rows = tuple(torch.nonzero(images.labels == label)[:, 0] for label in range(CLASSES))
    return TrainingSet(images, rows, torch.arange(CLASSES))


DATA = made_data()


def made_collective() -> ExpandableNetwork:
    generator = torch.Generator().manual_seed(0)
    network = ExpandableNetwork(WIDTHS, hidden=16, dropout=0, generator=generator)
    add_outputs(network, CLASSES, generator)
    return network


COLLECTIVE = made_collective()


def trained(
    epochs: float = 0.4,
    settings: CollectiveSettings = SETTINGS,
    form: CompactForm = "condensed",
    size: SizeName | None = None,
) -> CompactNetwork:
    return condense(COLLECTIVE, 3, DATA, recipe_of(form, settings), epochs, settings, RandomStates(1), size=size)


@pytest.fixture(scope="module")
def taught() -> CompactNetwork:
    return trained(epochs=12)


def accuracy(network: nn.Module) -> float:
    with torch.no_grad():
        x, outputs = DATA.batch(DATA.every_row)
        return float((network(x).argmax(1) == outputs).float().mean())


def smaller(network: CompactNetwork) -> dict[SizeName, CompactNetwork]:
    return {size: network.smaller(number) for number, size in enumerate(network.sizes)}


def test_each_size_learns(taught: CompactNetwork) -> None:
    assert taught.sizes == IN_ORDER
    found = smaller(taught)
    own = {size: accuracy(network) for size, network in found.items()}
    assert accuracy(taught) > 0.9
    assert min(own.values()) > 0.7  # 0.25 by chance
    # The control: the same slices with the first of the whole's own statistics are of little use.
    for size, network in found.items():
        for layer, index in zip(network.layers, sized_blocks(taught.describe(), size), strict=True):
            state, count = taught.layers[index].norm.state_dict(), layer.conv.out_channels
            layer.norm.load_state_dict({name: v if v.ndim == 0 else v[:count] for name, v in state.items()})
    assert sum(map(accuracy, found.values())) < sum(own.values()) - 1


@pytest.mark.parametrize("number", range(len(SIZES)))
def test_a_smaller_network_by_itself_is_the_one_inside(taught: CompactNetwork, number: int) -> None:
    with torch.no_grad():
        inside = taught.logits_of(X, number)
        torch.testing.assert_close(taught.smaller(number)(X), inside, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(inside, taught(X), atol=1e-2)


def learngene(network: CompactNetwork, form: CompactForm = "condensed", **sizes: CompactNetwork) -> Learngene:
    found = sizes or smaller(network)
    ordered = {size: found[size] for size in IN_ORDER if size in found}
    return learngene_of(
        form, COLLECTIVE, network, range(10, 13), DATA, SETTINGS, torch.Generator().manual_seed(0), sizes=ordered
    )


def test_an_individual_descends_to_the_networks_that_the_collective_trained(taught: CompactNetwork) -> None:
    whole = learngene(taught)
    assert whole.architecture.sizes == IN_ORDER
    assert whole.architecture.size_weights == "nested"
    with torch.no_grad():
        torch.testing.assert_close(features(descend(whole, "full"), X), taught.features(X))
        for size, network in smaller(taught).items():
            torch.testing.assert_close(features(descend(whole, size), X), network.features(X))


def test_the_settings_say_how_the_blob_holds_it(taught: CompactNetwork) -> None:
    for dtype in ("float32", "bfloat16"):
        settings = SETTINGS.model_copy(update={"blob_dtype": dtype})
        found = learngene_of(
            "condensed", COLLECTIVE, taught, range(10, 13), DATA, settings, torch.Generator().manual_seed(0)
        )
        assert found.architecture.dtype == dtype
        assert found.architecture.sizes == ()


def test_direct_has_a_network_of_each_size_trained_by_itself() -> None:
    network = trained(form="direct")
    assert network.sizes == ()
    alone: dict[str, CompactNetwork] = {size: trained(form="direct", size=size) for size in IN_ORDER}
    whole = learngene(network, "direct", **alone)
    assert whole.architecture.size_weights == "own"
    with torch.no_grad():
        for size in IN_ORDER:
            small = descend(whole, size)
            torch.testing.assert_close(features(small, X), alone[size].features(X))
            # As many weights as the nested one, and none of the whole's.
            assert small.architecture.parameters == whole.architecture.of_size(size).parameters
            kernel = small.tensors["block.0.conv.weight"]
            first = network.layers[0].conv.weight.numpy()[: kernel.shape[0], : kernel.shape[1]]
            assert not np.array_equal(kernel, first)


def test_without_sizes_nothing_changes_and_with_them_the_whole_is_another_one() -> None:
    plain = SETTINGS.model_copy(update={"condense_sizes": ()})
    before, after = trained(settings=plain), trained()
    assert before.sizes == ()
    assert set(before.state_dict()) == {name for name in after.state_dict() if not name.startswith("size_norms")}
    assert not torch.equal(before.layers[0].conv.weight, after.layers[0].conv.weight)
    # ``direct`` has no use for them in its own network.
    assert torch.equal(trained(form="direct").layers[0].conv.weight, before.layers[0].conv.weight)


def first_norm(network: CompactNetwork, number: int) -> nn.BatchNorm2d:
    norms = network.size_norms[number]
    assert isinstance(norms, nn.ModuleList)
    found = norms[0]
    assert isinstance(found, nn.BatchNorm2d)
    return found


def batch(start: int = 0) -> Batch:
    rows = torch.arange(start, 48, 5)
    x, outputs = DATA.batch(rows)
    return Batch(x, outputs, rows, torch.zeros(len(rows), dtype=torch.bool))


@pytest.mark.parametrize("share", [1.0, 0.5, 0.0])
def test_a_step_teaches_the_whole_the_smallest_and_one_between(share: float) -> None:
    network = trained().train()
    before = network.state_dict()
    drawn = set()
    for start in range(6):
        network.zero_grad(set_to_none=True)
        network.load_state_dict(before)
        found = Sandwich(CrossEntropy(0.1), share, 0.1)(network, batch(start))
        found.backward()
        looked_at = [number for number in range(4) if first_norm(network, number).weight.grad is not None]
        assert looked_at[0] == 0
        assert len(looked_at) == 2
        drawn.add(looked_at[1])
        with torch.no_grad():
            x, outputs, *_ = batch(start)
            total = CrossEntropy(0.1)(network, batch(start))
            for number in looked_at:
                small = network.logits_of(x, number)
                total += share * soft_label_loss(small, network(x), 1.0)
                total += (1 - share) * nn.functional.cross_entropy(small, outputs, label_smoothing=0.1)
        torch.testing.assert_close(found.detach(), total / 3)
    assert drawn == {1, 2, 3}


def test_the_smaller_ones_teach_the_whole_nothing_through_their_teacher() -> None:
    """The whole's logits are a target, no variable: where the smaller ones share nothing, its gradient is its own."""
    network = trained().train()
    output = list(network.classifier.modules())[-1]
    assert isinstance(output, nn.Linear)
    beyond = network.layers[-1].conv.out_channels * 7 // 10  # positions of channels that no smaller one has

    def gradient(objective: CrossEntropy | Sandwich) -> Tensor:
        network.zero_grad(set_to_none=True)
        objective(network, batch()).backward()
        assert output.weight.grad is not None
        return output.weight.grad.clone()

    plain, all_at_once = gradient(CrossEntropy()), 3 * gradient(Sandwich(CrossEntropy()))
    torch.testing.assert_close(all_at_once[:, beyond:], plain[:, beyond:])
    assert not torch.allclose(all_at_once[:, :beyond], plain[:, :beyond])


def test_images_that_are_not_what_their_labels_say_teach_the_smaller_ones_what_fits_them() -> None:
    """Mixed or turned images: the whole's soft labels alone. Where features were mixed, the labels alone."""
    network = trained().train()
    plain = batch()
    partners = torch.arange(len(plain.rows)).flip(0)
    mixed, inside = (plain._replace(mix=Mix(0.6, partners, layer)) for layer in (0, 1))
    turned = plain._replace(turns=torch.zeros(len(plain.rows), dtype=torch.int64))

    def value(given: Batch, share: float) -> Tensor:
        with torch.no_grad():
            return Sandwich(CrossEntropy(), share)(network, given)

    for given in (mixed, inside, turned):
        assert torch.equal(value(given, 0.0), value(given, 1.0))
    assert not torch.equal(value(plain, 0.0), value(plain, 1.0))
    assert torch.equal(value(turned, 0.0), value(plain, 1.0))
    with torch.no_grad():
        whole = [CrossEntropy()(network, given) for given in (inside, plain)]
    torch.testing.assert_close(value(inside, 0.0) - whole[0] / 3, value(plain, 0.0) - whole[1] / 3)


def test_parts_of_a_batch_that_draw_other_sizes_lose_no_gradient() -> None:
    network = trained().train()
    random = RandomStates(1)
    index = torch.arange(48)
    with BatchGradient(network, DATA, 4, Sandwich(CrossEntropy()), random) as gradient:
        gradient(index)
    cuts = index.tensor_split(4)
    for number in (1, 2, 3):
        drawn = any(1 + int(cut.sum()) % 3 == number for cut in cuts)
        assert (first_norm(network, number).weight.grad is not None) == drawn


def test_sizes_that_do_not_fit_are_refused_before_the_training() -> None:
    planned = blueprint_for(60_000, channels=3, top=3, pools=(1, 2, 3, 4))
    check_sizes(planned, SETTINGS, (16, 16, 3))
    tiny = blueprint_for(300, channels=3, top=3, pools=(1, 2, 3, 4))
    with pytest.raises(InputError, match="condense_sizes"):
        check_sizes(tiny, SETTINGS.model_copy(update={"condense_sizes": ("x0.125", "x0.25")}), (16, 16, 3))
    nothing_to_leave_out = Blueprint(planned.stem, planned.top[-1:])
    shallow = SETTINGS.model_copy(update={"condense_sizes": ("x1-shallow",)})
    with pytest.raises(InputError, match="condense_sizes"):
        check_sizes(nothing_to_leave_out, shallow, (16, 16, 3))
    many = SETTINGS.model_copy(
        update={"condense_sizes": ("x0.25", "x0.35", "x0.5", "x0.6", "x0.7", "x0.85"), "forms": ("direct",)}
    )
    with pytest.raises(InputError, match="tensors"):
        check_sizes(planned, many, (16, 16, 3))


@pytest.mark.parametrize(
    "fields",
    [
        {"condense_sizes": ("x0.5", "x0.5")},
        {"condense_sizes": ("half",)},
        {"condense_sizes": ("full",)},
        {"condense_sizes": ("x0.5",), "condense_frozen": True},
        {"condense_sizes": ("x0.5",), "privacy_epsilon": 8.0, "forms": ("condensed",), "cycles": 0},
    ],
)
def test_settings_that_cannot_be_trained_are_refused(fields: dict[str, object]) -> None:
    sound: dict[str, object] = {"condense_start": "collective", "condense_budget": "own"}
    CollectiveSettings.model_validate(sound | {"condense_sizes": ("x0.5",)})
    CollectiveSettings.model_validate(sound | fields | {"condense_sizes": ()})
    with pytest.raises(ValueError, match=r"size"):
        CollectiveSettings.model_validate(sound | fields)
