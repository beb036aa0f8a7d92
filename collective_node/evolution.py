"""The collective's life up to its learngene: task after task, checkpointed, and then condensed."""

import hashlib
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from collective_node import checkpoint
from collective_node.checkpoint import Progress, TaskRecord
from collective_node.condensing import CondensedNetwork, condense
from collective_node.criterion import GradientTrend
from collective_node.expandable_network import (
    BASE_WIDTHS,
    HIDDEN,
    POOLED,
    ExpandableNetwork,
    add_outputs,
    scaled,
    widen,
)
from collective_node.private_images import PrivateImages
from collective_node.settings import CollectiveSettings
from collective_node.task_sequence import sequence
from collective_node.training import accuracy, class_balanced_batches, fit
from collective_node.widening_schedule import steps_before
from protocol.errors import InputError, RunFailedError
from protocol.events import Events
from protocol.images import DeviceImages, Normalisation

#: A gradient histogram is taken of every eighth batch.
OBSERVE_EVERY = 8


@dataclass
class Collective:
    """A collective and what it has learned so far.

    Attributes:
        network: its network.
        known: base classes (indices) in the order of the network's outputs.
        trend: layers x tasks record of gradients.
        tasks: a record per finished task.
    """

    network: ExpandableNetwork
    known: list[int]
    trend: GradientTrend
    tasks: list[TaskRecord]


