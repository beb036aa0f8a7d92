"""Times forty target tasks of an individual beside one after the other, and the heads beside scikit-learn's."""

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from individual_node import floor
from individual_node.adaptation import adapt, task_generator, test_accuracy
from individual_node.feature_head import FeatureHeads
from individual_node.method_table import METHODS
from individual_node.methods import Evaluation
from individual_node.settings import IndividualSettings
from individual_node.target_tasks import PrivateImages, TargetTask
from individual_node.views import centred_and_normalised
from protocol.learngene.architecture import Architecture, Block, InputContract
from protocol.learngene.images import DeviceImages, Normalisation
from protocol.learngene.learngene import Learngene
from protocol.learngene.side_by_side import side_by_side, worker_count
from protocol.node.events import Events, Observer
from sims.bench.made_bundle import random_learngene
from sims.bench.rows import Clock, Comparison, Row, compare, seconds_of

WAYS, SHOTS, TESTS = 5, 10, 15
_IMAGES = 1500
_CPU = torch.device("cpu")


def paper_learngene(width: int = 128) -> Learngene:
    """A random learngene in the paper's form, as wide as that of ``quick``."""
    blocks = tuple(Block(role="top", in_channels=width, out_channels=width, pool=number == 2) for number in range(3))
    contract = InputContract(height=32, width=32, channels=3)
    found = random_learngene(Architecture(form="paper", input=contract, blocks=blocks), np.random.default_rng(0))
    # The diagonal of a trained network is small; with large entries lambda would be held down.
    tensors = {name: value * (1e-3 if name.startswith("fisher.") else 1) for name, value in found.tensors.items()}
    return Learngene(found.architecture, tensors, found.fisher)


class AdaptationWork:
    """An individual with target tasks on images of noise, five ways and ten shots.

    Args:
        tasks: how many.
        epochs: of adaptation.
        learngene: what it inherits, in the paper's form.
        folder: where progress is recorded.
    """

    def __init__(self, tasks: int, epochs: int, learngene: Learngene, folder: Path) -> None:
        rng = np.random.default_rng(0)
        noise = rng.integers(0, 256, (_IMAGES, 32, 32, 3), dtype=np.uint8)
        self.tasks = [_task(number, rng) for number in range(tasks)]
        self.settings = IndividualSettings(methods=("paper",), epochs=epochs)
        images = PrivateImages(noise, noise, {SHOTS: self.tasks})
        events = Events(folder / "events.jsonl")
        self._evaluation = Evaluation({"paper": learngene}, images, self.settings, 0, _CPU, events)
        self._learngene = learngene
        normalisation = Normalisation(learngene.tensors["input.mean"], learngene.tensors["input.std"])
        self._images = DeviceImages.load(noise, np.zeros(_IMAGES, np.int64), normalisation, _CPU)
        self._noise = noise

    def together(self) -> dict[int, float]:
        """Every task adapted and tested, as a node does it: accuracy by the task's number."""
        return self._evaluation.run("paper", SHOTS).accuracy

    def alone(self) -> dict[int, float]:
        """The same, one task after the other, each with all threads."""
        found = {}
        for task in self.tasks:
            generators = [task_generator(0, METHODS["paper"].start, SHOTS, task.number)]
            architecture = self._learngene.architecture
            adapted = adapt(
                METHODS["paper"], architecture, self._learngene, [task], self._images, self.settings, generators
            )
            [found[task.number]] = test_accuracy(adapted.networks, [task], self._images)
        return found

    def floor(self) -> dict[int, float]:
        """The transfer-free floor on every task, as a node does it."""
        return self._evaluation.run("floor", SHOTS).accuracy

    def floor_alone(self) -> dict[int, float]:
        """The same features in float32, one task after the other, with scikit-learn's head."""
        found = {}
        for task in self.tasks:
            x = _floor_features(self._noise, task, self.settings.patches)
            known, unknown = x[: len(task.support)], x[len(task.support) :]
            centre, spread = known.mean(0), known.std(0, ddof=1) + 1e-2 * known.std(ddof=1)
            known, unknown = ((part - centre) / (spread * known.shape[1] ** 0.5) for part in (known, unknown))
            predicted = _scikit_learn(known, task.support_labels, unknown, self.settings.floor_penalty)
            found[task.number] = float((predicted == task.test_labels).mean() * 100)
        return found


