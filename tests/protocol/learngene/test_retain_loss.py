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


@pytest.mark.parametrize(("share", "converges"), [(0.95, True), (1.05, False)])
@pytest.mark.parametrize("momentum", [0.5, 0.9])
def test_the_limit_is_where_torchs_gradient_descent_diverges(share: float, converges: bool, momentum: float) -> None:
    rate, fisher = 0.005, 3.0
    weight = share * largest_stable_weight(rate, fisher, momentum)
    theta = torch.ones(1, dtype=torch.float64, requires_grad=True)
    loss = RetainLoss(
        {"theta": theta}, {"theta": torch.zeros(1).double()}, {"theta": torch.full((1,), fisher).double()}
    )
    optimiser = torch.optim.SGD([theta], rate, momentum)
    for _ in range(1000):
        theta.grad = torch.zeros_like(theta)
        loss.add_gradient(weight)
        optimiser.step()
    assert (float(theta.detach().abs()) < 1e-3) == converges


def test_without_curvature_every_weight_is_stable() -> None:
    assert largest_stable_weight(0.1, 0.0, 0.9) == float("inf")


@pytest.mark.parametrize("step", [0.0, 1e-9, 0.3, 50.0, 1e5])
def test_the_proximal_step_is_the_minimum_of_distance_and_loss(step: float) -> None:
    """There the gradient of ``1/2 |theta - now|^2 + step loss`` vanishes; the loss is convex, so it is the minimum."""
    now = parameters(0)
    before = {name: value.detach().clone() for name, value in now.items()}
    loss = RetainLoss(now, parameters(1), squares())
    loss.proximal_step(step)
    gradient = torch.autograd.grad(loss(), list(now.values()))
    for (name, parameter), slope in zip(now.items(), gradient, strict=True):
        torch.testing.assert_close(parameter.detach() - before[name], -step * slope, rtol=1e-9, atol=1e-9)


def test_a_proximal_step_leaves_what_nothing_holds_and_reaches_the_anchor_at_any_weight() -> None:
    theta, fisher = torch.full((4,), 3.0), torch.tensor([0.0, 1e-30, 1.0, 10.0])
    RetainLoss({"w": theta}, {"w": torch.ones(4)}, {"w": fisher}).proximal_step(1e38)  # times 10 it is infinite
    assert theta.tolist() == [3.0, 1.0, 1.0, 1.0]


class Descent:
    """Nesterov's gradient descent on ``1/2 h (theta - 2)^2``, with a penalty anchored at -1."""

    rate, momentum = 0.05, 0.9
    curvature = torch.tensor([0.5, 1.0, 3.0, 3.0, 3.0], dtype=torch.float64)
    fisher = torch.tensor([0.0, 0.2, 0.01, 40.0, 1e4], dtype=torch.float64)

    def __init__(self) -> None:
        self.theta = torch.full((5,), 5.0, dtype=torch.float64, requires_grad=True)
        self.penalty = RetainLoss(
            {"theta": self.theta}, {"theta": torch.full((5,), -1.0).double()}, {"theta": self.fisher}
        )
        self.optimiser = torch.optim.SGD([self.theta], self.rate, self.momentum, nesterov=True)

    def minimum(self, weight: float) -> Tensor:
        """Of ``1/2 h (theta - 2)^2 + weight/2 F (theta + 1)^2``, in closed form."""
        return (2 * self.curvature - weight * self.fisher) / (self.curvature + weight * self.fisher)

    def run(self, weight: float, step: float | None) -> Tensor:
        """Where it comes to; ``step``: of the proximal form, None: the penalty's gradient is added instead."""
        for _ in range(2000):
            self.theta.grad = self.curvature * (self.theta.detach() - 2)
            if step is None:
                self.penalty.add_gradient(weight)
            self.optimiser.step()
            if step is not None:
                self.penalty.proximal_step(step * weight)
        return self.theta.detach()


@pytest.mark.parametrize("weight", [1.0, 1e3, 1e9])
def test_proximal_steps_come_to_the_minimum_at_any_weight_and_gradients_of_the_penalty_diverge(weight: float) -> None:
    found = Descent().run(weight, Descent.rate / (1 - Descent.momentum))
    torch.testing.assert_close(found, Descent().minimum(weight), rtol=1e-6, atol=1e-9)
    # The control: the largest entry is 1e4, far above what this rate can take.
    assert not (Descent().run(weight, None).abs() < 1e6).all()


def test_with_momentum_a_proximal_step_of_the_rate_alone_comes_to_another_point() -> None:
    """The control of the division by one minus the momentum: a penalty of a tenth of the weight is what comes out."""
    found = Descent().run(1.0, Descent.rate)
    torch.testing.assert_close(found, Descent().minimum(1 - Descent.momentum), rtol=1e-6, atol=1e-9)
    assert not torch.allclose(found, Descent().minimum(1.0), rtol=0.01)
