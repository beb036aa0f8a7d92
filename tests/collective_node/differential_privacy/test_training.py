"""DP-SGD: Opacus' gradients against autograd, what clipping bounds, how large the noise is, who takes part."""

import pytest
import torch
from opacus import GradSampleModule
from torch import Tensor, nn

from collective_node.differential_privacy import training
from collective_node.differential_privacy.mechanism import Sampled
from collective_node.differential_privacy.randomness import PrivateRandomness
from collective_node.differential_privacy.training import NoisyOptimiser, train_privately
from collective_node.settings import CollectiveSettings
from protocol.learngene.architecture import Block
from protocol.learngene.network import build_blocks
from tests.collective_node.differential_privacy.test_fisher import CLASSES, IMAGES, data
from tests.collective_node.differential_privacy.test_randomness import source

ROWS = torch.arange(len(IMAGES))
#: A step is one of plain gradient descent, at its peak rate.
PLAIN = CollectiveSettings(momentum=0, label_smoothing=0.1, privacy_learning_rate=1, privacy_batch_size=1)
CLIP = 0.5
EVERYBODY = Sampled(times=1, rate=1, clip=CLIP, noise=1)


def made(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    blocks = build_blocks(
        [
            Block(role="stem", in_channels=3, out_channels=8, pool=True, norm="group"),
            Block(role="top", in_channels=8, out_channels=12, pool=True, norm="group"),
        ]
    )
    return nn.Sequential(*blocks, nn.Flatten(), nn.Linear(12 * 4, CLASSES))


def flat(network: nn.Module) -> Tensor:
    return torch.cat([value.detach().double().flatten() for value in network.parameters()])


def image_gradient(network: nn.Module, row: int) -> Tensor:
    """Of one image's loss, by itself."""
    x, label = IMAGES.batch(torch.tensor([row]))
    loss = nn.functional.cross_entropy(network(x), label, label_smoothing=PLAIN.label_smoothing)
    return torch.cat([value.flatten() for value in torch.autograd.grad(loss, list(network.parameters()))]).double()


def moved(rows: Tensor, sums: Sampled = EVERYBODY, random: PrivateRandomness | None = None) -> Tensor:
    """Where one step goes from the same weights: minus the sum, over a divisor of one."""
    network = made()
    before = flat(network)
    train_privately(network, data(rows), sums, PLAIN, random or PrivateRandomness())
    return flat(network) - before


@pytest.fixture
def noiseless(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PrivateRandomness, "normal", lambda self, shape, deviation: torch.zeros(tuple(shape)).double())


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
def test_each_image_s_gradient_is_its_own() -> None:
    network = made()
    x, labels = IMAGES.batch(ROWS[:5])
    hooked = GradSampleModule(network, loss_reduction="sum")
    loss = nn.functional.cross_entropy(
        hooked(x.contiguous()), labels, reduction="sum", label_smoothing=PLAIN.label_smoothing
    )
    loss.backward()
    found = torch.cat([value.grad_sample.flatten(1) for value in network.parameters()], 1).double()
    for row in range(5):
        torch.testing.assert_close(found[row], image_gradient(made(), row), rtol=1e-3, atol=1e-6)


@pytest.mark.usefixtures("noiseless")
@pytest.mark.parametrize("at_once", [3, 64])
def test_a_step_is_the_sum_of_clipped_gradients(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    monkeypatch.setattr(training, "AT_ONCE", at_once)
    clipped = []
    for row in ROWS.tolist():
        gradient = image_gradient(made(), row)
        clipped.append(gradient * min(1.0, CLIP / float(gradient.norm())))
    torch.testing.assert_close(moved(ROWS), -torch.stack(clipped).sum(0), rtol=1e-3, atol=1e-5)


@pytest.mark.usefixtures("noiseless")
@pytest.mark.parametrize("clip", [CLIP, 1e6])
def test_one_image_more_or_fewer_moves_the_sum_by_the_clip_at_most(clip: float) -> None:
    sums = EVERYBODY.model_copy(update={"clip": clip})
    rows = ROWS
    whole = moved(rows, sums)
    distances = torch.stack([(whole - moved(rows[rows != out], sums)).norm() for out in rows[:6]])
    if clip == CLIP:
        assert float(distances.max()) <= CLIP * (1 + 1e-4)
        assert float(distances.max()) > 0.99 * CLIP  # it is reached: the bound is no accident
    else:
        assert float(distances.max()) > CLIP  # and without clipping, exceeded


def test_the_noise_is_the_multiplier_times_the_clip() -> None:
    """With nobody drawn, a step is noise alone; with everybody, the rest is the sum."""
    sums = EVERYBODY.model_copy(update={"noise": 3.0, "rate": 1e-12})
    alone = moved(ROWS, sums, PrivateRandomness(source()))
    assert float(alone.std()) == pytest.approx(3.0 * CLIP, rel=0.05)
    assert abs(float(alone.mean())) < 5 * 3.0 * CLIP / len(alone) ** 0.5


def test_noise_is_added_in_float64_and_the_sum_rounded_once() -> None:
    network = nn.Linear(400, 50, bias=False)
    parameter = network.weight
    summed = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    noise = PrivateRandomness(source()).normal(parameter.shape, EVERYBODY.noise * CLIP)
    optimiser = NoisyOptimiser(torch.optim.SGD(network.parameters(), 1.0), EVERYBODY, 1, PrivateRandomness(source()))
    parameter.summed_grad = summed
    optimiser.add_noise()
    assert parameter.grad is not None
    assert parameter.grad.dtype == torch.float32
    assert torch.equal(parameter.grad, (summed.double() + noise).float())
    assert not torch.equal(parameter.grad, summed + noise.float())  # two roundings are told from one


def test_the_divisor_is_the_expected_size_whoever_takes_part() -> None:
    sums = EVERYBODY.model_copy(update={"rate": 1e-12})
    settings = PLAIN.model_copy(update={"privacy_batch_size": 10})
    network = made()
    before = flat(network)
    train_privately(network, data(), sums, settings, PrivateRandomness(source()))
    torch.testing.assert_close(
        flat(network) - before, moved(ROWS, sums, PrivateRandomness(source())) / 10, rtol=1e-3, atol=1e-6
    )


def test_every_step_draws_anew_and_every_parameter_is_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[set[int]] = []
    sample = PrivateRandomness.sample

    def recorded(self: PrivateRandomness, rows: Tensor, rate: float) -> Tensor:
        found = sample(self, rows, rate)
        drawn.append(set(found.tolist()))
        return found

    monkeypatch.setattr(PrivateRandomness, "sample", recorded)
    network = made()
    before = [value.detach().clone() for value in network.parameters()]
    random = PrivateRandomness(source())
    trained = train_privately(network, data(ROWS[:15]), Sampled(times=6, rate=0.5, clip=1, noise=0.1), PLAIN, random)
    assert len(drawn) == 6
    assert len({frozenset(one) for one in drawn}) == 6
    assert set().union(*drawn) <= set(range(15))
    assert trained == set(network.parameters())
    for value, old in zip(network.parameters(), before, strict=True):
        assert not torch.equal(value, old)
    assert not hasattr(next(iter(network.parameters())), "grad_sample")  # Opacus leaves nothing behind


def test_a_statistic_or_an_untrained_weight_is_refused() -> None:
    with_statistics = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.LazyLinear(CLASSES))
    with_statistics(IMAGES.batch(ROWS)[0])
    frozen = made()
    next(iter(frozen.parameters())).requires_grad_(False)
    for network in (with_statistics, frozen):
        with pytest.raises(ValueError, match="trained as a whole and keeps no statistics"):
            train_privately(network, data(), EVERYBODY, PLAIN, PrivateRandomness())


def test_it_learns_where_there_is_next_to_no_noise() -> None:
    network = made()
    settings = PLAIN.model_copy(update={"momentum": 0.9, "privacy_batch_size": len(IMAGES)})
    sums = Sampled(times=80, rate=1, clip=1, noise=1e-6)
    train_privately(network, data(), sums, settings, PrivateRandomness())
    x, labels = IMAGES.batch(ROWS)
    assert float((network.eval()(x).argmax(1) == labels).double().mean()) > 0.9
