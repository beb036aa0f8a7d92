"""Adaptation by Eq. 9: cross-entropy and the retain loss, for many small target tasks as one batched network."""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from individual_node.front_start import start_with_patches
from individual_node.method_table import Method
from individual_node.reconstruction import IndividualNetworks, reconstruct
from individual_node.settings import IndividualSettings
from individual_node.statistics_matching import StatisticsMatching
from individual_node.target_tasks import TargetTask
from individual_node.views import shifted
from protocol.errors import InputError, RunFailedError
from protocol.learngene.architecture import Architecture
from protocol.learngene.fisher import fisher_diagonal
from protocol.learngene.images import CropAndFlip, DeviceImages, autocast
from protocol.learngene.learngene import Learngene
from protocol.learngene.network import block_tensors
from protocol.learngene.retain_loss import RetainLoss, largest_stable_weight

#: lambda of Table 3.
PAPER_RETAIN = 1000.0
#: Images at once where nothing is trained.
AT_ONCE = 50
#: Called after each epoch with its number (from 1) and the networks as they would be handed over then.
EpochObserver = Callable[[int, IndividualNetworks], None]


def stable_retain_weight(largest: float, settings: IndividualSettings) -> float:
    """The lambda of Eq. 9 for a largest Fisher entry: the setting, or the paper's 1000 kept at half of what is stable.

    Raises:
        InputError: the setting's lambda would diverge (says what would not).
    """
    limit = largest_stable_weight(settings.learning_rate, largest, settings.momentum)
    if settings.retain_weight is None:
        return min(PAPER_RETAIN, limit / 2)
    if settings.retain_weight > limit:
        raise InputError(
            f"learning rate {settings.learning_rate:g} x lambda {settings.retain_weight:g} x largest Fisher entry "
            f"{largest:.3g} is above {2 * (1 + settings.momentum):g}, so adaptation would diverge; "
            f"choose lambda at most {limit:.3g}"
        )
    return settings.retain_weight


def choose_retain_weight(learngene: Learngene, settings: IndividualSettings) -> float:
    """:func:`stable_retain_weight` for the Fisher diagonal that a learngene carries.

    Raises:
        InputError: as there, or there is no Fisher diagonal.
    """
    if learngene.fisher is None:
        raise InputError("Eq. 9 needs a learngene with a Fisher diagonal, and this one carries none")
    largest = max(float(tensor.max()) for name, tensor in learngene.tensors.items() if name.startswith("fisher."))
    return stable_retain_weight(largest, settings)


def task_generator(seed: int, purpose: str, shots: int, task: int) -> torch.Generator:
    """The one source of randomness of a target task: the same whatever else runs, and in whatever order."""
    words = [seed, *purpose.encode(), shots, task]
    return torch.Generator().manual_seed(int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> 1))


