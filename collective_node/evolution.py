"""The evolution of a collective up to its learngene: tasks, then open-world cycles, with a checkpoint after each."""

import time
from pathlib import Path

import torch

from collective_node import checkpoint, continual_training
from collective_node.checkpoint import Found
from collective_node.collective import Collective
from collective_node.collective_images import CollectiveImages
from collective_node.continual_training import StepEvents
from collective_node.evaluation import Evaluation
from collective_node.evolution_plan import EvolutionPlan
from collective_node.open_world.annotators import Annotator
from collective_node.open_world.cycle import OpenWorld
from collective_node.records import Comparison, TaskRecord
from collective_node.settings import CollectiveSettings
from protocol.errors import InputError
from protocol.learngene.images import DeviceImages
from protocol.node.events import Events


class Evolution:
    """Trains a collective on its sequence of tasks, and takes it through its open-world cycles.

    Args:
        images: the collective's folder.
        settings: what to learn, and how.
        seed: of everything random. Every checkpoint holds the state of the random streams, so a run that was killed and
            resumed gives the same result as an uninterrupted one.
        device: where to train.
        folder: of the checkpoints.
        events: progress.
        annotator: names what is unknown; needed if the settings have open-world cycles.

    Attributes:
        plan: what is learned in which order.
        train: the training images, on the device.
        evaluation: tests the collective.
        open_world: the open-world cycles; None if the settings have none.

    Raises:
        InputError: the settings ask for more than the images have.
    """

    def __init__(
        self,
        images: CollectiveImages,
        settings: CollectiveSettings,
        seed: int,
        device: torch.device,
        folder: Path,
        events: Events,
        annotator: Annotator | None = None,
    ) -> None:
        self.plan = EvolutionPlan.of(images, settings, seed, device)
        self.settings, self.folder, self.events = settings, folder, events
        self.train = DeviceImages.load(images.train_images, images.train_labels, self.plan.normalisation, device)
        truth = None if annotator is None else annotator.truth
        self.evaluation = Evaluation.load(images, self.plan.normalisation, device, truth)
        self.open_world: OpenWorld | None = None
        if settings.cycles:
            self.open_world = OpenWorld(self.plan, images, annotator, self.evaluation, events)

    @property
    def cycle_setup(self) -> str | None:
        """Fingerprint of what the cycles depend on besides the tasks; None if the settings have no cycles."""
        return None if self.open_world is None else self.open_world.setup

    def run(self) -> tuple[Collective, list[Comparison]]:
        """Run the tasks and cycles that are left, with a checkpoint after each.

        Returns:
            The collective, and the cycles as the settings' other scores and strategies would have had them.

        Raises:
            InputError: the settings do not fit what was found on the way, or the checkpoint belongs to another
                evolution; the last checkpoint stays.
            RunFailedError: the loss or a weight is no longer finite; the last checkpoint stays.
        """
        collective, comparisons = self._resume()
        for number in range(len(collective.tasks), len(self.plan.sequence)):
            self._learn(collective, number)
            self._keep(collective, comparisons)
        if self.open_world is None:
            return collective, comparisons
        if not collective.cycles:
            for score, strategy in self.plan.compared:
                if (score, strategy) not in [(done.score, done.strategy) for done in comparisons]:
                    comparisons.append(self.open_world.compare(collective, score, strategy))
                    self._keep(collective, comparisons)
        for _ in range(len(collective.cycles), self.settings.cycles):
            self.open_world.run_cycle(collective, self.settings.score, self.settings.strategy)
            self._keep(collective, comparisons)
        return collective, comparisons

    def _keep(self, collective: Collective, comparisons: list[Comparison]) -> None:
        checkpoint.store(self.folder, self.plan.setup, self.cycle_setup, collective, comparisons)

    def _resume(self) -> tuple[Collective, list[Comparison]]:
        """The collective as the newest checkpoint has it, or a new one."""
        collective = self.plan.begin(self.train)
        found = checkpoint.latest(self.folder)
        if found is None:
            return collective, []
        self._check(found)
        progress = found.progress
        for number in range(len(progress.tasks)):
            self.plan.grow(collective, number)
        for named in progress.named:
            assert self.open_world is not None
            collective.learn_classes(self.open_world.add_named(collective, named))
        found.restore(collective)
        return collective, progress.comparisons

    def _check(self, found: Found) -> None:
        """Check that a checkpoint is one of this evolution.

        Raises:
            InputError: it is of another evolution, or no run can reach this state.
        """
        progress = found.progress
        if progress.setup != self.plan.setup or progress.cycle_setup not in (None, self.cycle_setup):
            what = "" if progress.setup != self.plan.setup else " of its open-world cycles"
            raise InputError(
                f"the checkpoint in {self.folder} was made with other settings{what}, another seed, other images or "
                "another number of threads; use those, or another state folder"
            )
        if progress.torch != torch.__version__:
            raise InputError(
                f"the checkpoint in {self.folder} was made with torch {progress.torch}, this is {torch.__version__}; "
                "use that version, or another state folder"
            )
        found.check(
            tasks=len(self.plan.sequence),
            cycles=self.settings.cycles,
            comparisons=len(self.plan.compared),
            stream=0 if self.open_world is None else len(self.open_world.stream.images),
        )

    def _learn(self, collective: Collective, number: int) -> None:
        """Run one task: grow, train, record."""
        started = time.perf_counter()
        before = list(collective.known)
        plan, settings = self.plan, self.settings
        plan.grow(collective, number)
        classes, steps = plan.trained_on(number), plan.task_steps
        text = f"task {number + 1} of {len(plan.sequence)}, {len(collective.known)} classes known"
        events = StepEvents(self.events, "task", text, sum(steps[:number]), sum(steps))
        trained = continual_training.train(
            collective, classes, settings.epochs, settings.strategy, settings, events, collective.trend.observe
        )
        collective.trend.end_task()
        if settings.strategy == "replay" and settings.consolidate_epochs and number == len(plan.sequence) - 1:
            trained = trained.then(continual_training.consolidate(collective, settings, self.events))
        if settings.strategy == "ewc":
            continual_training.anchor(collective, classes, settings)
        network, evaluation = collective.network, self.evaluation
        record = TaskRecord(
            task=number,
            classes=[collective.classes[c] for c in plan.sequence[number]],
            known=len(collective.known),
            steps=trained.steps,
            loss=trained.loss,
            accuracy=evaluation.accuracy(network, collective, collective.known),
            old_accuracy=evaluation.accuracy(network, collective, before) if before else None,
            widths=list(network.widths),
            seconds=time.perf_counter() - started,
        )
        collective.tasks.append(record)
