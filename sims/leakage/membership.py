"""Membership inference: was this image among those that the collective was trained on?"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from collective_node.collective_images import CollectiveImages
from protocol.errors import InputError
from protocol.learngene.learngene import Learngene
from sims.leakage.attack_evaluation import Attack
from sims.leakage.attack_metrics import Mask
from sims.leakage.likelihood_ratio import paired_halves
from sims.leakage.probe import STATISTICS, LabelledImages, Probe, first_of_each

_LOSS, _CONFIDENCE, _BATCHNORM, _FISHER = range(len(STATISTICS))

ATTACKS = (
    Attack("loss", "plain", (_LOSS,), fisher=False),
    Attack("LiRA offline", "offline", (_CONFIDENCE,), fisher=False),
    Attack("LiRA online", "online", (_CONFIDENCE,), fisher=False),
    Attack("LiRA online, with BatchNorm", "online", (_CONFIDENCE, _BATCHNORM), fisher=False),
    Attack("Fisher match", "plain", (_FISHER,), fisher=True),
    Attack("LiRA online, Fisher match", "online", (_FISHER,), fisher=True),
    Attack("LiRA online, all", "online", (_CONFIDENCE, _BATCHNORM, _FISHER), fisher=True),
)


@dataclass(frozen=True)
class Candidates:
    """Images whose membership is asked for, and the attacker's other knowledge.

    Attributes:
        images: the candidates, class by class; of each class first members, then equally many others.
        members: which of them the collective of the images was trained on.
        rest: the collective's images without the candidates: all others, which this attacker knows.
        classes: number of classes.
    """

    images: LabelledImages
    members: Mask
    rest: CollectiveImages

    @property
    def classes(self) -> int:
        return len(self.rest.classes)

    @property
    def groups(self) -> list[int]:
        """Candidates of each class."""
        return [int(count) for count in np.bincount(self.images.labels, minlength=self.classes)]

    def halves(self, shadows: int, rng: np.random.Generator) -> Mask:
        """Membership in each shadow: half of the candidates of every class."""
        return paired_halves(self.groups, shadows, rng)

    def training(self, inside: Mask, *, alone: bool = False) -> CollectiveImages:
        """The folder of a collective that is trained on some candidates and has the others held out.

        Args:
            alone: without the rest: the collective sees only candidates.
        """
        used, unused = self.images.select(np.flatnonzero(inside)), self.images.select(np.flatnonzero(~inside))
        rest = self.rest
        if alone:
            return CollectiveImages(rest.classes, used.images, used.labels, unused.images, unused.labels)
        return CollectiveImages(
            rest.classes,
            np.concatenate([rest.train_images, used.images]),
            np.concatenate([rest.train_labels, used.labels]),
            np.concatenate([rest.heldout_images, unused.images]),
            np.concatenate([rest.heldout_labels, unused.labels]),
            rest.stream_images,
        )


def choose_candidates(images: CollectiveImages, count: int, rng: np.random.Generator) -> Candidates:
    """Draw at most ``count`` candidates: of each class equally many training images and held-out ones.

    Held-out images are never trained on, not even by name in the open world.

    Raises:
        InputError: fewer than one of each kind for each class would be drawn.
    """
    classes = len(images.classes)
    fewest = min(
        int(np.bincount(images.heldout_labels, minlength=classes).min()),
        int(np.bincount(images.train_labels, minlength=classes).min()) // 2,
    )
    each = min(count // (2 * classes), fewest)
    if each < 1:
        raise InputError(
            f"{count} candidates are too few for {classes} classes with {fewest} held-out images or more each: "
            f"ask for {2 * classes} at least"
        )
    members, outsiders = (
        [np.sort(rng.permutation(np.flatnonzero(labels == number))[:each]) for number in range(classes)]
        for labels in (images.train_labels, images.heldout_labels)
    )
    pixels = [
        part
        for inside, outside in zip(members, outsiders, strict=True)
        for part in (images.train_images[inside], images.heldout_images[outside])
    ]
    left = np.setdiff1d(np.arange(len(images.train_labels)), np.concatenate(members))
    held = np.setdiff1d(np.arange(len(images.heldout_labels)), np.concatenate(outsiders))
    return Candidates(
        images=LabelledImages(np.concatenate(pixels), np.arange(classes).repeat(2 * each)),
        members=np.tile(np.arange(2 * each) < each, classes),
        rest=CollectiveImages(
            images.classes,
            images.train_images[left],
            images.train_labels[left],
            images.heldout_images[held],
            images.heldout_labels[held],
            images.stream_images,
        ),
    )


def measure(
    candidates: Candidates, own_per_class: int, device: torch.device, *, fisher: bool
) -> Callable[[Learngene], NDArray[np.float64]]:
    """From a release to the statistics of every candidate, ``[N, 4]``.

    Args:
        own_per_class: further training images of each class on which the attacker's head is fitted.
    """
    rest = LabelledImages(candidates.rest.train_images, candidates.rest.train_labels)
    own = rest.select(first_of_each(rest.labels, own_per_class))

    def of(learngene: Learngene) -> NDArray[np.float64]:
        return Probe(learngene, own, candidates.classes, device).statistics(candidates.images, fisher=fisher)

    return of
