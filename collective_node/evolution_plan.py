"""The plan of an evolution: what is learned in which order, and the fingerprints that a checkpoint depends on."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from collective_node.collective import Collective
from collective_node.collective_images import CollectiveImages, Truth
from collective_node.enough_images import task_sequence
from collective_node.extraction.criterion import GradientTrend
from collective_node.extraction.extraction import check_layers, check_sizes
from collective_node.network.compact_network import blueprint_for
from collective_node.network.expandable_network import HIDDEN, POOLED, ExpandableNetwork, scaled
from collective_node.network.growth_schedule import Step, Widen, parse, steps_before
from collective_node.network.growth_steps import check_deepening, check_widening
from collective_node.random_states import RandomStates
from collective_node.settings import LATER, CollectiveSettings, Score, Strategy
from collective_node.training import steps_for
from protocol.errors import InputError
from protocol.learngene.images import DeviceImages, Normalisation

#: Settings that only the steps after tasks and cycles depend on: if they change, a checkpoint can still be used.
_AFTER_TASKS = {
    "layers",
    "criterion",
    "descendant_epochs",
    "forms",
    "fisher_samples",
    "blob_dtype",
    "annotator",
    *(
        name
        for name in CollectiveSettings.model_fields
        if name.startswith(("condense_", "distil_", "direct_", "privacy_")) and name != "distil_temperature"
    ),
}
#: Later settings, with the values that leave tasks and cycles as they were: a checkpoint from before can still be used.
_AS_BEFORE: Mapping[str, object] = {
    "parts": 1,
    "classifier": "mlp",
    "consolidate_epochs": 0.0,
    "open_learning_rate": None,
    "bias": "none",
    "calibration_share": 0.0,
    **LATER,
}
#: Settings that say more about another one: where that is off, tasks do not depend on them.
_DETAILS: Mapping[str, tuple[str, ...]] = {
    "rotation": ("rotation_share", "rotation_classes"),
    "randaugment": ("randaugment_magnitude",),
    "consolidate_generations": ("generation_weight", "distil_temperature"),
}
#: Settings that cycles depend on but tasks do not.
_OF_CYCLES = {
    "cycles",
    "classes_per_cycle",
    "examples",
    "open_epochs",
    "open_learning_rate",
    "bias",
    "calibration_share",
    "score",
    "threshold",
    "keep_known",
    "neighbours",
    "compare_scores",
    "compare_strategies",
}
#: Stands for how the EWC penalty is taken: a checkpoint that was made with its gradient does not go on like this.
_EWC_FORM = b"ewc by proximal steps"


@dataclass(frozen=True)
class EvolutionPlan:
    """What a collective learns, and in which order; it follows from settings, seed and images alone.

    Attributes:
        settings: what to learn, and how.
        seed: of everything random.
        classes: names of the base classes.
        counts: training images of each base class.
        image_shape: height, width and channels of an image.
        normalisation: of all images; fixed if the weights must be differentially private.
        sequence: numbers of the classes of each task.
        setup: fingerprint of what the tasks depend on: settings, seed, images, thread count and kind of device.
    """

    settings: CollectiveSettings
    seed: int
    classes: tuple[str, ...]
    counts: tuple[int, ...]
    image_shape: tuple[int, int, int]
    normalisation: Normalisation
    sequence: tuple[tuple[int, ...], ...]
    setup: str

    @classmethod
    def of(
        cls, images: CollectiveImages, settings: CollectiveSettings, seed: int, device: torch.device
    ) -> "EvolutionPlan":
        """Plan an evolution, and check that it fits.

        Raises:
            InputError: the settings ask for more than the images or the network have.
        """
        classes = len(images.classes)
        if settings.classes_per_task > classes:
            raise InputError(f"a task of {settings.classes_per_task} classes does not fit {classes} base classes")
        height, width, channels = images.train_images.shape[1:]
        if _positions(height, width) < 1:
            raise InputError(f"images of {width}x{height} pixels are too small: 32x32 at least")
        if height != width and (settings.rotation or settings.in_condensing.rotation):
            raise InputError(
                f"images of {width}x{height} pixels cannot be turned by a quarter: set rotation and condense_rotation "
                "to 0"
            )
        check_network(settings, channels, height, width)
        return cls(
            settings=settings,
            seed=seed,
            classes=images.classes,
            counts=tuple(np.bincount(images.train_labels, minlength=classes).tolist()),
            image_shape=(height, width, channels),
            normalisation=(
                Normalisation.fixed(channels) if settings.private_weights else Normalisation.of(images.train_images)
            ),
            sequence=tuple(task_sequence(settings, classes, seed)),
            setup=_setup(images, settings, seed, device),
        )

    @property
    def taught(self) -> list[int]:
        """Numbers of the classes that some task teaches, ascending."""
        return sorted({number for task in self.sequence for number in task})

    @property
    def untaught(self) -> set[str]:
        """Names of the base classes that no task teaches."""
        taught = self.taught
        return {name for number, name in enumerate(self.classes) if number not in taught}

    @property
    def taught_images(self) -> int:
        """Training images of all classes that some task teaches."""
        return sum(self.counts[number] for number in self.taught)

    def trained_on(self, number: int) -> list[int]:
        """Classes whose images task ``number`` trains on: its own, and with ``replay`` those of all earlier tasks."""
        seen = self.sequence[: number + 1] if self.settings.strategy == "replay" else [self.sequence[number]]
        return list(dict.fromkeys(c for task in seen for c in task))

    @property
    def task_steps(self) -> list[int]:
        """Batches of each task."""
        images = [sum(self.counts[c] for c in self.trained_on(number)) for number in range(len(self.sequence))]
        return [steps_for(self.settings.epochs, count, self.settings.batch_size) for count in images]

    @property
    def compared(self) -> list[tuple[Score, Strategy]]:
        """Scores and strategies whose cycles are tried besides the settings' own; none if there are no cycles."""
        if self.settings.cycles == 0:
            return []
        own = self.settings.score, self.settings.strategy
        pairs = [(score, own[1]) for score in self.settings.compare_scores]
        pairs += [(own[0], strategy) for strategy in self.settings.compare_strategies]
        return [pair for pair in dict.fromkeys(pairs) if pair != own]

    def begin(self, images: DeviceImages) -> Collective:
        """The collective before its first task.

        Args:
            images: its training images, on the device where it is trained.
        """
        settings = self.settings
        height, width, channels = self.image_shape
        random = RandomStates(self.seed)
        network = ExpandableNetwork(
            _first_widths(settings),
            channels=channels,
            positions=_positions(height, width),
            hidden=scaled(HIDDEN, settings.width) if settings.classifier == "mlp" else 0,
            dropout=settings.dropout,
            generator=random["weights"],
            cosine=settings.classifier == "cosine",
            tells_turns=settings.rotation > 0,
        )
        network = network.to(images.pixels.device).to(memory_format=torch.channels_last)
        trend = GradientTrend(len(network.layers), settings.sigma)
        if settings.copies == "undivided":
            trend.fractions = [None] * trend.layers
        return Collective(network, random, trend, images, len(self.classes), list(self.classes))

    def grow(self, collective: Collective, number: int) -> None:
        """Take the growth steps before task ``number``, and add outputs for its new classes."""
        for step in steps_before(parse(self.settings.expansion), number, len(self.sequence)):
            collective.grow(step, width=self.settings.width, noise=self.settings.growth_noise)
        collective.learn_classes(self.sequence[number])

    def untrained(self, images: DeviceImages) -> Collective:
        """The collective as large as after its last task, with first weights: it has learned nothing."""
        collective = self.begin(images)
        for number in range(len(self.sequence)):
            self.grow(collective, number)
        return collective


