"""Tests of the retain loss: Eq. 8, its gradient, and the largest weight with which a step converges."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor

from protocol.learngene.architecture import Architecture, Block, InputContract
from protocol.learngene.learngene import FisherDescription, Learngene
from protocol.learngene.network import block_tensors, build_blocks, layers_of, load_blocks
from protocol.learngene.retain_loss import RetainLoss, largest_stable_weight


def parameters(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"conv": (4, 3, 3, 3), "bias": (5,)}
    return {
        name: torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
        for name, shape in shapes.items()
    }


def squares(seed: int = 9) -> dict[str, Tensor]:
    return {name: value.detach().square() for name, value in parameters(seed).items()}


def test_it_is_equation_8() -> None:
    now, then, fisher = parameters(0), parameters(1), squares()
    expected = 0.0
    for name in now:
        entries = (tensors[name].flatten().tolist() for tensors in (now, then, fisher))
        expected += sum(0.5 * f * (a - b) ** 2 for a, b, f in zip(*entries, strict=True))
    assert float(RetainLoss(now, then, fisher)().detach()) == pytest.approx(expected, rel=1e-12)


def test_it_is_zero_where_it_is_anchored_and_sees_what_is_changed_later() -> None:
    now = parameters()
    loss = RetainLoss.anchored(now, squares())
    assert float(loss().detach()) == 0
    with torch.no_grad():
        now["bias"] += 1
    assert float(loss().detach()) == pytest.approx(float(0.5 * squares()["bias"].sum()), rel=1e-12)


def test_the_closed_form_is_the_gradient_of_automatic_differentiation() -> None:
    now = parameters(0)
    loss = RetainLoss(now, parameters(1), squares())
    expected = torch.autograd.grad(7.0 * loss(), list(now.values()))
    for parameter in now.values():
        parameter.grad = torch.ones_like(parameter)
    loss.add_gradient(7.0)
    for parameter, gradient in zip(now.values(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient + 1, rtol=1e-12, atol=1e-12)


def test_the_diagonal_can_be_taken_anew_while_the_anchors_stay() -> None:
    """As in Algorithm 1, where the individual takes it each epoch."""
    now = parameters(0)
    loss = RetainLoss(now, parameters(1), squares())
    twice = dataclasses.replace(loss, fisher={name: 2 * value for name, value in loss.fisher.items()})
    assert float(twice().detach()) == pytest.approx(2 * float(loss().detach()), rel=1e-12)


def test_each_of_several_networks_is_held_at_the_learngene() -> None:
    blocks = (
        Block(role="stem", in_channels=3, out_channels=2, pool=False),
        Block(role="top", in_channels=2, out_channels=2, pool=True),
    )
    architecture = Architecture(form="condensed", input=InputContract(height=8, width=8, channels=3), blocks=blocks)
    rng = np.random.default_rng(0)
    tensors = {
        name: rng.uniform(0.5, 1.5, shape).astype(np.float32)
        for name, (_, shape) in architecture.tensors(fisher=True).items()
    }
    described = FisherDescription(source="collective", estimator="exact", samples=1024, clip_micro=0)
    gene = Learngene(architecture, tensors, described)
    inherited = layers_of(build_blocks(blocks, networks=3))
    load_blocks(inherited, gene.tensors)
    loss = RetainLoss.of(inherited, gene)
    assert float(loss().detach()) == 0
    assert set(loss.parameters) == {name.removeprefix("fisher.") for name in tensors if name.startswith("fisher.")}
    with torch.no_grad():
        for name, tensor in block_tensors(inherited).items():
            if name in loss.parameters:
                tensor.chunk(3)[1].add_(0.5)  # the second network alone
    expected = sum(0.5 * 0.25 * float(t.sum()) for name, t in tensors.items() if name.startswith("fisher."))
    assert float(loss().detach()) == pytest.approx(expected, rel=1e-5)


def test_what_does_not_belong_together_is_refused() -> None:
    now, fisher = parameters(), squares()
    with pytest.raises(ValueError, match="different names"):
        RetainLoss.anchored(now, {"bias": fisher["bias"]})
    with pytest.raises(ValueError, match=r"bias: the parameter is \(5,\), its Fisher diagonal \(4,\)"):
        RetainLoss.anchored(now, {**fisher, "bias": fisher["bias"][:4]})


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize(("share", "converges"), [(0.95, True), (1.05, False)])
@pytest.mark.parametrize("momentum", [0.5, 0.9])
def test_the_limit_is_where_torchs_gradient_descent_diverges(
    share: float, converges: bool, momentum: float, nesterov: bool
) -> None:
    rate, fisher = 0.005, 3.0
    weight = share * largest_stable_weight(rate, fisher, momentum, nesterov=nesterov)
    theta = torch.ones(1, dtype=torch.float64, requires_grad=True)
    loss = RetainLoss(
        {"theta": theta}, {"theta": torch.zeros(1).double()}, {"theta": torch.full((1,), fisher).double()}
    )
    optimiser = torch.optim.SGD([theta], rate, momentum, nesterov=nesterov)
    for _ in range(1000):
        theta.grad = torch.zeros_like(theta)
        loss.add_gradient(weight)
        optimiser.step()
    assert (float(theta.detach().abs()) < 1e-3) == converges


def test_without_curvature_every_weight_is_stable() -> None:
    assert largest_stable_weight(0.1, 0.0, 0.9) == float("inf")
