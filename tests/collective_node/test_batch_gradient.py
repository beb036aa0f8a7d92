"""The gradient of a batch from its parts: that of ghost batches one after the other, on any number of cores."""

import copy
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from collective_node.batch_gradient import BatchGradient
from collective_node.network.dropout import Dropout
from collective_node.objectives import CrossEntropy
from collective_node.random_states import RandomStates
from collective_node.training_set import TrainingSet
from protocol.learngene.images import CropAndFlip, DeviceImages, Normalisation, autocast
from protocol.learngene.network import ConvolutionBlock
from protocol.learngene.side_by_side import set_worker_count, worker_count

ROWS = torch.arange(12)


@pytest.fixture(autouse=True, params=[1, 2])
def _workers(request: pytest.FixtureRequest) -> Iterator[None]:
    before, threads = worker_count(), torch.get_num_threads()
    set_worker_count(request.param)
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    set_worker_count(before)


def made(dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(0)
    network = nn.Sequential(ConvolutionBlock(3, 4, pool=True), nn.Flatten(), Dropout(dropout), nn.Linear(4 * 8 * 8, 3))
    return network.to(memory_format=torch.channels_last).train()


def data() -> TrainingSet:
    rng = np.random.default_rng(0)
    pixels, labels = rng.integers(0, 256, (12, 16, 16, 3), dtype=np.uint8), np.arange(12) % 3
    images = DeviceImages.load(pixels, labels, Normalisation.fixed(3), torch.device("cpu"))
    return TrainingSet(images, tuple(torch.arange(label, 12, 3) for label in range(3)), torch.tensor([2, 0, 1]))


def gradients(network: nn.Module) -> list[Tensor]:
    return [parameter.grad.clone() for parameter in network.parameters() if parameter.grad is not None]


def one_after_the_other(network: nn.Module, parts: int) -> tuple[list[Tensor], float, list[nn.Module]]:
    """The definition, written out: each part through a copy of its own, gradients weighted by the parts' sizes."""
    training_set, criterion = data(), nn.CrossEntropyLoss()
    draw = CropAndFlip.draw(12, RandomStates(0)["augmentation"])
    total = [torch.zeros_like(parameter) for parameter in network.parameters()]
    mean, copies, begin = 0.0, [], 0
    for rows in ROWS.tensor_split(parts):
        one = copy.deepcopy(network)
        copies.append(one)
        x, outputs = training_set.batch(rows)
        cut = slice(begin, begin + len(rows))
        begin += len(rows)
        with autocast(torch.device("cpu")):
            logits = one(CropAndFlip(draw.offsets[:, cut], draw.flip[cut])(x))
        loss = criterion(logits.float(), outputs)
        loss.backward()
        mean += float(loss.detach()) * len(rows) / 12
        for sum_, gradient in zip(total, gradients(one), strict=True):
            sum_ += gradient * len(rows) / 12
    return total, mean, copies


@pytest.mark.parametrize("parts", [1, 2, 3, 5])
def test_it_is_the_weighted_sum_of_the_gradients_of_ghost_batches(parts: int) -> None:
    network = made()
    expected, mean, copies = one_after_the_other(made(), parts)
    with BatchGradient(network, data(), parts, CrossEntropy(), RandomStates(0)) as gradient:
        assert float(gradient(ROWS)) == pytest.approx(mean, rel=1e-6)
        for found, wanted in zip(gradients(network), expected, strict=True):
            # In bfloat16 it matters a little whether a part's weight comes before or after the backward pass.
            assert float((found - wanted).norm()) <= 0.02 * float(wanted.norm())
    statistics = [torch.stack(buffers).mean(0) for buffers in zip(*(_statistics(one) for one in copies), strict=True)]
    for found, wanted in zip(_statistics(network), statistics, strict=True):
        torch.testing.assert_close(found, wanted)


def _statistics(network: nn.Module) -> list[Tensor]:
    return [buffer for buffer in network.buffers() if buffer.is_floating_point()]


def test_with_one_part_it_is_the_gradient_of_the_batch_itself() -> None:
    network, other = made(), made()
    BatchGradient(network, data(), 1, CrossEntropy(), RandomStates(0))(ROWS)
    x, outputs = data().batch(ROWS)
    with autocast(torch.device("cpu")):
        logits = other(CropAndFlip.draw(12, RandomStates(0)["augmentation"])(x))
    nn.CrossEntropyLoss()(logits.float(), outputs).backward()
    for found, wanted in zip(gradients(network), gradients(other), strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=0)


def test_a_step_moves_every_replica_and_the_result_does_not_depend_on_how_many_run_at_once() -> None:
    ends = []
    for count in (1, 2):
        set_worker_count(count)
        network = made(dropout=0.5)
        optimiser = torch.optim.SGD(network.parameters(), 0.1)
        losses = []
        with BatchGradient(network, data(), 2, CrossEntropy(), RandomStates(0)) as gradient:
            for _ in range(4):
                losses.append(float(gradient(ROWS)))
                optimiser.step()
        assert losses[-1] != losses[0]
        ends.append([losses, *[value.tolist() for value in network.state_dict().values()]])
    assert ends[0] == ends[1]


def test_after_training_that_failed_dropout_draws_by_itself_again() -> None:
    network = made(dropout=0.5)

    def fails(*_: object) -> Tensor:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), BatchGradient(network, data(), 2, fails, RandomStates(0)) as gradient:
        gradient(ROWS)
    assert all(module.generator is None for module in network.modules() if isinstance(module, Dropout))


