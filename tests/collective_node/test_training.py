"""Tests of a training: its steps, its learning rate over them, its regularisers, a penalty's proximal steps."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from collective_node.network.expandable_network import ExpandableNetwork
from collective_node.network.growth_steps import add_outputs
from collective_node.random_states import RandomStates
from collective_node.settings import CollectiveSettings
from collective_node.training import FLOOR, fit, one_cycle, rate_of
from collective_node.training_set import TrainingSet
from protocol.learngene.images import CropAndFlip, DeviceImages, Normalisation, autocast
from protocol.learngene.side_by_side import set_worker_count, worker_count
from tests.collective_node.made_evolution import SETTINGS, evolution

PLAIN = CollectiveSettings(batch_size=8, width=0.0625)
EVERYTHING: dict[str, object] = {
    "manifold_mixup": 1.0,
    "rotation": 0.5,
    "rotation_share": 0.4,
    "randaugment": 2,
    "ema": 0.9,
    "schedule": "step",
    "parts": 2,
}


def made_data() -> TrainingSet:
    rng = np.random.default_rng(0)
    pixels, labels = rng.integers(0, 256, (24, 32, 32, 3), dtype=np.uint8), np.arange(24) % 3
    images = DeviceImages.load(pixels, labels, Normalisation.fixed(3), torch.device("cpu"))
    return TrainingSet(images, tuple(torch.arange(label, 24, 3) for label in range(3)), torch.tensor([2, 0, 1]))


def made_network(settings: CollectiveSettings) -> ExpandableNetwork:
    generator = torch.Generator().manual_seed(0)
    network = ExpandableNetwork(
        (4,) * 13, hidden=0, dropout=0, generator=generator, tells_turns=settings.rotation > 0
    ).train()
    add_outputs(network, 3, generator)
    return network.to(memory_format=torch.channels_last)


def fitted(network: nn.Module, settings: CollectiveSettings, **further: object) -> None:
    fit(
        network,
        dict(network.named_parameters()),
        made_data(),
        2.0,
        settings=settings,
        learning_rate=0.05,
        random=RandomStates(3),
        **further,  # type: ignore[arg-type]
    )


def trained(**changes: object) -> tuple[ExpandableNetwork, list[list[Tensor]]]:
    """A network after its training, and the weights before each of its steps."""
    settings = PLAIN.model_copy(update=changes)
    network = made_network(settings)
    path: list[list[Tensor]] = []
    fitted(network, settings, observe=lambda *_: path.append([one.detach().clone() for one in network.parameters()]))
    return network, path


def test_without_regularisers_a_training_is_the_plain_loop_bit_for_bit() -> None:
    found, _ = trained()
    network, data, random = made_network(PLAIN), made_data(), RandomStates(3)
    optimiser = torch.optim.SGD(
        network.parameters(), 0.05, PLAIN.momentum, weight_decay=PLAIN.weight_decay, nesterov=True, fused=True
    )
    criterion = nn.CrossEntropyLoss(label_smoothing=PLAIN.label_smoothing)
    for step, index in enumerate(data.balanced(6, 8, random["batches"])):
        for group in optimiser.param_groups:
            group["lr"] = one_cycle(step, 6, 0.05)
        x, outputs = data.batch(index)
        with autocast(torch.device("cpu")):
            logits = network(CropAndFlip.draw(8, random["augmentation"])(x))
        optimiser.zero_grad()
        criterion(logits.float(), outputs).backward()
        optimiser.step()
    expected = network.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in found.state_dict().items())


@pytest.mark.parametrize(
    "changes",
    [
        {"mixup": 1.0},
        {"manifold_mixup": 1.0},
        {"rotation": 0.5},
        {"rotation": 0.5, "rotation_classes": "upright"},
        {"randaugment": 1},
        {"ema": 0.5},
        {"swa": 0.5},
        {"schedule": "constant"},
        {"schedule": "step"},
    ],
)
def test_every_setting_changes_the_training_from_the_same_first_weights(changes: dict[str, object]) -> None:
    (plain, before), (other, begun) = trained(), trained(**changes)
    convolutions = 3 * len(plain.layers)  # with their two parameters of normalisation
    pairs = zip(before[0][:convolutions], begun[0][:convolutions], strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    weights = [network.layers[5].conv.weight for network in (plain, other)]
    assert not torch.equal(*weights)


def test_with_an_exponential_average_a_training_ends_with_that_of_the_same_steps() -> None:
    plain, path = trained()
    averaged, same = trained(ema=0.4)
    assert all(
        torch.equal(a, b) for one, other in zip(path, same, strict=True) for a, b in zip(one, other, strict=True)
    )
    expected = [value.double() for value in path[0]]
    for step, weights in enumerate([*path[1:], [value.detach() for value in plain.parameters()]]):
        d = min(0.4, (1 + step) / (10 + step))
        expected = [d * a + (1 - d) * w.double() for a, w in zip(expected, weights, strict=True)]
    for found, wanted in zip(averaged.parameters(), expected, strict=True):
        torch.testing.assert_close(found.detach().double(), wanted, rtol=1e-5, atol=1e-6)
    assert not torch.equal(averaged.layers[0].norm.running_mean, plain.layers[0].norm.running_mean)


@pytest.mark.parametrize(
    "changes", [EVERYTHING, {**EVERYTHING, "manifold_mixup": 0.0, "mixup": 0.3, "ema": 0.0, "swa": 0.5}]
)
def test_with_everything_on_the_result_depends_neither_on_the_cores_nor_on_who_else_draws(
    changes: dict[str, object],
) -> None:
    before, ends = worker_count(), []
    try:
        for count in (1, 2):
            set_worker_count(count)
            torch.manual_seed(count)
            ends.append(trained(**changes)[0].state_dict())
    finally:
        set_worker_count(before)
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())


def test_schedules() -> None:
    """All begin with the same rise."""
    cycle = [one_cycle(step, 10, 0.3) for step in range(10)]
    assert [rate_of("one-cycle", step, 10, 0.3) for step in range(10)] == cycle
    assert cycle[1] == pytest.approx(0.3)
    assert [rate_of("constant", step, 10, 0.3) for step in range(10)] == [*cycle[:2], *[0.3] * 8]
    expected = [*cycle[:2], *[0.3] * 4, *[0.03] * 2, *[0.003] * 2]
    assert [rate_of("step", step, 10, 0.3) for step in range(10)] == pytest.approx(expected)


def test_one_cycle_rises_to_the_peak_and_falls_to_the_floor() -> None:
    rates = [one_cycle(step, 100, 0.1) for step in range(100)]
    top = rates.index(max(rates))
    assert max(rates) == pytest.approx(0.1)
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert min(rates) >= 0.1 * FLOOR


@pytest.mark.parametrize("momentum", [0.0, 0.75])
def test_a_penalty_gets_the_rate_over_one_minus_the_momentum_after_each_step(tmp_path: Path, momentum: float) -> None:
    made = evolution(tmp_path / "state")
    collective = made.plan.begin(made.train)
    collective.learn_classes(range(8))
    settings = SETTINGS.model_copy(update={"momentum": momentum})
    sizes: list[float] = []
    steps, _ = fit(
        collective.network,
        dict(collective.network.named_parameters()),
        collective.training_set(collective.known),
        0.5,
        settings=settings,
        learning_rate=0.08,
        random=collective.random,
        proximal=sizes.append,
    )
    assert sizes == [one_cycle(step, steps, 0.08) / (1 - momentum) for step in range(steps)]
