"""Membership inference: was this image among those that the collective was trained on?"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from collective_node.collective_images import CollectiveImages
from protocol.errors import InputError
from protocol.learngene.learngene import Learngene
from sims.leakage import rmia
from sims.leakage.attack_evaluation import Attack, itself
from sims.leakage.attack_metrics import Mask
from sims.leakage.leakage_settings import LeakageSettings
from sims.leakage.likelihood_ratio import offline, online, paired_halves, shared_shift
from sims.leakage.probe import STATISTICS, LabelledImages, Probe, first_of_each

_LOSS, _CONFIDENCE, _BATCHNORM, _FISHER = range(len(STATISTICS))


def attacks(settings: LeakageSettings) -> tuple[Attack, ...]:
    """Every attack on membership; those on the weights alone first."""
    rmia_online = partial(rmia.online, gamma=settings.rmia_gamma)
    rmia_offline = partial(rmia.offline, gamma=settings.rmia_gamma, a=settings.rmia_a)
    everything = (_CONFIDENCE, _BATCHNORM, _FISHER)
    return (
        Attack("loss", itself, (_LOSS,), fisher=False),
        Attack("LiRA offline", offline, (_CONFIDENCE,), fisher=False),
        Attack("LiRA online", online, (_CONFIDENCE,), fisher=False),
        Attack("LiRA online, with BatchNorm", online, (_CONFIDENCE, _BATCHNORM), fisher=False),
        Attack("shared shift", shared_shift, (_CONFIDENCE,), fisher=False),
        Attack("shared shift, with BatchNorm", shared_shift, (_CONFIDENCE, _BATCHNORM), fisher=False),
        Attack("RMIA offline", rmia_offline, (_LOSS,), fisher=False, population=True),
        Attack("RMIA online", rmia_online, (_LOSS,), fisher=False, population=True),
        Attack("Fisher match", itself, (_FISHER,), fisher=True),
        Attack("LiRA online, Fisher match", online, (_FISHER,), fisher=True),
        Attack("LiRA online, all", online, everything, fisher=True),
        Attack("shared shift, Fisher match", shared_shift, (_FISHER,), fisher=True),
        Attack("shared shift, all", shared_shift, everything, fisher=True),
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

    def population(self, most: int) -> LabelledImages:
        """Further images that no collective is trained on: held-out ones, equally many of every class, about ``most``
        and at least one of each."""
        heldout = LabelledImages(self.rest.heldout_images, self.rest.heldout_labels)
        return heldout.select(first_of_each(heldout.labels, max(1, most // self.classes)))

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

    Held-out images are never trained on, not even by name in the open world. At least one of each class is left: it is
    no candidate, but in the population.

    Raises:
        InputError: fewer than one of each kind for each class would be drawn.
    """
    classes = len(images.classes)
    fewest = min(
        int(np.bincount(images.heldout_labels, minlength=classes).min()) - 1,
        int(np.bincount(images.train_labels, minlength=classes).min()) // 2,
    )
    each = min(count // (2 * classes), fewest)
    if each < 1:
        raise InputError(
            f"{count} candidates are too few for {classes} classes: ask for {2 * classes} at least; and a class needs "
            "two training images and two that are held out"
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
    candidates: Candidates, settings: LeakageSettings, device: torch.device, *, fisher: bool
) -> Callable[[Learngene], NDArray[np.float64]]:
    """From a release to the statistics of every candidate, and behind them of the population, ``[N + Z, 4]``; of the
    population without the Fisher match, which no attack reads.

    Args:
        settings: they say how many further training images of each class the attacker's head is fitted on, and how
            large the population is.
    """
    rest = LabelledImages(candidates.rest.train_images, candidates.rest.train_labels)
    own = rest.select(first_of_each(rest.labels, settings.head_images))
    population = candidates.population(settings.population)

    def of(learngene: Learngene) -> NDArray[np.float64]:
        probe = Probe(learngene, own, candidates.classes, device)
        asked = probe.statistics(candidates.images, fisher=fisher)
        return np.concatenate([asked, probe.statistics(population, fisher=False)])

    return of