def test_frozen_weights_get_no_gradient() -> None:
    network = made()
    block = network[0]
    block.requires_grad_(False)
    BatchGradient(network, data(), 2, CrossEntropy(), RandomStates(0))(ROWS)
    assert all(parameter.grad is None for parameter in block.parameters())
    assert all(parameter.grad is not None for parameter in network[3].parameters())


@pytest.mark.parametrize("p", [0.0, 0.3])
def test_dropout_zeroes_its_share_scales_the_rest_and_does_nothing_in_evaluation(p: float) -> None:
    module, x = Dropout(p), torch.ones(100_000)
    module.generator = torch.Generator().manual_seed(0)
    dropped = module(x)
    assert float((dropped == 0).float().mean()) == pytest.approx(p, abs=0.01)
    torch.testing.assert_close(dropped[dropped != 0], torch.full_like(dropped[dropped != 0], 1 / (1 - p)))
    module.generator.manual_seed(0)
    torch.testing.assert_close(module(x), dropped, rtol=0, atol=0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        torch.testing.assert_close(nn.Dropout(p)(x), dropped, rtol=0, atol=0)
    torch.testing.assert_close(module.eval()(x), x, rtol=0, atol=0)


def test_with_one_part_training_is_what_it_is_with_torchs_own_dropout() -> None:
    """Two layers of dropout draw from one generator, one after the other."""
    both = nn.Sequential(
        nn.Flatten(), nn.Linear(3 * 16 * 16, 8), Dropout(0.5), nn.Linear(8, 8), Dropout(0.5), nn.Linear(8, 3)
    )
    theirs = copy.deepcopy(both)
    theirs[2], theirs[4] = nn.Dropout(0.5), nn.Dropout(0.5)
    BatchGradient(both, data(), 1, CrossEntropy(), RandomStates(0))(ROWS)
    states = RandomStates(0)
    x, outputs = data().batch(ROWS)
    with torch.random.fork_rng(devices=[]), autocast(torch.device("cpu")):
        torch.manual_seed(states.draw_seed("dropout"))
        logits = theirs(CropAndFlip.draw(12, states["augmentation"])(x))
    nn.CrossEntropyLoss()(logits.float(), outputs).backward()
    for found, wanted in zip(gradients(both), gradients(theirs), strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=0)
