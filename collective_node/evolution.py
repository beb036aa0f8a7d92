"""The collective's life up to its learngene: tasks, then open-world cycles, each checkpointed, and then condensing."""

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from collective_node import checkpoint
from collective_node.collective import Collective
from collective_node.collective_images import CollectiveImages
from collective_node.ewc import EwcPenalty, choose_weight
from collective_node.extraction.condensing import CondensedNetwork, condense
from collective_node.extraction.criterion import GradientTrend
from collective_node.extraction.extraction import FISHER_BATCH, check_layers, distinct_rows
from collective_node.network.expandable_network import HIDDEN, POOLED, ExpandableNetwork, scaled
from collective_node.network.growth_schedule import Deepen, parse, steps_before
from collective_node.open_world.annotators import Annotator
from collective_node.open_world.stream import FIT_IMAGES_PER_CLASS, Stream
from collective_node.random_states import RandomStates
from collective_node.records import Comparison, CycleRecord, TaskRecord
from collective_node.settings import CollectiveSettings, Score, Strategy
from collective_node.task_sequence import sequence
from collective_node.training import accuracy, fit, steps_for
from protocol.errors import InputError, RunFailedError
from protocol.learngene.images import DeviceImages, Normalisation
from protocol.node.events import Events

#: A gradient histogram is taken of every eighth batch.
OBSERVE_EVERY = 8
#: Settings that only what follows tasks and cycles depends on: they may be changed, and a checkpoint still serves.
_AFTER_TASKS = {
    "layers",
    "criterion",
    "descendant_epochs",
    "forms",
    "condense_epochs",
    "condense_learning_rate",
    "fisher_samples",
    "annotator",
    *(name for name in CollectiveSettings.model_fields if name.startswith("privacy_")),
}
#: Settings that cycles depend on and tasks do not.
_OF_CYCLES = {
    "cycles",
    "classes_per_cycle",
    "examples",
    "open_epochs",
    "score",
    "threshold",
    "keep_known",
    "neighbours",
    "compare_scores",
    "compare_strategies",
}


@dataclass(frozen=True)
class _Steps:
    """Where a training stands among all steps of its kind; alone, its own steps are all there are."""

    events: Events
    event: str
    text: str
    before: int = 0
    total: int = 0

    def say(self, done: int, steps: int) -> None:
        self.events.append(self.event, self.before + done, self.total or steps, self.text)