class Evolution:
    """Trains a collective on its sequence of tasks.

    Args:
        images: the collective's folder.
        settings: what to learn, and how.
        seed: of everything random; each task draws from its own generator, seeded by its number, so a run that was
            killed and goes on ends as one that was not.
        device: where to train.
        folder: of the checkpoints.
        events: progress.

    Raises:
        InputError: the settings ask for more than the images have.
    """

    def __init__(
        self,
        images: PrivateImages,
        settings: CollectiveSettings,
        seed: int,
        device: torch.device,
        folder: Path,
        events: Events,
    ) -> None:
        self.settings, self.seed, self.device, self.folder, self.events = settings, seed, device, folder, events
        self.classes = images.classes
        if settings.classes_per_task > len(self.classes):
            raise InputError(
                f"a task of {settings.classes_per_task} classes does not fit {len(self.classes)} base classes"
            )
        self.normalisation = Normalisation.of(images.train_images)
        self.train = DeviceImages.load(images.train_images, images.train_labels, self.normalisation, device)
        self.heldout = DeviceImages.load(images.heldout_images, images.heldout_labels, self.normalisation, device)
        self.image_shape = images.train_images.shape[1:]
        labels = torch.from_numpy(images.train_labels)
        self._rows = [torch.nonzero(labels == number)[:, 0] for number in range(len(self.classes))]
        rng = np.random.default_rng([seed, len(self.classes)])
        self.sequence = sequence(len(self.classes), settings.classes_per_task, settings.tasks, rng)
        digest = hashlib.sha256(settings.model_dump_json().encode() + str(seed).encode())
        digest.update(images.train_images.tobytes())
        digest.update(images.train_labels.tobytes())
        self.setup = digest.hexdigest()

    def run(self) -> Collective:
        """Go through the tasks that are left, with a checkpoint after each."""
        collective = self._resume() or self._begin()
        steps = [self._steps(number) for number in range(len(self.sequence))]
        for number in range(len(collective.tasks), len(self.sequence)):
            self._learn(collective, number, sum(steps[:number]), sum(steps))
            progress = Progress(
                setup=self.setup,
                known=collective.known,
                tasks=collective.tasks,
                sigma=collective.trend.sigma,
                rho=collective.trend.rho,
            )
            checkpoint.store(self.folder, collective.network, progress)
        return collective

    def condense(self, collective: Collective) -> tuple[CondensedNetwork, float]:
        """Train the light stem in front of the collective's top layers; returns the network and its accuracy on the
        held-out images of the known classes, in per cent."""
        target = self.outputs_of(collective.known)

        def observe(step: int, steps: int) -> None:
            self.events.append("condense", step + 1, steps, "a light stem in front of the top layers")

        network = condense(
            collective.network,
            self.train,
            self.rows_of(collective.known),
            lambda labels: target[labels],
            self.settings,
            self._generator(len(self.sequence)),
            observe,
        )
        return network, self._accuracy(network, target, collective.known)

    def rows_of(self, classes: list[int]) -> list[Tensor]:
        """Rows of the training images of each class."""
        return [self._rows[number] for number in classes]

    def outputs_of(self, known: list[int]) -> Tensor:
        """Output number of each base class, ``[classes]``; -1 where it is not known."""
        target = torch.full((len(self.classes),), -1, device=self.device)
        target[torch.tensor(known, device=self.device)] = torch.arange(len(known), device=self.device)
        return target

    def _generator(self, number: int) -> torch.Generator:
        state = np.random.SeedSequence([self.seed, 1 + number]).generate_state(1, np.uint64)
        return torch.Generator().manual_seed(int(state[0] >> np.uint64(1)))

    def _begin(self) -> Collective:
        settings = self.settings
        height, width, channels = self.image_shape
        for _ in POOLED:
            height, width = height // 2, width // 2
        network = ExpandableNetwork(
            [scaled(channel, settings.width) for channel in BASE_WIDTHS],
            channels=channels,
            positions=height * width,
            hidden=scaled(HIDDEN, settings.width),
            dropout=settings.dropout,
            generator=self._generator(len(self.sequence) + 1),
        )
        network = network.to(self.device).to(memory_format=torch.channels_last)
        return Collective(network, [], GradientTrend(len(network.layers), settings.sigma), [])

    def _resume(self) -> Collective | None:
        found = checkpoint.latest(self.folder)
        if found is None:
            return None
        progress, state = found
        if progress.setup != self.setup:
            raise InputError(
                f"the checkpoint in {self.folder} was made with other settings, another seed or other images; "
                "use those, or another state folder"
            )
        collective = self._begin()
        for number in range(len(progress.tasks)):
            self._grow(collective, number)
        collective.network.load_state_dict(state)
        collective.trend.sigma, collective.trend.rho = progress.sigma, progress.rho
        collective.tasks = progress.tasks
        return collective

    def _grow(self, collective: Collective, number: int) -> Tensor:
        """Widen the network and add outputs for the new classes of a task; returns the output of each class."""
        generator = self._generator(number)
        if self.settings.expand:
            for convolution, channels in steps_before(number, len(self.sequence)):
                widen(collective.network, convolution, scaled(channels, self.settings.width), generator)
        new = [c for c in self.sequence[number] if c not in collective.known]
        add_outputs(collective.network, len(new), generator)
        collective.known += new
        return self.outputs_of(collective.known)

    def _rehearsed(self, number: int) -> list[int]:
        """Classes whose images a task trains on: its own, and with replay everything seen before."""
        seen = self.sequence[: number + 1] if self.settings.strategy == "replay" else [self.sequence[number]]
        return list(dict.fromkeys(c for task in seen for c in task))

    def _steps(self, number: int) -> int:
        images = sum(len(self._rows[c]) for c in self._rehearsed(number))
        return max(1, round(self.settings.epochs * images / self.settings.batch_size))

    def _learn(self, collective: Collective, number: int, done: int, total: int) -> None:
        """One task: grow, train, record."""
        started = time.perf_counter()
        before = list(collective.known)
        target = self._grow(collective, number)
        network, settings, steps = collective.network, self.settings, self._steps(number)
        rehearsed = self._rehearsed(number)
        text = f"task {number + 1} of {len(self.sequence)}, {len(collective.known)} classes known"

        def observe(step: int, _: int) -> None:
            if step % OBSERVE_EVERY == 0:
                gradients = [layer.conv.weight.grad for layer in network.layers]
                try:
                    collective.trend.observe([gradient for gradient in gradients if gradient is not None])
                except ValueError as error:
                    raise RunFailedError(f"{text}: {error}; lower the collective's learning rate") from error
            self.events.append("task", done + step + 1, total, text)

        generator = self._generator(10_000 + number)
        network.train()
        loss = fit(
            network,
            network.parameters(),
            self.train,
            class_balanced_batches(self.rows_of(rehearsed), steps, settings.batch_size, generator),
            steps,
            lambda labels: target[labels],
            settings=settings,
            learning_rate=settings.learning_rate,
            generator=generator,
            observe=observe,
        )
        collective.trend.end_task()
        record = TaskRecord(
            task=number,
            classes=[self.classes[c] for c in self.sequence[number]],
            known=len(collective.known),
            steps=steps,
            loss=loss,
            accuracy=self._accuracy(network, target, collective.known),
            old_accuracy=self._accuracy(network, target, before) if before else None,
            widths=list(network.widths),
            seconds=time.perf_counter() - started,
        )
        collective.tasks.append(record)

    def _accuracy(self, network: torch.nn.Module, target: Tensor, classes: list[int]) -> float:
        wanted = torch.isin(self.heldout.labels, torch.tensor(classes, device=self.device))
        images = DeviceImages(
            self.heldout.pixels[wanted], self.heldout.labels[wanted], self.heldout.mean, self.heldout.std
        )
        if len(images) == 0:
            raise InputError("the collective's folder holds no held-out image of its known classes")
        return float(accuracy(network, images, lambda labels: target[labels]).double().mean() * 100)
