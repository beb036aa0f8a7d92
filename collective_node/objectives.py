"""What a network learns from a batch: labels, the knowledge of a teacher (distillation), and how images were turned."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

from torch import Tensor, nn

from collective_node.mixing import Mix
from collective_node.network.answers import Answers, full
from collective_node.network.compact_network import CompactNetwork
from collective_node.settings import CollectiveSettings, RotationClasses


class Batch(NamedTuple):
    """Augmented images ``[n, C, H, W]``, the output of each ``[n]`` (-1: it has no label), and where each comes from:
    its row ``[n]`` and whether it was mirrored ``[n]``; by how many quarters it was turned ``[n]`` (None: none was),
    and with which others it is to be mixed (None: with none)."""

    x: Tensor
    outputs: Tensor
    rows: Tensor
    mirrored: Tensor
    turns: Tensor | None = None
    mix: Mix | None = None

    def at(self, index: Tensor) -> "Batch":
        """The images at these positions ``[m]`` (CPU); they are not to be mixed any more."""
        here = index.to(self.x.device)
        turns = None if self.turns is None else self.turns[index]
        return Batch(self.x[here], self.outputs[here], self.rows[index], self.mirrored[index], turns)


class Objective(Protocol):
    """The mean loss of a batch under a model, which is in training mode."""

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        """A scalar."""
        ...


@runtime_checkable
class Answering(Protocol):
    """A model that says more of images than logits."""

    def answers(self, x: Tensor) -> Answers:
        """Its answers to images ``[n, C, H, W]``."""
        ...


class OnePass(ABC):
    """An objective that looks at a model's answers to a batch alone, so one pass through the model is enough.

    A batch that is mixed is passed through the model once; its loss is ``lambda L + (1 - lambda) L'``, where ``L`` is
    the loss of these answers beside what belongs to each image, and ``L'`` beside what belongs to its partner (Zhang et
    al. 2018, *mixup*, section 2: for cross-entropy that is the loss with mixed labels).
    """

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        """Mean over the batch."""
        mix = batch.mix
        if mix is None:
            return self.loss(_answers(model, batch.x), batch)
        with mix.inside(model):
            answers = _answers(model, mix.of(batch.x) if mix.layer == 0 else batch.x)
        partners = self.loss(answers, batch.at(mix.partners))
        return mix.share * self.loss(answers, batch) + (1 - mix.share) * partners

    @abstractmethod
    def loss(self, answers: Answers, batch: Batch) -> Tensor:
        """Mean loss of answers beside the labels and origins of a batch; its images do not count."""


def _answers(model: nn.Module, x: Tensor) -> Answers:
    return model.answers(x) if isinstance(model, Answering) else Answers(full(model(x)))


@dataclass(frozen=True)
class CrossEntropy(OnePass):
    """Cross-entropy with the labels, smoothed (Szegedy et al. 2016)."""

    label_smoothing: float = 0.0

    def loss(self, answers: Answers, batch: Batch) -> Tensor:
        """Mean over the batch."""
        return nn.functional.cross_entropy(answers.logits, batch.outputs, label_smoothing=self.label_smoothing)


@dataclass(frozen=True)
class Rotation(OnePass):
    """An objective, and a second one beside it: to tell by how many quarters each image was turned (Gidaris et al.
    2018, *Unsupervised representation learning by predicting image rotations*; as a second task, Gidaris et al. 2019).

    Attributes:
        objective: the first one.
        weight: of the mean cross-entropy of the four turns.
        classes: which images the first objective sees.
    """

    objective: OnePass
    weight: float
    classes: RotationClasses = "all"

    def loss(self, answers: Answers, batch: Batch) -> Tensor:
        """The first objective's, and the weighted loss of the turns; the model has a head that tells them."""
        assert batch.turns is not None
        assert answers.turns is not None
        told = nn.functional.cross_entropy(answers.turns, batch.turns.to(answers.turns.device))
        if self.classes == "upright":
            upright = (batch.turns == 0).nonzero()[:, 0]
            answers, batch = answers.at(upright), batch.at(upright)
        return self.objective.loss(answers, batch) + self.weight * told


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
        return full(self.logits[rows, side]), full(self.features[rows, side])


