"""Private Fisher diagonals: each image's part against autograd, what clipping bounds, how large the noise is."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from collective_node.differential_privacy import fisher
from collective_node.differential_privacy.fisher import PrivateFisher, parameters_of, squared_gradients
from collective_node.differential_privacy.randomness import PrivateRandomness
from collective_node.training_set import TrainingSet
from protocol.learngene.architecture import Block, Norm
from protocol.learngene.fisher import fisher_diagonal
from protocol.learngene.images import DeviceImages, Normalisation
from protocol.learngene.learngene import DifferentialPrivacy, Estimator
from protocol.learngene.network import ConvolutionBlock, build_blocks
from tests.collective_node.differential_privacy.test_randomness import source

CLASSES, CLIP = 5, 0.05
GUARANTEE = DifferentialPrivacy(
    epsilon_micro=10**6, delta_exponent=5, relation="add-or-remove", scope="fisher-given-weights"
)


def made(norm: Norm, seed: int = 0) -> tuple[list[ConvolutionBlock], nn.Module]:
    """Blocks away from their initial values and a head, in evaluation mode."""
    torch.manual_seed(seed)
    blocks = build_blocks(
        [
            Block(role="stem", in_channels=3, out_channels=8, pool=True, norm=norm),
            Block(role="top", in_channels=8, out_channels=12, pool=True, norm=norm),
        ]
    )
    for block in blocks:
        assert isinstance(block, ConvolutionBlock)
        nn.init.normal_(block.norm.weight, 1, 0.3)
        nn.init.normal_(block.norm.bias, 0, 0.3)
        if isinstance(block.norm, nn.BatchNorm2d):
            block.norm(torch.randn(16, block.norm.num_features, 4, 4))  # statistics that are not the initial ones
    return list(blocks.eval()), nn.Sequential(nn.Flatten(), nn.Linear(12 * 4, CLASSES)).eval()


def made_images(count: int = 20) -> DeviceImages:
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    return DeviceImages.load(pixels, rng.integers(0, CLASSES, count), Normalisation.fixed(3), torch.device("cpu"))


IMAGES = made_images()
X, LABELS = IMAGES.batch(torch.arange(6))


def data(rows: Tensor | None = None) -> TrainingSet:
    """Some or all of the images; each label is its own output."""
    return TrainingSet(IMAGES, (torch.arange(len(IMAGES)) if rows is None else rows,), torch.arange(CLASSES))


def by_autograd(blocks: list[ConvolutionBlock], head: nn.Module, x: Tensor, label: int) -> dict[str, Tensor]:
    """The squared gradient of one image's log-likelihood."""
    parameters = parameters_of(blocks)
    score = nn.Sequential(*blocks, head)(x[None]).log_softmax(1)[0, label]
    gradients = torch.autograd.grad(score, list(parameters.values()))
    return {name: gradient.double().square() for name, gradient in zip(parameters, gradients, strict=True)}


@pytest.mark.parametrize("norm", ["group", "batch"])
def test_each_image_s_part_is_its_own_squared_gradient(norm: Norm) -> None:
    blocks, head = made(norm)
    found = squared_gradients(blocks, head, X, LABELS, "empirical", PrivateRandomness())
    assert set(found) == set(parameters_of(blocks))
    for number in range(len(X)):
        for name, expected in by_autograd(blocks, head, X[number], int(LABELS[number])).items():
            torch.testing.assert_close(found[name][number], expected, rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize("norm", ["group", "batch"])
@pytest.mark.parametrize("estimator", ["exact", "empirical"])
def test_without_clipping_and_noise_it_is_the_fisher_diagonal(norm: Norm, estimator: Estimator) -> None:
    """Against :mod:`protocol.learngene.fisher`, which never forms an image's gradient."""
    blocks, head = made(norm)
    private = PrivateFisher(1.0, len(IMAGES), 1e6, 1e-15, PrivateRandomness(), GUARANTEE)
    found = private.diagonal(blocks, head, data(), estimator)
    batches = [IMAGES.batch(torch.arange(len(IMAGES)))]
    expected, _ = fisher_diagonal(blocks, head, batches, estimator, torch.Generator())
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-7)


def test_sampled_labels_are_the_model_s() -> None:
    """Over many draws, the mean of the sampled squares is their expectation over the model's labels."""
    blocks, head = made("group")
    random = PrivateRandomness(source())
    x = X[:1].expand(3000, -1, -1, -1)
    sampled = squared_gradients(blocks, head, x, LABELS[:1].expand(3000), "sampled", random)
    exact = squared_gradients(blocks, head, X[:1], LABELS[:1], "exact", random)
    name = "block.1.norm.bias"
    spread = sampled[name].std(0) / 3000**0.5
    assert bool(((sampled[name].mean(0) - exact[name][0]).abs() < 5 * spread + 1e-12).all())