def channels_joined(x: Tensor, networks: int) -> Tensor:
    """``[N * networks, C, H, W]`` (network fastest) to ``[N, networks * C, H, W]``, channels-last in memory."""
    n, channels, height, width = x.shape
    x = x.permute(0, 2, 3, 1).reshape(n // networks, networks, height, width, channels)
    x = x.permute(0, 2, 3, 1, 4).reshape(n // networks, height, width, networks * channels)
    return x.contiguous().permute(0, 3, 1, 2)


@dataclass(frozen=True)
class Adapted:
    """Result of adaptation.

    Attributes:
        networks: one per target task, in evaluation mode.
        retain_weights: every lambda of Eq. 9 that was used; empty where nothing was retained.
    """

    networks: IndividualNetworks
    retain_weights: list[float]


def own_fisher(
    model: IndividualNetworks,
    tasks: Sequence[TargetTask],
    images: DeviceImages,
    settings: IndividualSettings,
    generators: Sequence[torch.Generator],
) -> tuple[dict[str, Tensor], list[float]]:
    """Fisher diagonals of the inherited parameters on each task's own support images (Algorithm 1, Eq. 7).

    Through each network's own current head and in evaluation mode; the images are not augmented. A diagonal from so few
    images may tell something about them: it never leaves the individual.

    Args:
        generators: one per task, draws the labels of the estimator ``sampled``.

    Returns:
        ``lambda F`` by parameter name, the networks stacked along the first axis, and each network's lambda.

    Raises:
        InputError: the setting's lambda would diverge.
    """
    weighted: list[dict[str, Tensor]] = []
    retain_weights = []
    for index, (task, generator) in enumerate(zip(tasks, generators, strict=True)):
        front, inherited, head = model.network(index).parts()
        labels = torch.from_numpy(task.support_labels).to(images.pixels.device)
        rows = torch.from_numpy(task.support)
        batches = [(images.batch(rows[chosen])[0], labels[chosen]) for chosen in torch.arange(len(rows)).split(AT_ONCE)]
        diagonal, _ = fisher_diagonal(inherited, head, batches, settings.fisher_estimator, generator, front=front)
        retain_weight = stable_retain_weight(max(float(entries.max()) for entries in diagonal.values()), settings)
        weighted.append({name: retain_weight * entries for name, entries in diagonal.items()})
        retain_weights.append(retain_weight)
    return {name: torch.cat([one[name] for one in weighted]) for name in weighted[0]}, retain_weights


class BestWeights:
    """Each network's weights at its own lowest validation loss, until it has not improved for ``patience`` epochs.

    Attributes:
        networks: with the best weights so far, those of the start before the first look.
    """

    def __init__(self, model: IndividualNetworks, patience: int) -> None:
        self.networks = copy.deepcopy(model)
        self._patience = patience
        self._lowest = torch.full((model.networks,), float("inf"))
        self._since = torch.zeros(model.networks, dtype=torch.int64)

    @property
    def over(self) -> bool:
        """Whether every network's patience is over: nothing that it learns counts any more."""
        return bool((self._since >= self._patience).all())

    @torch.no_grad()
    def look(self, model: IndividualNetworks, losses: Tensor) -> None:
        """Keep what is better, from the networks after an epoch and their validation losses ``[networks]``."""
        better = (self._since < self._patience) & (losses < self._lowest)
        self._lowest = torch.where(better, losses, self._lowest)
        self._since = torch.where(better, 0, self._since + 1)
        best, chosen = self.networks.state_dict(), better.nonzero()[:, 0]
        for name, value in model.state_dict().items():
            if value.ndim:
                rows = chosen.to(value.device)
                apart = (model.networks, -1)
                best[name].unflatten(0, apart)[rows] = value.unflatten(0, apart)[rows]


class _Retained:
    """What Eq. 8 holds in a group of networks: nothing, or the inherited values, by one source of the Fisher diagonal.

    Attributes:
        weights: every lambda of Eq. 9 that was used.

    Raises:
        InputError: lambda would diverge, or the learngene has no Fisher diagonal and the method needs it.
    """

    def __init__(
        self, method: Method, model: IndividualNetworks, learngene: Learngene | None, settings: IndividualSettings
    ) -> None:
        self._model, self._settings = model, settings
        self._own = method.fisher == "individual" and learngene is not None
        self._inherited = {name: t for name, t in block_tensors(model.inherited).items() if t.requires_grad}
        self._values = {name: tensor.detach().clone() for name, tensor in self._inherited.items()}
        self._loss: RetainLoss | None = None
        self._weight = 1.0
        self.weights: list[float] = []
        if method.fisher == "collective" and learngene is not None:
            self._weight = choose_retain_weight(learngene, settings)
            self._loss = RetainLoss.of(model.inherited, learngene) if self._weight > 0 else None
            self.weights = [self._weight]

    def renew(
        self,
        epoch: int,
        tasks: Sequence[TargetTask],
        images: DeviceImages,
        generators: Sequence[torch.Generator],
    ) -> None:
        """Take the individuals' own Fisher diagonals, where they are the source and are due before this epoch."""
        if self._own and (epoch - 1) % self._settings.fisher_every == 0:
            fisher, found = own_fisher(self._model, tasks, images, self._settings, generators)
            self._loss = RetainLoss(self._inherited, self._values, fisher)  # lambda is in it: each network has its own
            self.weights.extend(found)

    def add_gradient(self) -> None:
        """Add the gradient of lambda times Eq. 8."""
        if self._loss is not None:
            self._loss.add_gradient(self._weight)


def adapt(
    method: Method,
    architecture: Architecture,
    learngene: Learngene | None,
    tasks: Sequence[TargetTask],
    images: DeviceImages,
    settings: IndividualSettings,
    generators: Sequence[torch.Generator],
    *,
    observe: EpochObserver | None = None,
) -> Adapted:
    """Train one network per target task (all with equally many ways and support images of each class), by Eq. 9.

    With ``settings.early_stopping`` each network learns from a part of its support images and is handed over as it was
    when its loss on the others was lowest. Test images decide nothing.

    Args:
        learngene: what is inherited; None trains the same architecture from scratch, with Eq. 6 alone.
        images: the support images that the tasks' rows point into; labels are not read.
        generators: one per task: initial weights, order and augmentation of that task, what it validates on, and the
            labels of its own Fisher diagonal.

    Raises:
        InputError: lambda would diverge, the learngene has no Fisher diagonal and the method needs it, the individual's
            own layers do not fit, or a class has too few images for early stopping.
        RunFailedError: the loss is not a number any more.
    """
    model = _begun(method, architecture, learngene, tasks, images, settings, generators)
    held: Sequence[TargetTask] = ()
    best: BestWeights | None = None
    if settings.early_stopping is not None:
        parts = [t.held_out(settings.validation_share, g) for t, g in zip(tasks, generators, strict=True)]
        tasks, held = [learning for learning, _ in parts], [validation for _, validation in parts]
        best = BestWeights(model, settings.early_stopping)
    retained = _Retained(method, model, learngene, settings)
    matched = StatisticsMatching(model.inherited if learngene is not None and settings.statistics_weight else ())
    learning_rate, epochs = settings.schedule_of(method)
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.SGD(
        learning, learning_rate, settings.momentum, weight_decay=settings.weight_decay, fused=True
    )

    def learn(loss: Tensor) -> None:
        optimiser.zero_grad(set_to_none=True)
        (loss + settings.statistics_weight * matched()).backward()
        retained.add_gradient()
        optimiser.step()

    for epoch in range(1, epochs + 1):
        if best is None or not best.over:
            retained.renew(epoch, tasks, images, generators)
            last = _epoch(model, tasks, images, settings.batch_size, generators, learn)
            if not math.isfinite(last):
                raise RunFailedError(f"{method.name}: the loss is not a number any more; lower the learning rate")
            if best is not None:
                best.look(model, validation_losses(model, held, images))
        if observe is not None:
            observe(epoch, model if best is None else best.networks)
    matched.close()
    return Adapted((model if best is None else best.networks).eval(), retained.weights)


def _begun(
    method: Method,
    architecture: Architecture,
    learngene: Learngene | None,
    tasks: Sequence[TargetTask],
    images: DeviceImages,
    settings: IndividualSettings,
    generators: Sequence[torch.Generator],
) -> IndividualNetworks:
    """The networks on the device as training begins with them."""
    model = reconstruct(
        architecture,
        learngene,
        ways=tasks[0].ways,
        generators=generators,
        own=settings.own_layers,
        view_shifts=settings.view_shifts,
    )
    model = model.to(images.pixels.device).to(memory_format=torch.channels_last)
    if settings.own_front_start == "patches":
        start_with_patches(model, tasks, images, generators)
    if method.frozen:
        model.freeze_inherited()
    return model


def _epoch(
    model: IndividualNetworks,
    tasks: Sequence[TargetTask],
    images: DeviceImages,
    batch_size: int,
    generators: Sequence[torch.Generator],
    learn: Callable[[Tensor], None],
) -> float:
    """One pass over the support images, each task in its own order and with its own augmentation; the last loss."""
    model.train()
    rows, labels = stacked(tasks)
    count = len(rows)
    order = torch.stack([torch.randperm(count, generator=g) for g in generators], 1)
    draws = [CropAndFlip.draw(count, g) for g in generators]
    crop = CropAndFlip(torch.stack([d.offsets for d in draws], 2), torch.stack([d.flip for d in draws], 1))
    loss = torch.zeros(())
    # No batch of a single image: its own statistics would be those of BatchNorm.
    for batch in torch.arange(count).tensor_split(max(1, min(-(-count // batch_size), count // 2))):
        chosen = order[batch]
        x, _ = images.batch(rows.gather(0, chosen).flatten())
        x = CropAndFlip(crop.offsets[:, batch].flatten(1), crop.flip[batch].flatten())(x)
        with autocast(x.device):
            logits = model(channels_joined(x, model.networks))
        target = labels.gather(0, chosen).to(x.device)
        # Mean over a task's images, sum over tasks: each network gets the gradient that it would get alone.
        loss = nn.functional.cross_entropy(logits.float().flatten(0, 1), target.flatten(), reduction="sum")
        loss = loss / len(batch)
        learn(loss)
    return float(loss.detach())


def stacked(tasks: Sequence[TargetTask]) -> tuple[Tensor, Tensor]:
    """Rows and labels of the support images, both ``[n, tasks]``."""
    rows = np.stack([task.support for task in tasks], 1)
    return torch.from_numpy(rows), torch.from_numpy(np.stack([task.support_labels for task in tasks], 1))


@torch.no_grad()
def _logits(model: IndividualNetworks, rows: Tensor, images: DeviceImages) -> Tensor:
    """Logits ``[n, tasks, ways]`` of the images ``rows [n, tasks]``, with mirror images and in evaluation mode."""
    was_training = model.training
    model.eval()
    found = []
    for part in rows.split(AT_ONCE):
        x, _ = images.batch(part.flatten())
        with autocast(x.device):
            found.append(model.predict(channels_joined(x, model.networks)).float().cpu())
    model.train(was_training)
    return torch.cat(found)


@torch.no_grad()
def network_views(
    model: IndividualNetworks, rows: Tensor, images: DeviceImages, shift: tuple[int, int] = (0, 0)
) -> list[Tensor]:
    """Both views ``[tasks, n, F]`` that each network has of its task's images ``rows [n, tasks]``, shifted as
    :func:`individual_node.views.shifted` does it; the networks are in evaluation mode."""
    parts = []
    for part in rows.split(AT_ONCE):
        x = shifted(images.batch(part.flatten())[0], shift)
        with autocast(x.device):
            parts.append(model.views(channels_joined(x, model.networks)))
    return [torch.cat(view, 1) for view in zip(*parts, strict=True)]


def validation_losses(model: IndividualNetworks, held: Sequence[TargetTask], images: DeviceImages) -> Tensor:
    """Mean cross-entropy of each network on the support images that its task holds out, in evaluation mode."""
    rows, labels = stacked(held)
    logits = _logits(model, rows, images)
    return nn.functional.cross_entropy(logits.movedim(2, 1), labels, reduction="none").mean(0)


def test_accuracy(model: IndividualNetworks, tasks: Sequence[TargetTask], images: DeviceImages) -> list[float]:
    """Accuracy in per cent of each network on its own task's test images, in evaluation mode."""
    rows = torch.from_numpy(np.stack([task.test for task in tasks], 1))
    labels = torch.from_numpy(np.stack([task.test_labels for task in tasks], 1))
    hits = (_logits(model, rows, images).argmax(2) == labels).sum(0)
    return [float(h) * 100 / len(rows) for h in hits]