def check_network(settings: CollectiveSettings, channels: int, height: int = 32, width: int = 32) -> None:
    """Refuse, before training, a growth step, a number of inherited layers or smaller sizes that do not fit.

    Sizes of a compact network that is shaped after the grown collective, or whose number of layers is found, are
    checked when these are known.

    Args:
        channels, height, width: of the input images; the smallest that there may be, if they are not known yet.

    Raises:
        InputError: one does not; the text says what to set.
    """
    depth = len(grown_widths(settings, channels))
    check_layers(settings, layers=depth, tasks=settings.tasks)
    if settings.condense_sizes and settings.budget is not None and settings.layers is not None:
        planned = blueprint_for(settings.budget, channels=channels, top=settings.layers, pools=settings.condense_pools)
        check_sizes(planned, settings, (height, width, channels))


def grown_widths(settings: CollectiveSettings, channels: int) -> tuple[int, ...]:
    """Output channels of each convolution after all growth steps of the settings.

    Args:
        channels: of the input images.

    Raises:
        InputError: a step does not fit the network as it is by then.
    """
    widths = _first_widths(settings)
    try:
        for step in parse(settings.expansion):
            _grow(widths, step, settings.width, channels)
    except ValueError as error:
        raise InputError(f"expansion: {error}") from error
    return tuple(widths)


def _grow(widths: list[int], step: Step, width: float, channels: int) -> None:
    if isinstance(step, Widen):
        extra = scaled(step.extra, width)
        check_widening(widths, step.layer, extra)
        widths[step.layer] += extra
    else:
        check_deepening(widths, step.layer, step.way, channels=channels)
        widths.insert(step.layer, widths[step.layer])


def _first_widths(settings: CollectiveSettings) -> list[int]:
    return [scaled(channel, settings.width) for channel in settings.base_widths]


def _positions(height: int, width: int) -> int:
    """Positions of the last feature map."""
    return (height >> len(POOLED)) * (width >> len(POOLED))


def _setup(images: CollectiveImages, settings: CollectiveSettings, seed: int, device: torch.device) -> str:
    idle = {detail for name, details in _DETAILS.items() if not getattr(settings, name) for detail in details}
    left_out = _AFTER_TASKS | _OF_CYCLES | _as_before(settings) | idle
    digest = hashlib.sha256(settings.model_dump_json(exclude=left_out).encode())
    if settings.strategy == "ewc":
        digest.update(_EWC_FORM)
    digest.update(f"seed {seed}, {torch.get_num_threads()} threads, {device.type}".encode())
    for array in (images.train_images, images.train_labels, images.heldout_images, images.heldout_labels):
        digest.update(array.tobytes())
    return digest.hexdigest()


def _as_before(settings: CollectiveSettings) -> set[str]:
    """Names of the later settings that mean here what was meant before they were there."""
    return {name for name, value in _AS_BEFORE.items() if getattr(settings, name) == value}


def cycle_setup(settings: CollectiveSettings, stream: NDArray[np.uint8], truth: Truth | None) -> str:
    """Fingerprint of what the open-world cycles depend on besides the tasks.

    Args:
        stream: uint8 ``[N, H, W, C]``.
        truth: what is known about the stream.
    """
    digest = hashlib.sha256(settings.model_dump_json(include=_OF_CYCLES - _as_before(settings)).encode())
    if "ewc" in settings.compare_strategies:
        digest.update(_EWC_FORM)
    digest.update(stream.tobytes())
    if truth is not None:
        digest.update("\n".join((*truth.stream_names, *truth.heldout_names)).encode())
        digest.update(truth.heldout_images.tobytes())
    return digest.hexdigest()
