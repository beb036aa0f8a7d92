"""Tests of adaptation: Eq. 8 and 9, and that every target task starts afresh and trains as if it were alone."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from individual_node.adaptation import (
    RetainLoss,
    adapt,
    choose_retain,
    largest_stable_retain,
    side_by_side,
    task_generator,
)
from individual_node.adaptation import test_accuracy as accuracy_on_test_images
from individual_node.methods import Evaluation
from individual_node.reconstruction import IndividualNetworks, light_blocks, reconstruct
from individual_node.settings import IndividualSettings, Method
from individual_node.target_tasks import PrivateImages, TargetTask
from protocol.architecture import Architecture, Block, Form, InputContract
from protocol.errors import InputError
from protocol.events import Events
from protocol.images import DeviceImages, Normalisation
from protocol.learngene import FisherDescription, Learngene
from protocol.network import block_tensors

CPU = torch.device("cpu")
SHOTS, WAYS = 4, 3


def learngene(form: Form = "condensed", *, fisher: float = 0.5) -> Learngene:
    """A small learngene with random weights and a Fisher diagonal up to ``fisher``."""
    rng = np.random.default_rng(0)
    stem = [Block(role="stem", in_channels=3, out_channels=8, pool=True)]
    top = [
        Block(role="top", in_channels=8, out_channels=8, pool=False),
        Block(role="top", in_channels=8, out_channels=8, pool=True),
    ]
    architecture = Architecture(
        form=form,
        input=InputContract(height=16, width=16, channels=3),
        blocks=tuple(stem + top) if form == "condensed" else tuple(top),
    )
    tensors = {
        name: (
            rng.uniform(0, fisher, shape)
            if role == "fisher"
            else rng.uniform(0.5, 1.5, shape)
            if name.endswith(("norm.weight", "running_var", "std"))
            else rng.normal(0, 0.3, shape)
        ).astype(np.float32)
        for name, (role, shape) in architecture.tensors(fisher=True).items()
    }
    described = FisherDescription(source="collective", estimator="sampled", samples=1024, clip_micro=0)
    return Learngene(architecture, tensors, described)


def images(count: int = 60) -> DeviceImages:
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)
    return DeviceImages.load(pixels, np.zeros(count, np.int64), Normalisation.of(pixels), CPU)


def task(number: int) -> TargetTask:
    rng = np.random.default_rng(number)
    rows = rng.permutation(60)
    labels = np.repeat(np.arange(WAYS), SHOTS)
    return TargetTask(number, WAYS, rows[: len(labels)], labels, rows[20:50], rng.integers(0, WAYS, 30))


def generators(*numbers: int) -> list[torch.Generator]:
    return [task_generator(0, "test", SHOTS, number) for number in numbers]


def trained(numbers: tuple[int, ...], *, retain: float, inherits: bool = True, epochs: int = 2) -> IndividualNetworks:
    gene = learngene()
    return adapt(
        gene.architecture,
        gene if inherits else None,
        [task(number) for number in numbers],
        images(),
        IndividualSettings(epochs=epochs, batch_size=8),
        generators(*numbers),
        learning_rate=0.01,
        retain=retain,
    )


def parameters_of(model: IndividualNetworks, index: int) -> list[torch.Tensor]:
    return [p.detach().chunk(model.networks)[index] for p in model.parameters()]


@pytest.fixture(autouse=True)
def _float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """bfloat16 would hide small differences."""
    monkeypatch.setattr("protocol.images.bfloat16_is_fast", lambda device: False)


@pytest.mark.parametrize("form", ["condensed", "paper"])
def test_the_network_is_built_from_the_learngenes_own_description(form: Form) -> None:
    gene = learngene(form)
    model = reconstruct(gene.architecture, gene, ways=WAYS, generators=generators(0, 1))
    own = len(light_blocks(gene.architecture))
    assert own == (0 if form == "condensed" else 4)
    assert len(model.blocks) == own + len(gene.architecture.blocks)
    for name, tensor in block_tensors(model.inherited).items():
        for part in tensor.chunk(2):
            np.testing.assert_array_equal(part.detach().numpy(), gene.tensors[name])
    assert model(torch.randn(4, 2 * 3, 16, 16)).shape == (4, 2, WAYS)


def test_side_by_side_is_one_network_per_block_of_channels() -> None:
    x = torch.randn(6, 3, 5, 5)
    joined = side_by_side(x, 2)
    assert joined.shape == (3, 6, 5, 5)
    assert joined.is_contiguous(memory_format=torch.channels_last)
    for n in range(3):
        for network in range(2):
            torch.testing.assert_close(joined[n, 3 * network : 3 * network + 3], x[2 * n + network])


def test_a_task_trains_beside_others_as_it_would_alone() -> None:
    together, alone = trained((3, 4, 5), retain=1.0), trained((4,), retain=1.0)
    for joint, single in zip(parameters_of(together, 1), parameters_of(alone, 0), strict=True):
        torch.testing.assert_close(joint, single, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("method", ["condensed", "condensed-eq9", "scratch", "floor"])
def test_every_target_task_starts_afresh(method: Method, tmp_path: Path) -> None:
    """A task ends the same whatever was solved before it, and the learngene stays as it was inherited."""
    gene, untouched = learngene(), learngene()
    pixels = images().pixels.numpy()

    def accuracies(*numbers: int) -> dict[int, float]:
        own = PrivateImages(pixels, pixels, {SHOTS: [task(number) for number in numbers]})
        settings = IndividualSettings(epochs=3, networks_at_once=1, patches=20)
        return (
            Evaluation({"condensed": gene}, own, settings, 0, CPU, Events(tmp_path / "events"))
            .run(method, SHOTS)
            .accuracy
        )

    together = accuracies(0, 1, 2)
    assert [accuracies(number)[number] for number in (0, 1, 2)] == [together[number] for number in (0, 1, 2)]
    assert all(np.array_equal(tensor, untouched.tensors[name]) for name, tensor in gene.tensors.items())


def test_the_initial_weights_of_a_task_depend_on_the_task_alone() -> None:
    gene = learngene()
    first = reconstruct(gene.architecture, gene, ways=WAYS, generators=generators(0, 1, 2))
    again = reconstruct(gene.architecture, gene, ways=WAYS, generators=generators(2, 1))
    for a, b in ((0, 2), (1, 1)):
        for one, other in zip(parameters_of(again, a), parameters_of(first, b), strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize(("pools", "side"), [(1, 32), (3, 32), (5, 32)])
def test_the_light_layers_leave_a_map_for_the_inherited_ones(pools: int, side: int) -> None:
    top = tuple(Block(role="top", in_channels=8, out_channels=8, pool=number < pools) for number in range(6))
    contract = InputContract(height=side, width=side, channels=3)
    architecture = Architecture(form="paper", input=contract, blocks=top)
    model = reconstruct(architecture, None, ways=WAYS, generators=generators(0))
    assert model(torch.randn(2, 3, side, side)).shape == (2, 1, WAYS)


def test_different_tasks_start_from_different_own_layers() -> None:
    gene = learngene()
    model = reconstruct(gene.architecture, gene, ways=WAYS, generators=generators(0, 1))
    assert not torch.equal(*model.classifier[0].weight.chunk(2))


def test_the_retain_loss_is_equation_8() -> None:
    gene = learngene()
    model = reconstruct(gene.architecture, gene, ways=WAYS, generators=generators(0))
    loss = RetainLoss.of(model.inherited, gene)
    assert float(loss().detach()) == 0
    expected = 0.0
    rng = np.random.default_rng(5)
    for name, tensor in block_tensors(model.inherited).items():
        if not tensor.requires_grad:
            continue
        change = rng.normal(0, 0.1, tensor.shape).astype(np.float32)
        with torch.no_grad():
            tensor += torch.from_numpy(change)
        expected += 0.5 * float(
            (gene.tensors[f"fisher.{name}"].astype(np.float64) * change.astype(np.float64) ** 2).sum()
        )
    assert float(loss().detach()) == pytest.approx(expected, rel=1e-5)


def test_the_retain_loss_acts_on_the_inherited_layers_only_and_is_above_zero_after_a_step() -> None:
    gene = learngene("paper")
    model = reconstruct(gene.architecture, gene, ways=WAYS, generators=generators(0))
    loss = RetainLoss.of(model.inherited, gene)
    optimiser = torch.optim.SGD(model.parameters(), 0.05)
    logits = model.train()(torch.randn(9, 3, 16, 16))
    nn.functional.cross_entropy(logits[:, 0], torch.arange(9) % WAYS).backward()
    optimiser.step()
    assert float(loss().detach()) > 0
    optimiser.zero_grad(set_to_none=True)
    loss().backward()
    inherited = {id(p) for block in model.inherited for p in block.parameters()}
    for parameter in model.parameters():
        assert (parameter.grad is not None) == (id(parameter) in inherited)


def test_the_gradient_of_the_retain_loss_is_that_of_automatic_differentiation() -> None:
    gene = learngene()
    model = reconstruct(gene.architecture, gene, ways=WAYS, generators=generators(0, 1))
    loss = RetainLoss.of(model.inherited, gene)
    with torch.no_grad():
        for parameter in loss.parameters:
            parameter += 0.1 * torch.randn_like(parameter)
    expected = torch.autograd.grad(7.0 * loss(), loss.parameters)
    for parameter in loss.parameters:
        parameter.grad = torch.ones_like(parameter)
    loss.add_gradient(7.0)
    for parameter, gradient in zip(loss.parameters, expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient + 1)


def test_a_larger_lambda_keeps_the_inherited_layers_closer() -> None:
    gene = learngene()
    distance = []
    for retain in (0.0, 200.0):
        model = trained((0,), retain=retain, epochs=5)
        change = {
            name: tensor.detach() - torch.from_numpy(gene.tensors[name])
            for name, tensor in block_tensors(model.inherited).items()
            if tensor.requires_grad
        }
        distance.append(
            sum(float((torch.from_numpy(gene.tensors[f"fisher.{n}"]) * d.square()).sum()) for n, d in change.items())
        )
    assert distance[1] < 0.5 * distance[0]


def test_from_scratch_inherits_nothing() -> None:
    gene = learngene()
    model = reconstruct(gene.architecture, None, ways=WAYS, generators=generators(0))
    for name, tensor in block_tensors(model.inherited).items():
        if name.endswith("conv.weight"):
            assert not np.allclose(tensor.detach().numpy(), gene.tensors[name])


def test_a_lambda_that_must_diverge_is_refused_and_the_stable_one_is_named() -> None:
    settings = IndividualSettings(learning_rate=0.005, retain=1000)
    assert choose_retain(learngene(fisher=0.75), settings) == 1000
    gene = learngene(fisher=2.0)
    largest = max(float(t.max()) for n, t in gene.tensors.items() if n.startswith("fisher"))
    with pytest.raises(InputError, match=f"at most {3.8 / 0.005 / largest:.3g}"):
        choose_retain(gene, settings)


def test_without_a_lambda_it_is_the_papers_or_half_of_what_is_stable() -> None:
    settings = IndividualSettings(learning_rate=0.005)
    assert choose_retain(learngene(fisher=0.1), settings) == 1000
    gene = learngene(fisher=8.0)
    largest = max(float(t.max()) for n, t in gene.tensors.items() if n.startswith("fisher"))
    assert choose_retain(gene, settings) == pytest.approx(1.9 / 0.005 / largest)


@pytest.mark.parametrize(("share", "converges"), [(0.95, True), (1.05, False)])
def test_the_limit_is_where_gradient_descent_with_momentum_diverges(share: float, converges: bool) -> None:
    rate, momentum = 0.005, 0.9
    curvature = share * largest_stable_retain(rate, 1.0, momentum)
    theta = torch.ones(1, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.SGD([theta], rate, momentum)
    for _ in range(2000):
        optimiser.zero_grad()
        (0.5 * curvature * theta.square()).sum().backward()
        optimiser.step()
    assert (float(theta.detach().abs()) < 1e-3) == converges


def test_test_images_do_not_change_the_network() -> None:
    model = trained((0, 1), retain=0.0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    accuracy_on_test_images(model, [task(0), task(1)], images())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_accuracy_is_counted_per_task() -> None:
    model = trained((0, 1), retain=0.0)
    found = accuracy_on_test_images(model, [task(0), task(1)], images())
    data = images()
    for index, number in enumerate((0, 1)):
        x, _ = data.batch(torch.from_numpy(task(number).test))
        joint = torch.cat([x, x], 1)
        predicted = model(joint)[:, index].argmax(1).numpy()
        assert found[index] == pytest.approx((predicted == task(number).test_labels).mean() * 100)


def test_a_learngene_without_a_fisher_diagonal_cannot_be_retained() -> None:
    gene = learngene()
    bare = Learngene(gene.architecture, {n: t for n, t in gene.tensors.items() if not n.startswith("fisher")}, None)
    with pytest.raises(InputError, match="Fisher"):
        choose_retain(bare, IndividualSettings())
