"""Tests of elastic weight consolidation: what is held after tasks, what follows a growth, and what it keeps."""

import copy
from collections.abc import Callable

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from collective_node.ewc import EwcPenalty
from collective_node.network.expandable_network import ExpandableNetwork
from collective_node.network.growth_of_tensors import Growth
from collective_node.network.growth_steps import add_outputs, deepen, widen
from protocol.learngene.fisher import fisher_of_network
from protocol.learngene.network import layers_of


def network(positions: int = 1, outputs: int = 3) -> ExpandableNetwork:
    """A narrow float64 network whose statistics and affine parameters are away from their initial values."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    made = ExpandableNetwork((4, 4, 5, 5), positions=positions, hidden=6, dropout=0.5, generator=generator).double()
    add_outputs(made, outputs, generator)
    for layer in layers_of(made.blocks):
        nn.init.uniform_(layer.norm.weight, 0.5, 1.5)
        nn.init.normal_(layer.norm.bias, std=0.3)
        nn.init.normal_(layer.norm.running_mean, std=0.3)
        nn.init.uniform_(layer.norm.running_var, 0.5, 2)
    nn.init.normal_(made.classifier[-1].weight)
    return made.eval()


def images(seed: int = 1, side: int = 4) -> list[tuple[Tensor, Tensor | None]]:
    """One batch; two max-pools bring the side to a quarter."""
    return [(torch.randn(6, 3, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)), None)]


def exact(made: nn.Module, seed: int = 1, side: int = 4) -> dict[str, Tensor]:
    return fisher_of_network(made, images(seed, side), "exact", torch.Generator())[0]


def after(made: nn.Module, *seeds: int) -> EwcPenalty:
    held = EwcPenalty()
    for seed in seeds:
        held = held.after_task(made, images(seed), "exact", torch.Generator())
    return held


def test_the_diagonals_of_the_tasks_add_up_and_the_anchor_is_the_last_one() -> None:
    made = network()
    first, held = exact(made, 1), after(made, 1)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(1.1)
    second, held = exact(made, 2), held.after_task(made, images(2), "exact", torch.Generator())
    assert set(held.fisher) == {name for name, _ in made.named_parameters()}
    for name, parameter in made.named_parameters():
        torch.testing.assert_close(held.fisher[name], first[name] + second[name], rtol=1e-12, atol=0)
        assert torch.equal(held.anchors[name], parameter)
    assert float(held.of(made)().detach()) == 0


def test_the_diagonal_is_of_the_network_in_evaluation_mode_and_leaves_it_as_it_was() -> None:
    made = network()
    expected = exact(made)
    before = {name: value.clone() for name, value in made.state_dict().items()}
    held = after(made.train(), 1)
    assert all(module.training for module in made.modules())
    assert all(torch.equal(value, before[name]) for name, value in made.state_dict().items())
    assert all(torch.equal(held.fisher[name], value) for name, value in expected.items())


def test_anchors_do_not_move_with_the_network() -> None:
    made = network()
    held = after(made, 1)
    with torch.no_grad():
        made.classifier[-1].bias += 0.5
    expected = 0.5 * 0.25 * float(held.fisher["classifier.7.bias"].sum())
    assert float(held.of(made)().detach()) == pytest.approx(expected, rel=1e-12)
    assert expected > 0


GROWTHS: dict[str, Callable[[ExpandableNetwork], Growth]] = {
    "widen a convolution": lambda made: widen(made, 1, 2, torch.Generator().manual_seed(3)),
    "widen in front of the classifier": lambda made: widen(made, 3, 3, torch.Generator().manual_seed(3)),
    "deepen": lambda made: deepen(made, 1, "identity"),
}


@pytest.mark.parametrize("grow", GROWTHS.values(), ids=GROWTHS.keys())
@pytest.mark.parametrize("positions", [1, 4])
def test_what_follows_a_function_preserving_growth_is_the_diagonal_of_the_grown_network(
    grow: Callable[[ExpandableNetwork], Growth], positions: int
) -> None:
    side = 4 if positions == 1 else 8
    made = network(positions)
    held = EwcPenalty().after_task(made, images(side=side), "exact", torch.Generator())
    held = held.grow(grow(made))
    made.double()  # an inserted layer, too
    grown, values = exact(made, side=side), dict(made.named_parameters())
    inserted = {name for name in grown if name.startswith("blocks.2.")} if len(made.layers) == 5 else set()
    assert set(held.fisher) == set(grown) - inserted
    for name, value in held.fisher.items():
        assert value.max() > 0
        # An inserted layer is the identity to the rounding of its own BatchNorm.
        torch.testing.assert_close(value, grown[name], rtol=1e-6 if inserted else 1e-10, atol=1e-8 * float(value.max()))
        torch.testing.assert_close(held.anchors[name], values[name].detach(), rtol=1e-12, atol=0)
    assert float(held.of(made)().detach()) == pytest.approx(0, abs=1e-20)


def test_new_outputs_are_free_and_old_ones_are_held() -> None:
    made = network()
    held = after(made, 1)
    held = held.grow(add_outputs(made, 2, torch.Generator().manual_seed(3)))
    assert float(held.of(made)().detach()) == 0
    with torch.no_grad():
        made.classifier[-1].weight[3:] += 10
    assert float(held.of(made)().detach()) == 0
    with torch.no_grad():
        made.classifier[-1].weight[:3] += 10
    assert float(held.of(made)().detach()) > 0


def test_a_growth_that_was_not_followed_is_refused() -> None:
    made = network()
    held = after(made, 1)
    widen(made, 1, 2, torch.Generator().manual_seed(3))
    with pytest.raises(ValueError, match=r"blocks\.1\.conv\.weight"):
        held.of(made)
    with pytest.raises(ValueError, match=r"blocks\.1\.conv\.weight"):
        held.after_task(made, images(), "exact", torch.Generator())


def test_it_comes_back_from_a_checkpoint() -> None:
    held = after(network().to(memory_format=torch.channels_last), 1)
    back = EwcPenalty.from_tensors(load(save(held.tensors())))
    for mine, theirs in ((held.anchors, back.anchors), (held.fisher, back.fisher)):
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(value, theirs[name]) for name, value in mine.items())
    assert EwcPenalty.from_tensors({}) == EwcPenalty()
    with pytest.raises(ValueError, match="needs its Fisher"):
        EwcPenalty.from_tensors({"anchor.weight": torch.zeros(1)})


@pytest.mark.parametrize("weight", [1e3, 1e12])
def test_it_keeps_what_an_old_task_needs(weight: float) -> None:
    """Two tasks in a row, the second against the first: with the penalty the first task's answers change less."""
    first, second = network(), images(2)[0][0]
    held = after(first, 1)
    old = images(1)[0][0]
    answers = first(old).detach().softmax(1)

    def change(weight: float) -> float:
        made = copy.deepcopy(first)
        penalty = held.of(made)
        optimiser = torch.optim.SGD(made.parameters(), 0.02, 0.9, nesterov=True)
        for _ in range(60):
            optimiser.zero_grad()
            nn.functional.cross_entropy(made(second), first(second).argmin(1)).backward()
            optimiser.step()
            penalty.proximal_step(0.02 / (1 - 0.9) * weight)
        return float(nn.functional.kl_div(made(old).log_softmax(1).detach(), answers, reduction="batchmean"))

    assert change(weight) < 0.7 * change(0.0)


def test_a_second_head_is_not_held_and_follows_a_growth() -> None:
    """It is no part of the answer whose Fisher information the diagonal is."""
    made = network()
    expected = after(made, 1)
    made.turns = nn.Linear(5, 4).double().eval()
    held = after(made, 1)
    assert held.anchors.keys() == expected.anchors.keys() == held.fisher.keys()
    assert all(torch.equal(held.fisher[name], value) for name, value in expected.fisher.items())
    grown = held.grow(widen(made, 3, 2, torch.Generator().manual_seed(0)))
    assert float(grown.of(made)().detach()) == pytest.approx(0, abs=1e-20)
