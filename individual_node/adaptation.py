"""Adaptation by Eq. 9: cross-entropy and the retain loss, for many small target tasks as one batched network."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from individual_node.reconstruction import IndividualNetworks, reconstruct
from individual_node.settings import IndividualSettings
from individual_node.target_tasks import TargetTask
from protocol.architecture import Architecture
from protocol.errors import InputError
from protocol.images import CropAndFlip, DeviceImages, autocast
from protocol.learngene import Learngene
from protocol.network import ConvolutionBlock, block_tensors

#: lambda of Table 3.
PAPER_RETAIN = 1000.0
#: Called after each epoch with its number (from 1) and the networks.
EpochObserver = Callable[[int, IndividualNetworks], None]


@dataclass(frozen=True)
class RetainLoss:
    """Eq. 8, ``1/2 sum_i F_i (theta_i - theta*_i)^2`` over the inherited parameters and nothing else.

    Attributes:
        parameters: inherited parameters, each of ``networks`` networks stacked along its first axis.
        anchors: their inherited values, ``theta*``.
        fisher: the Fisher diagonal, repeated per network.
    """

    parameters: Sequence[Tensor]
    anchors: Sequence[Tensor]
    fisher: Sequence[Tensor]

    @classmethod
    def of(cls, blocks: Sequence[ConvolutionBlock], learngene: Learngene) -> "RetainLoss":
        """Anchored at what the blocks hold now; the learngene carries a Fisher diagonal."""
        named = {n: t for n, t in block_tensors(blocks).items() if f"fisher.{n}" in learngene.tensors}
        return cls(
            list(named.values()),
            [t.detach().clone() for t in named.values()],
            [_repeated(learngene.tensors, f"fisher.{name}", blocks[0].networks, t) for name, t in named.items()],
        )

    def __call__(self) -> Tensor:
        """The loss, summed over the networks; a scalar, 0 at the inherited values."""
        terms = [
            (f * (p - a).square()).sum() for p, a, f in zip(self.parameters, self.anchors, self.fisher, strict=True)
        ]
        return 0.5 * torch.stack(terms).sum()

    @torch.no_grad()
    def add_gradient(self, weight: float) -> None:
        """Add ``weight F_i (theta_i - theta*_i)``, the gradient of ``weight`` times the loss, to each ``.grad``.

        In closed form it takes a third of the passes over the weights that automatic differentiation takes.
        """
        for p, a, f in zip(self.parameters, self.anchors, self.fisher, strict=True):
            assert p.grad is not None
            p.grad.addcmul_(f, p - a, value=weight)


def _repeated(tensors: Mapping[str, NDArray[np.float32]], name: str, networks: int, like: Tensor) -> Tensor:
    value = torch.from_numpy(np.array(tensors[name])).to(like)
    return value.repeat(networks, *([1] * (value.ndim - 1)))


def largest_stable_retain(learning_rate: float, largest: float, momentum: float) -> float:
    """The lambda above which a step must diverge: along one weight the retain loss is a parabola of curvature
    ``lambda F``, on which gradient descent with momentum ``m`` converges only below ``2 (1 + m)`` (Polyak 1964)."""
    return 2 * (1 + momentum) / (learning_rate * largest) if largest > 0 else float("inf")


def choose_retain(learngene: Learngene, settings: IndividualSettings) -> float:
    """The lambda of Eq. 9 for a learngene: the setting, or the paper's 1000 kept at half of what is stable.

    Raises:
        InputError: the setting's lambda would diverge (says what would not), or there is no Fisher diagonal.
    """
    if learngene.fisher is None:
        raise InputError("Eq. 9 needs a learngene with a Fisher diagonal, and this one carries none")
    largest = max(float(tensor.max()) for name, tensor in learngene.tensors.items() if name.startswith("fisher."))
    limit = largest_stable_retain(settings.learning_rate, largest, settings.momentum)
    if settings.retain is None:
        return min(PAPER_RETAIN, limit / 2)
    if settings.retain > limit:
        raise InputError(
            f"learning rate {settings.learning_rate:g} x lambda {settings.retain:g} x largest Fisher entry "
            f"{largest:.3g} is above {2 * (1 + settings.momentum):g}, so adaptation would diverge; "
            f"choose lambda at most {limit:.3g}"
        )
    return settings.retain


def task_generator(seed: int, purpose: str, shots: int, task: int) -> torch.Generator:
    """The one source of randomness of a target task: the same whatever else runs, and in whatever order."""
    words = [seed, *purpose.encode(), shots, task]
    return torch.Generator().manual_seed(int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> 1))


def side_by_side(x: Tensor, networks: int) -> Tensor:
    """``[N * networks, C, H, W]`` (network fastest) to ``[N, networks * C, H, W]``, channels-last in memory."""
    n, channels, height, width = x.shape
    x = x.permute(0, 2, 3, 1).reshape(n // networks, networks, height, width, channels)
    x = x.permute(0, 2, 3, 1, 4).reshape(n // networks, height, width, networks * channels)
    return x.contiguous().permute(0, 3, 1, 2)


def adapt(
    architecture: Architecture,
    learngene: Learngene | None,
    tasks: Sequence[TargetTask],
    images: DeviceImages,
    settings: IndividualSettings,
    generators: Sequence[torch.Generator],
    *,
    learning_rate: float,
    retain: float,
    observe: EpochObserver | None = None,
) -> IndividualNetworks:
    """Train one network per target task (all with equally many ways and support images), by Eq. 9.

    Args:
        learngene: what is inherited; None trains the same architecture from scratch, with Eq. 6 alone.
        images: the support images that the tasks' rows point into; labels are not read.
        generators: one per task: initial weights, order and augmentation of that task.
        retain: lambda, see :func:`choose_retain`; 0 leaves the retain loss out.

    Returns:
        The networks, in evaluation mode.
    """
    count, ways, networks = len(tasks[0].support), tasks[0].ways, len(tasks)
    device = images.pixels.device
    model = reconstruct(architecture, learngene, ways=ways, generators=generators)
    model = model.to(device).to(memory_format=torch.channels_last)
    retain_loss = RetainLoss.of(model.inherited, learngene) if learngene is not None and retain > 0 else None
    rows = torch.from_numpy(np.stack([task.support for task in tasks], 1))
    labels = torch.from_numpy(np.stack([task.support_labels for task in tasks], 1))
    optimiser = torch.optim.SGD(
        model.parameters(), learning_rate, settings.momentum, weight_decay=settings.weight_decay, fused=True
    )
    model.train()
    for epoch in range(1, settings.epochs + 1):
        order = torch.stack([torch.randperm(count, generator=g) for g in generators], 1)
        draws = [CropAndFlip.draw(count, g) for g in generators]
        crop = CropAndFlip(torch.stack([d.offsets for d in draws], 2), torch.stack([d.flip for d in draws], 1))
        for batch in torch.arange(count).tensor_split(-(-count // settings.batch_size)):
            chosen = order[batch]
            x, _ = images.batch(rows.gather(0, chosen).flatten())
            x = CropAndFlip(crop.offsets[:, batch].flatten(1), crop.flip[batch].flatten())(x)
            with autocast(device):
                logits = model(side_by_side(x, networks))
            target = labels.gather(0, chosen).to(device)
            # Mean over a task's images, sum over tasks: each network gets the gradient that it would get alone.
            loss = nn.functional.cross_entropy(logits.float().flatten(0, 1), target.flatten(), reduction="sum")
            loss = loss / len(batch)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            if retain_loss is not None:
                retain_loss.add_gradient(retain)
            optimiser.step()
        if observe is not None:
            observe(epoch, model)
    return model.eval()


@torch.no_grad()
def test_accuracy(model: IndividualNetworks, tasks: Sequence[TargetTask], images: DeviceImages) -> list[float]:
    """Accuracy in per cent of each network on its own task's test images, in evaluation mode."""
    was_training = model.training
    model.eval()
    rows = torch.from_numpy(np.stack([task.test for task in tasks], 1))
    labels = torch.from_numpy(np.stack([task.test_labels for task in tasks], 1))
    hits = torch.zeros(len(tasks), dtype=torch.int64)
    for index in torch.arange(len(rows)).split(50):
        x, _ = images.batch(rows[index].flatten())
        with autocast(images.pixels.device):
            logits = model(side_by_side(x, len(tasks)))
        hits += (logits.argmax(2).cpu() == labels[index]).sum(0)
    model.train(was_training)
    return [float(h) * 100 / len(rows) for h in hits]
