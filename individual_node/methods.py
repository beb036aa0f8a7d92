"""Every method of the table on every target task: with a learngene, from scratch, and with no network at all."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from individual_node.adaptation import adapt, network_views, stacked, task_generator, test_accuracy
from individual_node.feature_head import FeatureHeads, handover_of
from individual_node.floor import floor_predictions
from individual_node.method_table import METHODS, Method, Scored
from individual_node.random_weights import random_networks
from individual_node.reconstruction import IndividualNetworks
from individual_node.settings import IndividualSettings
from individual_node.target_tasks import PrivateImages, TargetTask
from individual_node.views import SHIFTS, inherited_features
from protocol.errors import InputError
from protocol.learngene.architecture import Form, SizeName
from protocol.learngene.images import DeviceImages, Normalisation
from protocol.learngene.learngene import Learngene
from protocol.learngene.network import ConvolutionBlock, build_blocks, layers_of, load_blocks
from protocol.learngene.side_by_side import side_by_side
from protocol.learngene.sizes import descend
from protocol.node.events import Events

#: Epochs after which the learning curves look at the test images, besides the last.
CURVE_EPOCHS = (1, 2, 3, 5, 7, 10, 15, 20, 25, 30, 40, 50, 70, 100)


@dataclass
class Outcome:
    """Result of one method at one shot count: accuracy in per cent by task number, the learning curve (by epoch), and
    every lambda of Eq. 9 that was used."""

    accuracy: dict[int, float] = field(default_factory=dict)
    curve: dict[int, list[float]] = field(default_factory=dict)
    retain_weights: list[float] = field(default_factory=list)

    @classmethod
    def together(cls, parts: Sequence["Outcome"]) -> "Outcome":
        """The outcome of all tasks, from those of some each, in the order of the tasks."""
        whole = cls()
        for part in parts:
            whole.accuracy |= part.accuracy
            whole.retain_weights += part.retain_weights
            for epoch, values in part.curve.items():
                whole.curve.setdefault(epoch, []).extend(values)
        return whole


#: A piece of work that depends on no other.
Piece = Callable[[], Outcome]


@dataclass(frozen=True)
class Evaluation:
    """An individual's images and what it inherited: what every method works with.

    Args:
        learngenes: by form; a method whose form is missing cannot run.
        images: the individual's folder.
        seed: of the individual's own randomness.
    """

    learngenes: Mapping[Form, Learngene]
    images: PrivateImages
    settings: IndividualSettings
    seed: int
    device: torch.device
    events: Events

    def run(self, name: str, shots: int, size: SizeName | None = None) -> Outcome:
        """Run one method, by its name, on all target tasks of a shot count; every task starts from the beginning.

        Args:
            size: of the learngene; None: as the settings say.

        Raises:
            InputError: there is no learngene in its form or of its size, or the settings and it do not fit.
        """
        return Outcome.together(side_by_side(lambda piece: piece(), self._pieces(Scored(METHODS[name], size), shots)))

    def run_all(self) -> tuple[dict[str, dict[int, Outcome]], dict[str, float]]:
        """Every method of the settings at every shot count and size, side by side, and the processor seconds that each
        took; by name (:class:`individual_node.method_table.Scored`)."""
        scored = self.settings.scored
        listed = [(one, shots) for one in scored for shots in sorted(self.images.tasks)]
        pieces = [(one.name, shots, piece) for one, shots in listed for piece in self._pieces(one, shots)]
        done = side_by_side(lambda one: _timed(one[2]), pieces)
        parts: dict[tuple[str, int], list[Outcome]] = {(one.name, shots): [] for one, shots in listed}
        seconds = {one.name: 0.0 for one in scored}
        for (name, shots, _), (outcome, taken) in zip(pieces, done, strict=True):
            parts[name, shots].append(outcome)
            seconds[name] += taken
        found: dict[str, dict[int, Outcome]] = {one.name: {} for one in scored}
        for (name, shots), outcomes in parts.items():
            found[name][shots] = Outcome.together(outcomes)
        return found, seconds

    def learngene(self, form: Form, size: SizeName | None = None) -> Learngene:
        """The learngene of a form, at this size or, for None, at that of the settings.

        Raises:
            InputError: there is none.
        """
        if form not in self.learngenes:
            raise InputError(f"there is no learngene in the form {form!r}")
        whole = self.learngenes[form]
        return descend(whole, size or self.settings.size_of(whole.architecture))

    def _pieces(self, scored: Scored, shots: int) -> list[Piece]:
        """The independent pieces of a method's work at a shot count."""
        method, tasks = scored.method, self.images.tasks[shots]
        if scored.descent is not None:
            changed = replace(self, settings=self.settings.with_descent(scored.descent))
            return changed._pieces(replace(scored, descent=None), shots)
        if method.form is None:
            return self._floor(tasks, shots)
        if method.form not in self.learngenes:
            raise InputError(f"the method {method.name!r} needs a learngene in the form {method.form!r}")
        learngene = self.learngene(method.form, scored.size)
        if method.adaptation == "head":
            return [partial(self._head, method, learngene, tasks, shots)]
        return self._networks(method, learngene, tasks, shots)

    def _loaded(self, learngene: Learngene) -> tuple[DeviceImages, DeviceImages]:
        """Support and test images on the device, normalised by the learngene's input contract."""
        contract = learngene.architecture.input
        shape = (contract.height, contract.width, contract.channels)
        for images in (self.images.support_images, self.images.test_images):
            if images.shape[1:] != shape:
                raise InputError(f"the learngene takes images of {shape}, the folder holds {images.shape[1:]}")
        normalisation = Normalisation(learngene.tensors["input.mean"], learngene.tensors["input.std"])

        def load(images: NDArray[np.uint8]) -> DeviceImages:
            return DeviceImages.load(images, np.zeros(len(images), np.int64), normalisation, self.device)

        return load(self.images.support_images), load(self.images.test_images)

    def _networks(self, method: Method, learngene: Learngene, tasks: Sequence[TargetTask], shots: int) -> list[Piece]:
        """Methods with a network for each task, many tasks as one batched network."""
        support, test = self._loaded(learngene)
        done = 0
        units = self.settings.schedule_of(method)[1] if method.trains else 1
        progress = _Progress(self.events, len(tasks) * units, f"{method.name}, {shots} shots")
        curves = method.trains and not method.head and shots == min(self.images.tasks)
        pieces: list[Piece] = []
        for group in groups(tasks, self.settings.networks_at_once):
            generators = [task_generator(self.seed, method.start, shots, task.number) for task in group]
            if method.trains:
                watched = max(0, min(len(group), self.settings.curve_tasks - done)) if curves else 0
                work = partial(self._trained, method, learngene, group, support, test, watched, progress, generators)
            else:
                work = partial(self._random, learngene, group, support, test, progress, generators)
            pieces.append(work)
            done += len(group)
        return pieces

    def _trained(
        self,
        method: Method,
        learngene: Learngene,
        group: Sequence[TargetTask],
        support: DeviceImages,
        test: DeviceImages,
        watched: int,
        progress: "_Progress",
        generators: Sequence[torch.Generator],
    ) -> Outcome:
        """Train a network for each task of a group; the learning curve is that of the first ``watched``."""
        outcome, (_, epochs) = Outcome(), self.settings.schedule_of(method)

        def observe(epoch: int, model: IndividualNetworks) -> None:
            progress.report(len(group))
            if watched and (epoch in CURVE_EPOCHS or epoch == epochs):
                outcome.curve.setdefault(epoch, []).extend(test_accuracy(model, group, test)[:watched])

        inherited = learngene if method.inherits else None
        adapted = adapt(
            method, learngene.architecture, inherited, group, support, self.settings, generators, observe=observe
        )
        outcome.retain_weights.extend(adapted.retain_weights)
        if method.head:
            outcome.accuracy.update(self._headed(adapted.networks, group, support, test))
        else:
            found = test_accuracy(adapted.networks, group, test)
            outcome.accuracy.update({task.number: value for task, value in zip(group, found, strict=True)})
        return outcome

    def _random(
        self,
        learngene: Learngene,
        group: Sequence[TargetTask],
        support: DeviceImages,
        test: DeviceImages,
        progress: "_Progress",
        generators: Sequence[torch.Generator],
    ) -> Outcome:
        """The logistic head on features of random weights."""
        networks = random_networks(learngene.architecture, group, support, generators, self.settings.view_shifts)
        outcome = Outcome(self._headed(networks, group, support, test))
        progress.report(len(group))
        return outcome

    def _headed(
        self, networks: IndividualNetworks, group: Sequence[TargetTask], support: DeviceImages, test: DeviceImages
    ) -> dict[int, float]:
        """Accuracies of the logistic head on the features of each task's own network."""
        rows, labels = stacked(group)
        copies = [network_views(networks, rows, support, shift) for shift in self._shifts]
        known = [torch.cat(view, 1) for view in zip(*copies, strict=True)]
        heads = FeatureHeads.fit(known, labels.T.to(self.device), group[0].ways, self.settings.head)
        unknown = network_views(networks, torch.from_numpy(np.stack([task.test for task in group], 1)), test)
        return _scores(group, heads.predict(unknown))

    @property
    def _shifts(self) -> Sequence[tuple[int, int]]:
        """The shifts of a support image from which a head learns."""
        return SHIFTS[: 1 + self.settings.support_shifts]

    def _head(self, method: Method, learngene: Learngene, tasks: Sequence[TargetTask], shots: int) -> Outcome:
        """A logistic head on the inherited features, which stay as they are."""
        network = build_blocks(learngene.architecture.blocks)
        blocks = layers_of(network)
        load_blocks(blocks, learngene.tensors)
        network.to(self.device).to(memory_format=torch.channels_last).eval()
        handover = handover_of(learngene.architecture)
        support, test = self._loaded(learngene)
        rows = [task.support for task in tasks]
        views_of = partial(_features, blocks, handover, view_shifts=self.settings.view_shifts)
        copies = [views_of(support, rows, shift) for shift in self._shifts]
        test_views = views_of(test, [task.test for task in tasks])
        outcome, progress = Outcome(), _Progress(self.events, len(tasks), f"{method.name}, {shots} shots")
        for group in groups(tasks, self.settings.networks_at_once):
            chosen = [torch.from_numpy(task.support) for task in group]
            known = [
                torch.stack([torch.cat([view[index] for view in views]) for index in chosen])
                for views in zip(*copies, strict=True)
            ]
            unknown = [torch.stack([view[torch.from_numpy(task.test)] for task in group]) for view in test_views]
            labels = torch.from_numpy(np.stack([task.support_labels for task in group])).to(self.device)
            heads = FeatureHeads.fit(known, labels, group[0].ways, self.settings.head)
            outcome.accuracy.update(_scores(group, heads.predict(unknown)))
            progress.report(len(group))
        return outcome

    def _floor(self, tasks: Sequence[TargetTask], shots: int) -> list[Piece]:
        """Whitened patches of the support images, task by task."""
        progress = _Progress(self.events, len(tasks), f"floor, {shots} shots")

        def predict(task: TargetTask) -> Outcome:
            predicted = floor_predictions(
                _unit(self.images.support_images[task.support], self.device),
                torch.from_numpy(task.support_labels).to(self.device),
                _unit(self.images.test_images[task.test], self.device),
                ways=task.ways,
                filters=self.settings.patches,
                penalty=self.settings.floor_penalty,
                generator=task_generator(self.seed, "floor", shots, task.number),
            )
            progress.report(1)
            return Outcome(_scores([task], predicted[None]))

        return [partial(predict, task) for task in tasks]