class HeadWork:
    """Features of many tasks, and a logistic head on each.

    Args:
        tasks: how many.
        features: of each of the two views.
    """

    def __init__(self, tasks: int, features: int = 512) -> None:
        generator = torch.Generator().manual_seed(0)
        labels = torch.arange(WAYS).repeat_interleave(SHOTS)
        means = torch.randn(tasks, WAYS, features, generator=generator)
        self._labels = labels.expand(tasks, -1)
        # Nearly separable, as features of a trained network are.
        self._known = [self._drawn(means, labels, generator) for _ in range(2)]
        tests = torch.arange(WAYS).repeat_interleave(TESTS)
        self._unknown = [self._drawn(means, tests, generator) for _ in range(2)]
        self._settings = IndividualSettings().head

    def together(self) -> Tensor:
        """The classes predicted by a head for each task, many fitted at once: ``[tasks, n]``."""
        groups = torch.arange(len(self._labels)).tensor_split(worker_count())
        return torch.cat(side_by_side(self._group, groups))

    def _group(self, tasks: Tensor) -> Tensor:
        known, unknown = ([view[tasks] for view in views] for views in (self._known, self._unknown))
        return FeatureHeads.fit(known, self._labels[tasks], WAYS, self._settings).predict(unknown)

    def alone(self) -> Tensor:
        """The same by scikit-learn, task by task."""
        centres = [view.mean(1, keepdim=True) for view in self._known]
        known, unknown = (centred_and_normalised(views, centres).numpy() for views in (self._known, self._unknown))
        labels = self._labels.numpy()
        parts = zip(known, labels, unknown, strict=True)
        return torch.stack(
            [torch.from_numpy(_scikit_learn(a, b, c, self._settings.default.penalty)) for a, b, c in parts]
        )

    @staticmethod
    def _drawn(means: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        return means[:, labels] + 2 * torch.randn(len(means), len(labels), means.shape[2], generator=generator)


def measure(repeats: int, clock: Clock, observe: Observer, tasks: int = 40, epochs: int = 20) -> list[Row]:
    """The rows of ``learngene bench adapt``.

    Args:
        repeats: of everything, each side in turn.
        observe: progress.
        tasks: how many.
        epochs: of adaptation.
    """
    with tempfile.TemporaryDirectory(prefix="learngene-bench-") as folder:
        work, heads = AdaptationWork(tasks, epochs, paper_learngene(), Path(folder)), HeadWork(tasks)
        sides: list[tuple[str, Callable[[], object], Callable[[], object], str]] = [
            (
                f"{tasks} tasks of {SHOTS} shots, {epochs} epochs of Eq. 9, beside one after the other",
                work.together,
                work.alone,
                "at least 3",
            ),
            (
                f"logistic heads of {tasks} tasks, beside scikit-learn one by one",
                heads.together,
                heads.alone,
                "at least 5",
            ),
            (f"floor of {tasks} tasks, beside scikit-learn one by one", work.floor, work.floor_alone, "at least 5"),
        ]
        return compare(
            [
                Comparison(
                    name, partial(_rate, ours, tasks, clock), partial(_rate, other, tasks, clock), "tasks/s", target
                )
                for name, ours, other, target in sides
            ],
            repeats,
            observe,
        )


def _rate(work: Callable[[], object], tasks: int, clock: Clock) -> float:
    return tasks / seconds_of(work, clock)


def _task(number: int, rng: np.random.Generator) -> TargetTask:
    rows, tests = rng.permutation(_IMAGES)[: WAYS * SHOTS], rng.permutation(_IMAGES)[: WAYS * TESTS]
    ways = np.arange(WAYS)
    return TargetTask(number, WAYS, rows, ways.repeat(SHOTS), tests, ways.repeat(TESTS))


def _floor_features(noise: NDArray[np.uint8], task: TargetTask, filters: int) -> NDArray[np.float32]:
    """What the floor computes of a task's images, written out: every patch whitened, both signs, four quadrants, and
    then the mean over image and mirror image."""
    support, test = (
        torch.from_numpy(noise[rows]).permute(0, 3, 1, 2).float() / 255 for rows in (task.support, task.test)
    )
    generator = task_generator(0, "floor", SHOTS, task.number)
    chosen, mean, matrix = floor.whitened_filters(support, filters, generator)
    features = []
    for image in torch.cat([support, test]).split(1):
        views = []
        for picture in (image, image.flip(3)):
            response = (floor.normalised_patches(picture) - mean) @ matrix @ chosen.T
            side = round(response.shape[1] ** 0.5)
            both = torch.cat([response.relu(), (-response).relu()], 2)
            views.append((floor.quadrant_means(side) @ both).flatten())
        features.append((views[0] + views[1]) / 2)
    return torch.stack(features).numpy()


def _scikit_learn(
    known: NDArray[np.float32], labels: NDArray[np.int64], unknown: NDArray[np.float32], penalty: float
) -> NDArray[np.int64]:
    head = LogisticRegression(C=1 / penalty, max_iter=1000).fit(known, labels)
    predicted: NDArray[np.int64] = head.predict(unknown)
    return predicted
