"""Times the collective's training step beside the machine's own rate, beside a busy process and beside a plain loop."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode
from torchvision import transforms

from collective_node.continual_training import OBSERVE_EVERY
from collective_node.extraction.criterion import GradientTrend
from collective_node.network.expandable_network import ExpandableNetwork
from collective_node.random_states import RandomStates
from collective_node.settings import CollectiveSettings
from collective_node.training import fit
from collective_node.training_set import TrainingSet
from protocol.learngene.images import DeviceImages, Normalisation, bfloat16_is_fast
from protocol.learngene.side_by_side import usable_cores
from protocol.node.events import Observer
from sims.bench.final_network import final_network
from sims.bench.machine import gemm_rate
from sims.bench.rows import Clock, Comparison, Row, compare

#: Of the network that ``quick`` trains, of ``small``'s, and of the paper's.
WIDTHS = (0.25, 0.375, 1.0)
_CLASSES, _IMAGES = 64, 6400
_CPU = torch.device("cpu")
#: Something else that works, for as long as nobody ends it.
_BUSY = "while True: pass"


@dataclass(frozen=True)
class TrainingStep:
    """The collective's final network at a width, and images of noise; its steps are those of a run.

    Attributes:
        width: factor on the paper's widths.
        steps: that are timed at once.
    """

    width: float
    steps: int
    network: ExpandableNetwork
    data: TrainingSet
    settings: CollectiveSettings

    @classmethod
    def made(cls, width: float, seconds: float, clock: Clock) -> "TrainingStep":
        """With so many steps that they take about so many seconds."""
        labels = np.arange(_IMAGES) % _CLASSES
        images = DeviceImages.load(noise(), labels, Normalisation.fixed(3), _CPU)
        rows = tuple(torch.arange(label, _IMAGES, _CLASSES) for label in range(_CLASSES))
        data = TrainingSet(images, rows, torch.arange(_CLASSES))
        one = cls(width, 5, final_network(width, _CLASSES), data, CollectiveSettings(width=width))
        one.rate(clock)
        steps = max(3, round(seconds * one.rate(clock) / one.settings.batch_size))
        return cls(width, steps, one.network, data, one.settings)

    def rate(self, clock: Clock, *, criterion: bool = True, parts: int = 1) -> float:
        """Images a second, with augmentation, loss, optimiser and, unless it is left out, the gradient criterion;
        ``parts``: of a batch, computed side by side."""
        trend = GradientTrend(len(self.network.layers), None)

        def observe(step: int, _: int) -> None:
            if criterion and step % OBSERVE_EVERY == 0:
                trend.observe(
                    [layer.conv.weight.grad for layer in self.network.layers if layer.conv.weight.grad is not None]
                )

        images = self.steps * self.settings.batch_size
        started = clock()
        fit(
            self.network,
            dict(self.network.named_parameters()),
            self.data,
            images / _IMAGES,
            settings=self.settings.model_copy(update={"parts": parts}),
            learning_rate=1e-3,
            random=RandomStates(0),
            observe=observe,
        )
        return images / (clock() - started)

    def operations(self) -> float:
        """Operations of one image: forward and backward pass, products and sums counted apart."""
        x, outputs = self.data.batch(torch.arange(8))
        counter = FlopCounterMode(display=False)
        with counter:
            nn.functional.cross_entropy(self.network(x), outputs).backward()
        self.network.zero_grad()
        return counter.get_total_flops() / len(x)


def measure(repeats: int, clock: Clock, observe: Observer, seconds: float = 4.0) -> list[Row]:
    """The rows of ``learngene bench train``.

    Args:
        repeats: of everything, each side in turn.
        observe: progress.
        seconds: that one measurement is to take, about.
    """
    steps = {width: TrainingStep.made(width, seconds, clock) for width in WIDTHS}
    dtype = torch.bfloat16 if bfloat16_is_fast(_CPU) else torch.float32
    small, cores = steps[0.25], usable_cores()
    comparisons = [
        *(
            Comparison(
                f"training step at width {width:g}, beside GEMM",
                partial(_operation_rate, step, clock),
                lambda: gemm_rate(dtype, cores, clock) / 1e9,
                "10^9 operations/s",
                "at least 0.7" if width == 1 else "at least 0.5",
            )
            for width, step in steps.items()
        ),
        Comparison(
            "width 0.25 with one other busy process, beside alone",
            lambda: _beside_a_busy_process(lambda: small.rate(clock)),
            lambda: small.rate(clock),
            "images/s",
            "at least 0.59",
        ),
        Comparison(
            "width 0.25 in a part for each core, beside in one",
            lambda: small.rate(clock, parts=cores),
            lambda: small.rate(clock),
            "images/s",
        ),
        Comparison(
            "width 0.25 in a part for each core with one other busy process, beside alone",
            lambda: _beside_a_busy_process(lambda: small.rate(clock, parts=cores)),
            lambda: small.rate(clock, parts=cores),
            "images/s",
            "at least 0.59",
        ),
        Comparison(
            "width 0.25 with the gradient criterion, beside without",
            lambda: small.rate(clock),
            lambda: small.rate(clock, criterion=False),
            "images/s",
            "at least 0.97",
        ),
        Comparison(
            "width 0.25, beside a plain loop (DataLoader, PIL, float32)",
            lambda: small.rate(clock),
            lambda: plain_rate(small, clock),
            "images/s",
            "at least 4",
        ),
    ]
    return compare(comparisons, repeats, observe)


def _operation_rate(step: TrainingStep, clock: Clock) -> float:
    return step.rate(clock) * step.operations() / 1e9


def noise() -> NDArray[np.uint8]:
    """Images of noise, ``[6400, 32, 32, 3]``."""
    return np.random.default_rng(0).integers(0, 256, (_IMAGES, 32, 32, 3), dtype=np.uint8)


def plain_rate(step: TrainingStep, clock: Clock) -> float:
    """Images a second of the loop that anybody writes first: pictures augmented one by one with PIL by as many loader
    processes as cores, float32, torch's own threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(usable_cores())
    try:
        loader = DataLoader(
            _Pictures(noise()), step.settings.batch_size, shuffle=True, num_workers=usable_cores(), drop_last=True
        )
        optimiser = torch.optim.SGD(step.network.parameters(), 1e-3, 0.9, weight_decay=5e-4)
        batches = iter(loader)
        next(batches)  # the loaders are awake
        started, count = clock(), min(step.steps, len(loader) - 1)
        for _ in range(count):
            x, labels = next(batches)
            loss = nn.functional.cross_entropy(step.network(x), labels)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        return count * step.settings.batch_size / (clock() - started)
    finally:
        torch.set_num_threads(before)


class _Pictures(Dataset[tuple[torch.Tensor, int]]):
    def __init__(self, images: NDArray[np.uint8]) -> None:
        self._images = images
        self._transform = transforms.Compose(
            [
                transforms.RandomCrop(32, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize((0.5,) * 3, (0.25,) * 3),
            ]
        )

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self._transform(Image.fromarray(self._images[index])), index % _CLASSES


def _beside_a_busy_process(work: Callable[[], float]) -> float:
    with _busy_process():
        return work()


@contextmanager
def _busy_process() -> Iterator[None]:
    process = subprocess.Popen([sys.executable, "-c", _BUSY])
    try:
        yield
    finally:
        process.kill()
        process.wait()
