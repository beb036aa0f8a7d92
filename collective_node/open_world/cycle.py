"""An open-world cycle: recognise a part of the stream, have its unknown images labelled, and train on new classes."""

import time

import numpy as np
from numpy.typing import NDArray

from collective_node import continual_training
from collective_node.collective import Collective
from collective_node.collective_images import CollectiveImages
from collective_node.continual_training import StepEvents
from collective_node.evaluation import Evaluation
from collective_node.evolution_plan import EvolutionPlan, cycle_setup
from collective_node.open_world.annotators import Annotator, LabelQuery
from collective_node.open_world.bias import treat_bias
from collective_node.open_world.stream import FIT_IMAGES_PER_CLASS, Recognition, Stream
from collective_node.records import Comparison, CycleRecord, Named
from collective_node.settings import Score, Strategy
from protocol.errors import InputError, RunFailedError
from protocol.node.events import Events


class OpenWorld:
    """Takes a collective through its open-world cycles.

    Args:
        plan: of the whole evolution.
        images: the collective's folder; its stream is read.
        annotator: names what is unknown.
        evaluation: tests the collective before and after a cycle.
        events: progress.

    Attributes:
        stream: the stream in its parts.
        setup: fingerprint of what the cycles depend on besides the tasks.

    Raises:
        InputError: there is no stream or no annotator, or the stream is too short for the settings.
    """

    def __init__(
        self,
        plan: EvolutionPlan,
        images: CollectiveImages,
        annotator: Annotator | None,
        evaluation: Evaluation,
        events: Events,
    ) -> None:
        settings, stream = plan.settings, images.stream_images
        if stream is None:
            raise InputError("open-world cycles need a stream of images; cut the world again, or set cycles to 0")
        if annotator is None:
            raise InputError("open-world cycles need an annotator of unknown images; give one, or set cycles to 0")
        fitted = int(np.minimum([plan.counts[number] for number in plan.taught], FIT_IMAGES_PER_CLASS).sum())
        if "nearest-neighbour" in (settings.score, *settings.compare_scores) and settings.neighbours > fitted:
            raise InputError(f"neighbours is {settings.neighbours}, more than the {fitted} images that it looks among")
        self._settings, self._annotator, self._evaluation, self._events = settings, annotator, evaluation, events
        self.stream = Stream(stream, evaluation.heldout, annotator.truth, plan.untaught, settings)
        self.setup = cycle_setup(settings, stream, annotator.truth)

    def unnamed(self, collective: Collective) -> NDArray[np.uint8]:
        """Images ``[n, H, W, C]`` of the stream that no annotator named."""
        named = [row for one in collective.named for row in one.rows]
        return np.delete(self.stream.images, named, axis=0)

    def add_named(self, collective: Collective, named: Named) -> list[int]:
        """Give a collective the images of the stream that an annotator named.

        Returns:
            Numbers of the classes among them that are not known; they get no output yet.
        """
        return collective.add_named(named, self.stream.images[named.rows], self._settings.calibration_share)

    def compare(self, collective: Collective, score: Score, strategy: Strategy) -> Comparison:
        """Try all cycles with another score or strategy, on a copy of the collective. An error ends the trial early,
        and not the run."""
        tried, stopped = collective.branch(), None
        try:
            for _ in range(self._settings.cycles):
                self.run_cycle(tried, score, strategy)
        except (InputError, RunFailedError) as error:
            stopped = str(error)
        return Comparison(score=score, strategy=strategy, cycles=tried.cycles, stopped=stopped)

    def run_cycle(self, collective: Collective, score: Score, strategy: Strategy) -> None:
        """Run the collective's next cycle: recognise, query the annotator, add outputs, train, record.

        Args:
            score: decides which images are unknown.
            strategy: against forgetting.

        Raises:
            InputError: no image looks unknown, or the oracle knows no new class among those that do.
            RunFailedError: the loss or a weight is no longer finite.
        """
        started = time.perf_counter()
        evaluation, number = self._evaluation, len(collective.cycles)
        recognition = self.stream.recognise(collective, number, score)
        query = self.stream.query(collective, recognition, number)
        where = self._where(number, score, strategy)
        named = self._labelled(query, where)
        earlier = collective.named_classes
        base_before = evaluation.base_accuracy(collective.network, collective)
        old_before = evaluation.open_accuracy(collective, earlier).among_known
        new = self.add_named(collective, named)
        open_before = evaluation.open_accuracy(collective, collective.named_classes)
        steps, retain_weight = self._learn(collective, new, strategy, where)
        open_after = evaluation.open_accuracy(collective, collective.named_classes)
        flagged = recognition.rows[recognition.flagged]
        record = CycleRecord(
            cycle=number,
            score=score,
            strategy=strategy,
            threshold=recognition.threshold,
            stream=len(recognition.rows),
            unknown_set=len(flagged),
            truly_unknown=self._truly_unknown(query, recognition),
            named=len(named.rows),
            dismissed=len(flagged) - len(set(named.rows) & set(flagged.tolist())),
            classes=[collective.classes[c] for c in new],
            known=len(collective.known),
            before=recognition.metrics,
            after=self.stream.recognise(collective, number + 1, score).metrics,
            open_accuracy_before=open_before.among_known,
            open_accuracy_after=open_after.among_known,
            open_only_accuracy_before=open_before.among_named,
            open_only_accuracy_after=open_after.among_named,
            old_open_accuracy_before=old_before,
            old_open_accuracy_after=evaluation.open_accuracy(collective, earlier).among_known,
            base_accuracy_before=base_before,
            base_accuracy_after=evaluation.base_accuracy(collective.network, collective),
            retain_weight=retain_weight,
            steps=steps,
            seconds=time.perf_counter() - started,
        )
        collective.cycles.append(record)

    def _where(self, number: int, score: Score, strategy: Strategy) -> str:
        where = f"open-world cycle {number + 1} of {self._settings.cycles}"
        if (score, strategy) != (self._settings.score, self._settings.strategy):
            where = f"compared with {score}, {strategy}: {where}"
        return where

    def _labelled(self, query: LabelQuery, where: str) -> Named:
        """The annotator's answer; an oracle without an answer ends the cycle."""
        count = len(query.unknown)
        self._events.append("cycle", 0, 0, f"{where}: {count} unknown images to be named")
        named = self._annotator.name(query)
        if not named.rows and self._annotator.truth is not None:
            raise InputError(
                f"{where}: no class with two images is new among {count} that look unknown; "
                f"lower keep_known or threshold, or set cycles to {query.cycle}"
            )
        return named

    def _learn(
        self, collective: Collective, new: list[int], strategy: Strategy, where: str
    ) -> tuple[int, float | None]:
        """Train on the new classes; returns the steps, and the weight of the EWC penalty."""
        settings = self._settings
        if not new:  # an annotator may find nothing of interest
            return 0, None
        if strategy == "ewc" and collective.ewc is None:
            continual_training.anchor(collective, collective.known, settings)
        collective.learn_classes(new)
        classes = list(collective.known) if strategy == "replay" else new
        events = StepEvents(self._events, "cycle", f"{where}, {len(collective.known)} classes known")
        trained = continual_training.train(
            collective,
            classes,
            settings.open_epochs,
            strategy,
            settings,
            events,
            learning_rate=settings.open_learning_rate,
        )
        steps = trained.steps + treat_bias(collective, new, settings, events)
        if strategy == "ewc":
            continual_training.anchor(collective, classes, settings)
        return steps, trained.retain_weight

    def _truly_unknown(self, query: LabelQuery, recognition: Recognition) -> int | None:
        """Images of the unknown set that are of no known class; None if the truth is unknown."""
        truth = self._annotator.truth
        if truth is None:
            return None
        known = set(query.unknown.known)
        return sum(truth.stream_names[row] not in known for row in recognition.rows[recognition.flagged])
