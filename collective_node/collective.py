"""A collective: its network, the classes that it knows, its labelled images, and its records."""

import copy
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from collective_node.ewc import EwcPenalty
from collective_node.extraction.criterion import GradientTrend
from collective_node.network.expandable_network import ExpandableNetwork, scaled
from collective_node.network.growth_of_tensors import Growth
from collective_node.network.growth_schedule import Step, Widen
from collective_node.network.growth_steps import add_outputs, deepen, widen
from collective_node.random_states import RandomStates
from collective_node.records import CycleRecord, Named, TaskRecord
from collective_node.training_set import TrainingSet
from protocol.errors import InputError
from protocol.learngene.images import DeviceImages


@dataclass
class Collective:
    """The state of a collective during its evolution.

    Attributes:
        network: its network.
        random: its streams of random numbers.
        trend: the gradient trend of its layers over the tasks.
        images: labelled training images: its own, then those that an annotator named.
        base_classes: how many classes its own images have; these have the first numbers.
        classes: class names; a label in ``images`` is an index into them: base classes, then named ones.
        known: numbers of the classes that it has learned, in the order of the network's outputs.
        tasks, cycles: a record per finished task and open-world cycle.
        named: what an annotator named, cycle by cycle.
        momentum: of the optimiser, by parameter name.
        ewc: the penalty that holds its weights; None before the first task, and without the strategy ``ewc``.
        calibration: row numbers of those named images that it is not trained on, int64 on the CPU.
    """

    network: ExpandableNetwork
    random: RandomStates
    trend: GradientTrend
    images: DeviceImages
    base_classes: int
    classes: list[str]
    known: list[int] = field(default_factory=list)
    tasks: list[TaskRecord] = field(default_factory=list)
    cycles: list[CycleRecord] = field(default_factory=list)
    named: list[Named] = field(default_factory=list)
    momentum: dict[str, Tensor] = field(default_factory=dict)
    ewc: EwcPenalty | None = None
    calibration: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))

    def branch(self) -> "Collective":
        """Copy the collective for a trial; only the images are shared."""
        return replace(
            self,
            network=copy.deepcopy(self.network),
            random=self.random.copy(),
            trend=copy.deepcopy(self.trend),
            classes=list(self.classes),
            known=list(self.known),
            tasks=list(self.tasks),
            cycles=list(self.cycles),
            named=list(self.named),
            momentum=dict(self.momentum),
        )

    def rows_of(self, classes: Sequence[int]) -> list[Tensor]:
        """Row numbers of the training images of each class, int64 ``[n]`` on the CPU."""
        labels = self.images.labels.cpu().index_fill(0, self.calibration, -1)
        return [torch.nonzero(labels == number)[:, 0] for number in classes]

    def training_set(self, classes: Sequence[int]) -> TrainingSet:
        """The training images of some classes, with the network's outputs as they are now."""
        return TrainingSet(self.images, tuple(self.rows_of(classes)), self.outputs)

    @property
    def known_base(self) -> list[int]:
        """Numbers of the known base classes, in the order of the outputs."""
        return [number for number in self.known if number < self.base_classes]

    @property
    def named_classes(self) -> dict[str, int]:
        """Number of each class that an annotator named, by its name in small letters."""
        numbers = range(self.base_classes, len(self.classes))
        return {self.classes[number].casefold(): number for number in numbers}

    @property
    def outputs(self) -> Tensor:
        """Output number of each class, ``[classes]``; -1 if the class is not known."""
        device = self.images.labels.device
        target = torch.full((len(self.classes),), -1, device=device)
        target[torch.tensor(self.known, device=device)] = torch.arange(len(self.known), device=device)
        return target

    def grow(self, step: Step, *, width: float, noise: float) -> None:
        """Take one growth step; momentum, EWC penalty and the gradient trend follow.

        Raises:
            InputError: the step does not fit the network.
        """
        try:
            if isinstance(step, Widen):
                growth = widen(self.network, step.layer, scaled(step.extra, width), self.random["growth"], noise=noise)
            else:
                growth = deepen(self.network, step.layer, step.way)
            self.trend.follow(growth)
        except ValueError as error:
            raise InputError(f"expansion: {error}") from error
        self._follow(growth)

    def learn_classes(self, classes: Sequence[int]) -> None:
        """Add an output for each class that is not known yet."""
        new = [number for number in classes if number not in self.known]
        self._follow(add_outputs(self.network, len(new), self.random["outputs"]))
        self.known += new

    def add_named(self, named: Named, pictures: NDArray[np.uint8], calibration_share: float = 0.0) -> list[int]:
        """Take in images ``[n, H, W, C]`` that an annotator named, in the order of ``named``.

        Args:
            calibration_share: of each class's images, rounded down, not to be trained on; spread evenly over them.

        Returns:
            Numbers of the classes among them that are not known; they get no output yet.
        """
        numbers = {name.casefold(): number for number, name in enumerate(self.classes)}
        for name in named.names:
            if name.casefold() not in numbers:
                numbers[name.casefold()] = len(self.classes)
                self.classes.append(name)
        labels = torch.tensor([numbers[name.casefold()] for name in named.names], dtype=torch.int64)
        images = self.images
        chosen = torch.tensor(_evenly_spread(labels.tolist(), calibration_share), dtype=torch.int64)
        self.calibration = torch.cat([self.calibration, len(images) + chosen])
        self.images = DeviceImages(
            torch.cat([images.pixels, torch.from_numpy(np.array(pictures)).to(images.pixels.device)]),
            torch.cat([images.labels, labels.to(images.labels.device)]),
            images.mean,
            images.std,
        )
        self.named.append(named)
        return [number for number in dict.fromkeys(labels.tolist()) if number not in self.known]

    def _follow(self, growth: Growth) -> None:
        self.momentum = growth.follow_all(self.momentum, "gradient")
        if self.ewc is not None:
            self.ewc = self.ewc.grow(growth)


def _evenly_spread(labels: Sequence[int], share: float) -> list[int]:
    """Positions of a share of each label's occurrences, rounded down: where its running count reaches the next whole
    number."""
    seen: Counter[int] = Counter()
    chosen = []
    for position, label in enumerate(labels):
        before, seen[label] = seen[label], seen[label] + 1
        if int(share * seen[label]) > int(share * before):
            chosen.append(position)
    return chosen