@dataclass(frozen=True)
class Distillation(OnePass):
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

    def loss(self, answers: Answers, batch: Batch) -> Tensor:
        """Mean over the batch; an image without a label teaches what the teacher says of it. A student with fewer
        outputs has the teacher's first ones."""
        wanted, deep = self.knowledge.of(batch)
        wanted = wanted[:, : answers.logits.shape[1]]
        loss = (1 - self.logits) * labelled_loss(answers.logits, batch.outputs, self.label_smoothing)
        if self.logits:
            loss = loss + self.logits * soft_label_loss(answers.logits, wanted, self.temperature)
        if self.features:
            assert answers.projected is not None
            loss = loss + self.features * (1 - nn.functional.cosine_similarity(answers.projected, deep)).mean()
        if self.relations:
            assert answers.features is not None
            loss = loss + self.relations * relation_loss(answers.features, deep)
        return loss


def objective_of(settings: CollectiveSettings, knowledge: Knowledge | None = None) -> OnePass:
    """What the settings ask to be learned: labels, a teacher's knowledge besides if there is one, and turns."""
    objective: OnePass = CrossEntropy(settings.label_smoothing)
    if knowledge is not None:
        objective = Distillation(
            knowledge,
            logits=settings.distil_logits,
            temperature=settings.distil_temperature,
            features=settings.distil_features,
            relations=settings.distil_relations,
            label_smoothing=settings.label_smoothing,
        )
    return Rotation(objective, settings.rotation, settings.rotation_classes) if settings.rotation else objective


@dataclass(frozen=True)
class Sandwich:
    """The loss of a compact network and of the smaller ones in it, all at once.

    At every step the whole network, the smallest and one between them (the sandwich rule), the smaller ones from the
    labels and from the whole's own soft labels (in-place distillation): Yu and Huang 2019, *Universally slimmable
    networks*, sections 3.3 and 3.4. They sum the losses; here it is their mean, so that the shared weights have the
    learning rate of a network by itself.

    Attributes:
        whole: what the whole network learns.
        soft: weight of the whole's soft labels in what the smaller ones learn; the labels have the rest. Of images that
            were mixed or turned they learn the soft labels alone, and where features were mixed, which they do not see,
            the labels alone.
        label_smoothing: of the labels.
    """

    whole: Objective
    soft: float = 1.0
    label_smoothing: float = 0.0

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        """The mean over the networks of this step of their means over the batch."""
        network = next(module for module in model.modules() if isinstance(module, CompactNetwork))
        with _last_seen(network) as seen:
            loss = self.whole(model, batch)
        x, logits = seen
        others = len(network.sizes) - 1
        # The rows of a batch are drawn at random, so no further random number is needed, and every part has its own.
        chosen = {0, 1 + int(batch.rows.sum()) % others} if others else {0}
        soft = self.soft
        if batch.mix is not None:
            soft = 1.0 if batch.mix.layer == 0 else 0.0
        elif batch.turns is not None:
            soft = 1.0
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
    """A compact network with what its training needs besides, and what no individual gets.

    Args:
        network: the student.
        regressor: from its features ``[F]`` to its teacher's ``[G]``; None: it has no teacher, or learns no features.
        turns: from its features ``[F]`` to four logits, one for each turn; None: it does not learn to tell turns.
    """

    def __init__(
        self, network: CompactNetwork, regressor: nn.Module | None = None, turns: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.network, self.regressor, self.turns = network, regressor, turns

    def answers(self, x: Tensor) -> Answers:
        """Logits, features, and what the heads say."""
        found = self.network.features(x)
        flat = full(found.flatten(1))
        return Answers(
            full(self.network.classifier(found)),
            flat,
            None if self.regressor is None else self.regressor(flat),
            None if self.turns is None else self.turns(flat),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Images to logits, as the network alone."""
        logits: Tensor = self.network(x)
        return logits