class _Progress:
    """Counts what several pieces of work have done together, and reports it as events."""

    def __init__(self, events: Events, total: int, text: str) -> None:
        self._events, self._total, self._text = events, total, text
        self._done, self._lock = 0, threading.Lock()

    def report(self, units: int) -> None:
        """So many more units are done."""
        with self._lock:
            self._done += units
            self._events.append("method", self._done, self._total, self._text)


def _timed(piece: Piece) -> tuple[Outcome, float]:
    """A piece's outcome, and the processor seconds of its thread."""
    started = time.thread_time()
    return piece(), time.thread_time() - started


def groups(tasks: Sequence[TargetTask], size: int) -> Iterator[Sequence[TargetTask]]:
    """Runs of at most ``size`` tasks that have equally many ways, support images of each class and test images."""
    alike: dict[tuple[tuple[int, ...], int], list[TargetTask]] = {}
    for task in tasks:
        alike.setdefault((tuple(sorted(task.images_per_class())), len(task.test)), []).append(task)
    for found in alike.values():
        for start in range(0, len(found), size):
            yield found[start : start + size]


def _features(
    blocks: Sequence[ConvolutionBlock],
    handover: int,
    images: DeviceImages,
    rows: Sequence[NDArray[np.int64]],
    shift: tuple[int, int] = (0, 0),
    *,
    view_shifts: int,
) -> list[Tensor]:
    """Both views ``[len(images), F]`` of the rows that are used; the others stay 0."""
    used = np.unique(np.concatenate(rows))
    views = []
    for found in inherited_features(blocks, handover, images, used, shift, view_shifts):
        view = found.new_zeros((len(images), found.shape[1]))
        view[torch.from_numpy(used).to(found.device)] = found
        views.append(view)
    return views


def _unit(images: NDArray[np.uint8], device: torch.device) -> Tensor:
    return torch.from_numpy(images).to(device).permute(0, 3, 1, 2).float() / 255


def _scores(group: Sequence[TargetTask], predicted: Tensor) -> dict[int, float]:
    """Accuracy in per cent by task number, of predictions ``[tasks, n]``."""
    return {
        task.number: float((row.cpu().numpy() == task.test_labels).mean() * 100)
        for task, row in zip(group, predicted, strict=True)
    }