class Evolution:
    """Trains a collective on its sequence of tasks, and takes it through its open-world cycles.

    Args:
        images: the collective's folder.
        settings: what to learn, and how.
        seed: of everything random; where its streams stand is saved with every checkpoint, so a run that was killed
            and goes on ends as one that was not.
        device: where to train.
        folder: of the checkpoints.
        events: progress.
        annotator: names what is unknown; needed where the settings have open-world cycles.

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
        self.settings, self.seed, self.device, self.folder, self.events = settings, seed, device, folder, events
        self.base_classes = list(images.classes)
        if settings.classes_per_task > len(self.base_classes):
            raise InputError(
                f"a task of {settings.classes_per_task} classes does not fit {len(self.base_classes)} base classes"
            )
        channels = images.train_images.shape[3]
        self.normalisation = (
            Normalisation.fixed(channels) if settings.private_weights else Normalisation.of(images.train_images)
        )
        self.train = DeviceImages.load(images.train_images, images.train_labels, self.normalisation, device)
        self.heldout = DeviceImages.load(images.heldout_images, images.heldout_labels, self.normalisation, device)
        self.image_shape = images.train_images.shape[1:]
        self.growth = parse(settings.expansion)
        depth = len(settings.base_widths) + sum(isinstance(step, Deepen) for step in self.growth)
        check_layers(settings, layers=depth, tasks=settings.tasks)
        rng = np.random.default_rng([seed, len(self.base_classes)])
        self.sequence = sequence(len(self.base_classes), settings.classes_per_task, settings.tasks, rng)
        counts = np.bincount(images.train_labels, minlength=len(self.base_classes))
        self._taught = sorted({number for task in self.sequence for number in task})
        self.taught_images = int(counts[self._taught].sum())
        self._task_steps = [
            steps_for(settings.epochs, int(counts[self._rehearsed(number)].sum()), settings.batch_size)
            for number in range(settings.tasks)
        ]
        self.planned()  # a step that does not fit is said now, not after hours
        digest = hashlib.sha256(settings.model_dump_json(exclude=_AFTER_TASKS | _OF_CYCLES).encode())
        digest.update(f"seed {seed}, {torch.get_num_threads()} threads, {device.type}".encode())
        for array in (images.train_images, images.train_labels, images.heldout_images, images.heldout_labels):
            digest.update(array.tobytes())
        self.setup = digest.hexdigest()
        self.annotator = annotator
        self.stream: Stream | None = None
        self.cycle_setup: str | None = None
        if settings.cycles:
            self.stream, self.cycle_setup = self._open_world(images, annotator)

    def _open_world(self, images: CollectiveImages, annotator: Annotator | None) -> tuple[Stream, str]:
        """The stream, and a digest of what the cycles depend on besides the tasks."""
        settings = self.settings
        if images.stream_images is None:
            raise InputError("open-world cycles need a stream of images; cut the world again, or set cycles to 0")
        if annotator is None:
            raise InputError(
                "open-world cycles need an annotator who names what is unknown; give one, or set cycles to 0"
            )
        untaught = {name for number, name in enumerate(self.base_classes) if number not in self._taught}
        counts = np.bincount(images.train_labels, minlength=len(self.base_classes))[self._taught]
        fitted = int(np.minimum(counts, FIT_IMAGES_PER_CLASS).sum())
        if "nearest-neighbour" in (settings.score, *settings.compare_scores) and settings.neighbours > fitted:
            raise InputError(f"neighbours is {settings.neighbours}, more than the {fitted} images that it looks among")
        truth = annotator.truth
        digest = hashlib.sha256(settings.model_dump_json(include=_OF_CYCLES).encode())
        digest.update(images.stream_images.tobytes())
        if truth is not None:
            digest.update("\n".join((*truth.stream_names, *truth.heldout_names)).encode())
            digest.update(truth.heldout_images.tobytes())
        return Stream(images.stream_images, self.heldout, truth, untaught, settings), digest.hexdigest()

    def planned(self) -> Collective:
        """The collective as it will be after its last task, but as it begins: it has learned nothing.

        Raises:
            InputError: a growth step does not fit the network.
        """
        collective = self._begin()
        for number in range(self.settings.tasks):
            self._grow(collective, number)
        return collective

    def run(self) -> tuple[Collective, list[Comparison]]:
        """Go through the tasks and cycles that are left, with a checkpoint after each.

        Returns:
            The collective, and the cycles as the settings' other scores and strategies would have had them.

        Raises:
            InputError: the settings do not fit what was found on the way; the last checkpoint stays.
            RunFailedError: the loss is not a number any more; likewise.
        """
        collective, comparisons = self._resume()
        for number in range(len(collective.tasks), len(self.sequence)):
            self._learn(collective, number)
            self._keep(collective, comparisons)
        if not collective.cycles:
            for score, strategy in self._compared():
                if (score, strategy) not in [(done.score, done.strategy) for done in comparisons]:
                    comparisons.append(self._compare(collective, score, strategy))
                    self._keep(collective, comparisons)
        for _ in range(len(collective.cycles), self.settings.cycles):
            self._meet(collective, self.settings.score, self.settings.strategy)
            self._keep(collective, comparisons)
        return collective, comparisons

    def heldout_of(self, classes: Sequence[int]) -> DeviceImages:
        """The held-out images of some base classes.

        Raises:
            InputError: there are none.
        """
        heldout = self.heldout
        wanted = torch.isin(heldout.labels, torch.tensor(classes, device=self.device))
        if not wanted.any():
            raise InputError("the collective's folder holds no held-out image of its known classes")
        return DeviceImages(heldout.pixels[wanted], heldout.labels[wanted], heldout.mean, heldout.std)

    def _keep(self, collective: Collective, comparisons: list[Comparison]) -> None:
        checkpoint.store(self.folder, self.setup, self.cycle_setup, collective, comparisons)

    def condense(self, collective: Collective, top: int) -> tuple[CondensedNetwork, float]:
        """Train the light stem in front of the ``top`` last layers; returns the network and its accuracy on the
        held-out images of the base classes that are known, in per cent."""
        target = collective.outputs

        def observe(step: int, steps: int) -> None:
            self.events.append("condense", step + 1, steps, "a light stem in front of the top layers")

        network = condense(
            collective.network,
            top,
            collective.images,
            collective.rows_of(collective.known),
            lambda labels: target[labels],
            self.settings,
            collective.random,
            observe,
        )
        return network, self.accuracy_of(network, collective)

    def accuracy_of(self, network: torch.nn.Module, collective: Collective) -> float:
        """Of a network with the collective's outputs, on the held-out images of the known base classes, per cent."""
        return self._accuracy(network, collective, self.base_of(collective))

    def _compare(self, collective: Collective, score: Score, strategy: Strategy) -> Comparison:
        """Try the cycles with another score or strategy; what ends them early ends the trial, not the run."""
        tried, stopped = collective.branch(), None
        try:
            for _ in range(self.settings.cycles):
                self._meet(tried, score, strategy)
        except (InputError, RunFailedError) as error:
            stopped = str(error)
        return Comparison(score=score, strategy=strategy, cycles=tried.cycles, stopped=stopped)

    def _compared(self) -> list[tuple[Score, Strategy]]:
        """What is tried besides the settings' own score and strategy."""
        own = self.settings.score, self.settings.strategy
        pairs = [(score, own[1]) for score in self.settings.compare_scores]
        pairs += [(own[0], strategy) for strategy in self.settings.compare_strategies]
        return [pair for pair in dict.fromkeys(pairs) if pair != own]

    def _begin(self) -> Collective:
        settings = self.settings
        height, width, channels = self.image_shape
        for _ in POOLED:
            height, width = height // 2, width // 2
        if min(height, width) < 1:
            raise InputError(
                f"images of {self.image_shape[1]}x{self.image_shape[0]} pixels are too small: 32x32 at least"
            )
        random = RandomStates(self.seed)
        network = ExpandableNetwork(
            [scaled(channel, settings.width) for channel in settings.base_widths],
            channels=channels,
            positions=height * width,
            hidden=scaled(HIDDEN, settings.width),
            dropout=settings.dropout,
            generator=random["weights"],
        )
        network = network.to(self.device).to(memory_format=torch.channels_last)
        trend = GradientTrend(len(network.layers), settings.sigma)
        return Collective(network, random, trend, self.train, list(self.base_classes))

    def _resume(self) -> tuple[Collective, list[Comparison]]:
        """The collective as the newest checkpoint has it, or a new one."""
        collective = self._begin()
        found = checkpoint.latest(self.folder)
        if found is None:
            return collective, []
        progress = found.progress
        if progress.setup != self.setup or progress.cycle_setup not in (None, self.cycle_setup):
            what = "" if progress.setup != self.setup else " of its open-world cycles"
            raise InputError(
                f"the checkpoint in {self.folder} was made with other settings{what}, another seed, other images or "
                "another number of threads; use those, or another state folder"
            )
        if progress.torch != torch.__version__:
            raise InputError(
                f"the checkpoint in {self.folder} was made with torch {progress.torch}, this is {torch.__version__}; "
                "use that version, or another state folder"
            )
        stream = 0 if self.stream is None else len(self.stream.images)
        found.check(
            tasks=len(self.sequence), cycles=self.settings.cycles, comparisons=len(self._compared()), stream=stream
        )
        for number in range(len(progress.tasks)):
            self._grow(collective, number)
        for named in progress.named:
            assert self.stream is not None
            collective.learn_classes(collective.add_named(named, self.stream.images[named.rows]))
        found.restore(collective)
        return collective, progress.comparisons

    def _grow(self, collective: Collective, number: int) -> None:
        """Take the growth steps before a task, and add outputs for its new classes."""
        for step in steps_before(self.growth, number, len(self.sequence)):
            collective.grow(step, width=self.settings.width, noise=self.settings.growth_noise)
        collective.learn_classes(self.sequence[number])

    def _rehearsed(self, number: int) -> list[int]:
        """Classes whose images a task trains on: its own, and with replay everything seen before."""
        seen = self.sequence[: number + 1] if self.settings.strategy == "replay" else [self.sequence[number]]
        return list(dict.fromkeys(c for task in seen for c in task))

    def _learn(self, collective: Collective, number: int) -> None:
        """One task: grow, train, record."""
        started = time.perf_counter()
        before = list(collective.known)
        self._grow(collective, number)
        strategy = self.settings.strategy
        rehearsed = self._rehearsed(number)
        text = f"task {number + 1} of {len(self.sequence)}, {len(collective.known)} classes known"
        progress = _Steps(self.events, "task", text, sum(self._task_steps[:number]), sum(self._task_steps))
        steps, loss, _ = self._train(
            collective, rehearsed, self.settings.epochs, strategy, progress, collective.trend.observe
        )
        collective.trend.end_task()
        if strategy == "ewc":
            self._consolidate(collective, rehearsed)
        record = TaskRecord(
            task=number,
            classes=[collective.classes[c] for c in self.sequence[number]],
            known=len(collective.known),
            steps=steps,
            loss=loss,
            accuracy=self._accuracy(collective.network, collective, collective.known),
            old_accuracy=self._accuracy(collective.network, collective, before) if before else None,
            widths=list(collective.network.widths),
            seconds=time.perf_counter() - started,
        )
        collective.tasks.append(record)

    def _meet(self, collective: Collective, score: Score, strategy: Strategy) -> None:
        """One open-world cycle: recognise, let an annotator name, add outputs, train on, record."""
        assert self.stream is not None
        assert self.annotator is not None
        started = time.perf_counter()
        number = len(collective.cycles)
        recognition = self.stream.recognise(collective, number, score)
        query = self.stream.query(collective, recognition, number)
        where = f"open-world cycle {number + 1} of {self.settings.cycles}"
        if (score, strategy) != (self.settings.score, self.settings.strategy):
            where = f"compared with {score}, {strategy}: {where}"
        self.events.append("cycle", 0, 0, f"{where}: {len(query.unknown)} unknown images to be named")
        named = self.annotator.name(query)
        truth = self.annotator.truth
        if not named.rows and truth is not None:
            raise InputError(
                f"{where}: no class with two images is new among {len(query.unknown)} that look unknown; "
                f"lower keep_known or threshold, or set cycles to {number}"
            )
        earlier = self._named(collective)
        base_before = self._accuracy(collective.network, collective, self.base_of(collective))
        old_before = self._open_accuracy(collective, earlier)
        new = collective.add_named(named, self.stream.images[named.rows])
        open_before = self._open_accuracy(collective, self._named(collective))
        steps, retain_weight = 0, None
        if new:  # an annotator may find nothing of interest
            if strategy == "ewc" and collective.ewc is None:
                self._consolidate(collective, collective.known)
            collective.learn_classes(new)
            rehearsed = list(collective.known) if strategy == "replay" else new
            progress = _Steps(self.events, "cycle", f"{where}, {len(collective.known)} classes known")
            steps, _, retain_weight = self._train(collective, rehearsed, self.settings.open_epochs, strategy, progress)
            if strategy == "ewc":
                self._consolidate(collective, rehearsed)
        flagged = int(recognition.flagged.sum())
        truly = None
        if truth is not None:
            known = set(query.unknown.known)
            truly = sum(truth.stream_names[row] not in known for row in recognition.rows[recognition.flagged])
        in_unknown_set = len(set(named.rows) & set(recognition.rows[recognition.flagged].tolist()))
        record = CycleRecord(
            cycle=number,
            score=score,
            strategy=strategy,
            threshold=recognition.threshold,
            stream=len(recognition.rows),
            unknown_set=flagged,
            truly_unknown=truly,
            named=len(named.rows),
            dismissed=flagged - in_unknown_set,
            classes=[collective.classes[c] for c in new],
            known=len(collective.known),
            before=recognition.metrics,
            after=self.stream.recognise(collective, number + 1, score).metrics,
            open_accuracy_before=open_before,
            open_accuracy_after=self._open_accuracy(collective, self._named(collective)),
            old_open_accuracy_before=old_before,
            old_open_accuracy_after=self._open_accuracy(collective, earlier),
            base_accuracy_before=base_before,
            base_accuracy_after=self._accuracy(collective.network, collective, self.base_of(collective)),
            retain_weight=retain_weight,
            steps=steps,
            seconds=time.perf_counter() - started,
        )
        collective.cycles.append(record)

    def _train(
        self,
        collective: Collective,
        classes: Sequence[int],
        epochs: float,
        strategy: Strategy,
        progress: "_Steps",
        watch: Callable[[list[Tensor]], None] | None = None,
    ) -> tuple[int, float, float | None]:
        """Train on the images of ``classes``; returns steps, loss, and the weight of the EWC penalty.

        Args:
            watch: sees the weight gradients of all convolutions of every eighth batch.
        """
        network, settings = collective.network, self.settings
        target = collective.outputs

        def observe(step: int, steps: int) -> None:
            if watch is not None and step % OBSERVE_EVERY == 0:
                gradients = [layer.conv.weight.grad for layer in network.layers]
                try:
                    watch([gradient for gradient in gradients if gradient is not None])
                except ValueError as error:
                    raise RunFailedError(f"{progress.text}: {error}; lower the collective's learning rate") from error
            progress.say(step + 1, steps)

        retain_weight, regularise = None, None
        if strategy == "ewc" and collective.ewc is not None:
            retain_weight = choose_weight(collective.ewc, settings)
            regularise = partial(collective.ewc.of(network).add_gradient, retain_weight)
        network.train()
        steps, loss = fit(
            network,
            dict(network.named_parameters()),
            collective.images,
            collective.rows_of(classes),
            epochs,
            lambda labels: target[labels],
            settings=settings,
            learning_rate=settings.learning_rate,
            random=collective.random,
            momentum=collective.momentum,
            regularise=regularise,
            observe=observe,
        )
        return steps, loss, retain_weight

    def _consolidate(self, collective: Collective, classes: Sequence[int]) -> None:
        """Add what matters to ``classes`` to what holds the weights, and anchor them where they are."""
        rows = distinct_rows(collective.rows_of(classes), self.settings.ewc_samples, collective.random["fisher"])
        target = collective.outputs

        def batches() -> Iterator[tuple[Tensor, Tensor]]:
            for index in rows.split(FISHER_BATCH):
                x, labels = collective.images.batch(index)
                yield x, target[labels]

        before = collective.ewc or EwcPenalty()
        collective.ewc = before.after_task(
            collective.network, batches(), self.settings.fisher_estimator, collective.random["fisher"]
        )

    def base_of(self, collective: Collective) -> list[int]:
        """The base classes that are known."""
        return [number for number in collective.known if number < len(self.base_classes)]

    def _accuracy(self, network: torch.nn.Module, collective: Collective, classes: Sequence[int]) -> float:
        """On held-out images of base classes, among all known ones, per cent."""
        return _share_right(network, self.heldout_of(classes), collective.outputs)

    def _named(self, collective: Collective) -> dict[str, int]:
        """Number of each class that an annotator named, by its name in small letters."""
        numbers = range(len(self.base_classes), len(collective.classes))
        return {collective.classes[number].casefold(): number for number in numbers}

    def _open_accuracy(self, collective: Collective, named: Mapping[str, int]) -> float | None:
        """On held-out images of these classes, among all known ones, per cent; None where there are none."""
        assert self.annotator is not None
        truth = self.annotator.truth
        rows = [] if truth is None else [r for r, name in enumerate(truth.heldout_names) if name.casefold() in named]
        if truth is None or not rows:
            return None
        labels = np.array([named[truth.heldout_names[row].casefold()] for row in rows])
        images = DeviceImages.load(truth.heldout_images[rows], labels, self.normalisation, self.device)
        return _share_right(collective.network, images, collective.outputs)


def _share_right(network: torch.nn.Module, images: DeviceImages, target: Tensor) -> float:
    return float(accuracy(network, images, lambda labels: target[labels]).double().mean() * 100)