def test_a_network_in_training_mode_is_refused() -> None:
    blocks, head = made("batch")
    blocks[0].train()
    with pytest.raises(ValueError, match="evaluation mode"):
        squared_gradients(blocks, head, X, LABELS, "empirical", PrivateRandomness())


@pytest.fixture
def noiseless(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums without their noise, and with negative entries where there are some: what clipping has to bound."""
    monkeypatch.setattr(PrivateRandomness, "normal", lambda self, shape, deviation: torch.zeros(tuple(shape)).double())


def summed(rows: Tensor, clip: float) -> Tensor:
    """The noiseless sum over these images as one vector; ``empirical``, whose labels are the images' own."""
    blocks, head = made("group")
    private = PrivateFisher(1.0, 1, clip, 1.0, PrivateRandomness(), GUARANTEE)
    found = private.diagonal(blocks, head, data(rows), "empirical")
    return torch.cat([found[name].double().flatten() for name in sorted(found)])


@pytest.mark.usefixtures("noiseless")
@pytest.mark.parametrize("clip", [CLIP, 1e6])
def test_one_image_more_or_fewer_moves_the_sum_by_the_clip_at_most(clip: float) -> None:
    rows = torch.arange(len(IMAGES))
    whole = summed(rows, clip)
    distances = torch.stack([(whole - summed(rows[rows != left_out], clip)).norm() for left_out in rows[:8]])
    if clip == CLIP:
        assert float(distances.max()) <= CLIP * (1 + 1e-5)
        assert float(distances.max()) > 0.99 * CLIP  # it is reached: the bound is no accident
    else:
        assert float(distances.max()) > CLIP  # and without clipping, exceeded


@pytest.mark.usefixtures("noiseless")
def test_an_image_that_is_shorter_than_the_clip_stays_as_it_is() -> None:
    one = summed(torch.tensor([3]), 1e6)
    torch.testing.assert_close(summed(torch.tensor([3]), 2 * float(one.norm())), one)
    torch.testing.assert_close(summed(torch.tensor([3]), float(one.norm()) / 2), one / 2)


def test_the_noise_is_the_multiplier_times_the_clip(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the sum, before it is divided by the number of images; and every entry has its own."""
    asked: list[tuple[tuple[int, ...], float]] = []

    def recorded(self: PrivateRandomness, shape: tuple[int, ...], deviation: float) -> Tensor:
        asked.append((tuple(shape), deviation))
        return torch.full(tuple(shape), 7.0, dtype=torch.float64)

    monkeypatch.setattr(PrivateRandomness, "normal", recorded)
    blocks, head = made("group")
    private = PrivateFisher(0.5, 10, CLIP, 3.0, PrivateRandomness(lambda count: b"\xff" * count), GUARANTEE)
    found = private.diagonal(blocks, head, data(), "empirical")
    assert asked == [(tuple(value.shape), 3.0 * CLIP) for value in parameters_of(blocks).values()]
    # Nobody was sampled: what is left is the noise, divided by the number that was to be expected.
    assert all(bool((value == torch.tensor(0.7)).all()) for value in found.values())


def test_noise_below_zero_is_cut_off() -> None:
    blocks, head = made("group")
    private = PrivateFisher(1e-9, 10, 1.0, 3.0, PrivateRandomness(source()), GUARANTEE)
    found = private.diagonal(blocks, head, data(), "sampled")
    values = torch.cat([value.flatten() for value in found.values()])
    assert float(values.min()) == 0
    assert 0.4 < float((values == 0).double().mean()) < 0.6


def test_the_description_states_clip_and_expected_number() -> None:
    private = PrivateFisher(0.5, 1024, 0.25, 3.0, PrivateRandomness(), GUARANTEE)
    described = private.describe("sampled")
    assert (described.clip_micro, described.samples, described.estimator) == (250_000, 1024, "sampled")


def test_images_are_taken_in_parts_that_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PrivateRandomness, "normal", lambda self, shape, deviation: torch.zeros(tuple(shape)).double())
    rows = torch.arange(len(IMAGES))
    whole = summed(rows, CLIP)
    monkeypatch.setattr(fisher, "AT_ONCE", 3)
    torch.testing.assert_close(summed(rows, CLIP), whole, rtol=1e-5, atol=1e-12)
