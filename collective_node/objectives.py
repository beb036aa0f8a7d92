"""What a network learns from a batch: labels, and the knowledge of a teacher (distillation)."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from torch import Tensor, nn

from collective_node.network.compact_network import CompactNetwork


class Batch(NamedTuple):
    """Augmented images ``[n, C, H, W]``, the output of each ``[n]`` (-1: it has no label), and where each comes from:
    its row ``[n]`` and whether it was mirrored ``[n]``."""

    x: Tensor
    outputs: Tensor
    rows: Tensor
    mirrored: Tensor


class Objective(Protocol):
    """The mean loss of a batch under a model, which is in training mode."""

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        """A scalar."""
        ...


@dataclass(frozen=True)
class CrossEntropy:
    """Cross-entropy with the labels, smoothed (Szegedy et al. 2016)."""

    label_smoothing: float = 0.0

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        """Mean over the batch."""
        logits = model(batch.x).float()
        return nn.functional.cross_entropy(logits, batch.outputs, label_smoothing=self.label_smoothing)


def labelled_loss(logits: Tensor, outputs: Tensor, label_smoothing: float) -> Tensor:
    """Mean cross-entropy of ``logits [n, outputs]`` with the labels ``[n]``, over the images that have one; else 0."""
    loss = nn.functional.cross_entropy(
        logits, outputs, ignore_index=-1, label_smoothing=label_smoothing, reduction="sum"
    )
    return loss / (outputs >= 0).sum().clamp(min=1)


@dataclass(frozen=True)
class Knowledge:
    """What a teacher says of images that it was shown once, whole and mirrored, on the device.

    Attributes:
        logits: ``[images, 2, outputs]``; index 1 along the second axis is of the mirrored image.
        features: ``[images, 2, F]``.
    """

    logits: Tensor
    features: Tensor

    def of(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Logits ``[n, outputs]`` and features ``[n, F]`` of a batch's images, mirrored as they are there."""
        side = batch.mirrored.to(self.logits.device).long()
        rows = batch.rows.to(self.logits.device)
        return self.logits[rows, side].float(), self.features[rows, side].float()


@dataclass(frozen=True)
class Distillation:
    """Labels and a teacher together: the weighted sum of four losses.

    The teacher saw each image without the crop (a fixed teacher in the terms of Beyer et al. 2022): so it is asked
    once for an image, not at every step.

    Attributes:
        knowledge: the teacher's.
        logits: weight of the teacher's soft labels against that of the true ones (Hinton, Vinyals and Dean 2015).
        temperature: of both softmax functions there.
        features: weight of one minus the cosine between a linear image of the student's features, ``model.regressor``,
            and the teacher's (after FitNets, Romero et al. 2015, equation 3).
        relations: weight of the squared distance between the row-normalised Gram matrices of both networks' features
            (Tung and Mori 2019, *Similarity-preserving knowledge distillation*, equation 4).
        label_smoothing: of the labels.
    """

    knowledge: Knowledge
    logits: float
    temperature: float
    features: float
    relations: float
    label_smoothing: float

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        """Mean over the batch; an image without a label teaches what the teacher says of it."""
        assert isinstance(model, Student)
        student, projected, logits = model.views(batch.x)
        wanted, deep = self.knowledge.of(batch)
        loss = (1 - self.logits) * labelled_loss(logits, batch.outputs, self.label_smoothing)
        if self.logits:
            loss = loss + self.logits * soft_label_loss(logits, wanted, self.temperature)
        if self.features:
            loss = loss + self.features * (1 - nn.functional.cosine_similarity(projected, deep)).mean()
        if self.relations:
            loss = loss + self.relations * relation_loss(student, deep)
        return loss


@dataclass(frozen=True)
class Sandwich:
    """The loss of a compact network and of the smaller ones in it, all at once.

    At every step the whole network, the smallest and one between them (the sandwich rule), the smaller ones from the
    labels and from the whole's own soft labels (in-place distillation): Yu and Huang 2019, *Universally slimmable
    networks*, sections 3.3 and 3.4. They sum the losses; here it is their mean, so that the shared weights have the
    learning rate of a network by itself.

    Attributes:
        whole: what the whole network learns.
        soft: weight of the whole's soft labels in what the smaller ones learn; the labels have the rest, unless the
            whole looked at other images than the batch's (mixed ones), whose labels would not be these.
        label_smoothing: of the labels.
    """

    whole: Objective
    soft: float = 1.0
    label_smoothing: float = 0.0

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        """The mean of three means over the batch."""
        network = next(module for module in model.modules() if isinstance(module, CompactNetwork))
        with _last_seen(network) as seen:
            loss = self.whole(model, batch)
        x, logits = seen
        others = len(network.sizes) - 1
        # The rows of a batch are drawn at random, so no further random number is needed, and every part has its own.
        chosen = {0, 1 + int(batch.rows.sum()) % others} if others else {0}
        soft = self.soft if x is batch.x else 1.0
        for number in sorted(chosen):
            small = network.logits_of(x, number).float()
            loss = loss + soft * soft_label_loss(small, logits.detach().float(), 1.0)
            if soft < 1:
                loss = loss + (1 - soft) * labelled_loss(small, batch.outputs, self.label_smoothing)
        return loss / (1 + len(chosen))


@contextmanager
def _last_seen(network: CompactNetwork) -> Iterator[list[Tensor]]:
    """The images that the network looked at last, as they came to it (mixed, rotated), and its logits."""
    seen: list[Tensor] = []

    def entered(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen[:] = inputs

    def left(_: nn.Module, __: tuple[Tensor, ...], logits: Tensor) -> None:
        seen.append(logits)

    hooks = [network.stem.register_forward_pre_hook(entered), network.classifier.register_forward_hook(left)]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def soft_label_loss(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """``T^2 KL(teacher || student)`` of both softened by ``T``, mean over ``[n, outputs]`` (Hinton et al. 2015)."""
    student = nn.functional.log_softmax(logits / temperature, 1)
    wanted = nn.functional.log_softmax(teacher / temperature, 1)
    return temperature**2 * nn.functional.kl_div(student, wanted, reduction="batchmean", log_target=True)


def relation_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """``|G_s - G_t|^2 / n`` of the row-normalised Gram matrices of features ``[n, F]`` and ``[n, G]``.

    Tung and Mori 2019, equation 4, divide by n^2, which makes it depend on the batch's size.
    """
    ours, theirs = (nn.functional.normalize(found @ found.T) for found in (student, teacher))
    return (ours - theirs).square().sum() / len(student)


class Student(nn.Module):
    """A compact network with the linear map from its features to its teacher's.

    Args:
        network: the student.
        regressor: ``[F]`` to the teacher's ``[G]``.
    """

    def __init__(self, network: CompactNetwork, regressor: nn.Module) -> None:
        super().__init__()
        self.network, self.regressor = network, regressor

    def views(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Features ``[n, F]``, their image under the regressor ``[n, G]``, and logits ``[n, outputs]``; float32."""
        found = self.network.features(x)
        flat = found.flatten(1).float()
        return flat, self.regressor(flat), self.network.classifier(found).float()

    def forward(self, x: Tensor) -> Tensor:
        """Images to logits, as the network alone."""
        logits: Tensor = self.network(x)
        return logits
