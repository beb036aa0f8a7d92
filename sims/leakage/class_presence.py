"""Class presence: was this class among those that the collective learned?"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from collective_node.collective_images import CollectiveImages
from protocol.errors import InputError
from protocol.learngene.learngene import Learngene
from sims.leakage.attack_evaluation import Attack, itself
from sims.leakage.attack_metrics import Mask
from sims.leakage.attacked_run import subset
from sims.leakage.likelihood_ratio import offline, online, paired_halves, shared_shift
from sims.leakage.probe import STATISTICS, LabelledImages, Probe

_, _CONFIDENCE, _BATCHNORM, _FISHER = range(len(STATISTICS))

_ALL = (_CONFIDENCE, _BATCHNORM, _FISHER)
ATTACKS = (
    Attack("confidence", itself, (_CONFIDENCE,), fisher=False),
    Attack("LiRA offline, confidence", offline, (_CONFIDENCE,), fisher=False),
    Attack("LiRA online, confidence", online, (_CONFIDENCE,), fisher=False),
    Attack("shared shift, confidence", shared_shift, (_CONFIDENCE,), fisher=False),
    Attack("Fisher match", itself, (_FISHER,), fisher=True),
    Attack("LiRA online, Fisher match", online, (_FISHER,), fisher=True),
    Attack("LiRA online, all", online, _ALL, fisher=True),
    Attack("shared shift, Fisher match", shared_shift, (_FISHER,), fisher=True),
    Attack("shared shift, all", shared_shift, _ALL, fisher=True),
)
#: Most classes whose presence is asked for: half of them present, half absent.
MOST_CLASSES = 16


@dataclass(frozen=True)
class CandidateClasses:
    """Classes whose presence is asked for.

    Attributes:
        images: training images and held-out ones of every class, those that are asked for first.
        members: which of the classes that are asked for the release was trained on, bool ``[N]``.
    """

    images: CollectiveImages
    members: Mask

    def halves(self, shadows: int, rng: np.random.Generator) -> Mask:
        """Which classes are in which shadow: half of them."""
        return paired_halves([len(self.members)], shadows, rng)

    def training(self, inside: Mask) -> CollectiveImages:
        """The folder of a collective that learns these classes and all that are not asked for."""
        asked = len(self.members)
        known = [*np.flatnonzero(inside).tolist(), *range(asked, len(self.images.classes))]
        return subset(self.images, known)


def choose_classes(
    images: CollectiveImages,
    absent: Mapping[str, tuple[NDArray[np.uint8], NDArray[np.uint8]]],
    most: int,
    rng: np.random.Generator,
) -> CandidateClasses:
    """Draw classes to ask for: equally many that the collective learned and others.

    At least two present classes are in every shadow. An absent class gives as many images as a present one has.

    Raises:
        InputError: there are too few classes of either kind.
    """
    count = len(images.classes)
    each = min(most // 2, count - 2, len(absent))
    each -= each % 2  # the candidates fall into two halves
    if each < 2:
        raise InputError(f"{count} classes present and {len(absent)} absent are too few to ask which are present")
    present = np.sort(rng.permutation(count)[:each]).tolist()
    others = [name for name in sorted(absent) if name not in images.classes]
    chosen = [others[number] for number in np.sort(rng.permutation(len(others))[:each])]
    kept = subset(images, [*present, *(number for number in range(count) if number not in present)])
    per_class = int(np.bincount(kept.train_labels).max()), int(np.bincount(kept.heldout_labels).max())
    # First the classes that are asked for, present ones, then absent ones; then those in every shadow.
    renumbered = np.array([*range(each), *range(2 * each, count + each)], dtype=np.int64)
    train = [(kept.train_images, renumbered[kept.train_labels])]
    heldout = [(kept.heldout_images, renumbered[kept.heldout_labels])]
    for number, name in enumerate(chosen, start=each):
        for part, pixels, limit in zip((train, heldout), absent[name], per_class, strict=True):
            part.append((pixels[:limit], np.full(len(pixels[:limit]), number, dtype=np.int64)))
    return CandidateClasses(
        images=CollectiveImages(
            (*kept.classes[:each], *chosen, *kept.classes[each:]),
            *_joined(train),
            *_joined(heldout),
            images.stream_images,
        ),
        members=np.arange(2 * each) < each,
    )


def measure(
    classes: CandidateClasses, per_class: int, device: torch.device, *, fisher: bool
) -> Callable[[Learngene], NDArray[np.float64]]:
    """From a release to the mean statistics of every class that is asked for, ``[N, 4]``.

    The attacker holds images of each class that no collective was trained on: the first half of them fits its head, of
    all classes; the second half is measured.

    Args:
        per_class: most images in each half.
    """
    images, labels = classes.images.heldout_images, classes.images.heldout_labels
    fit_rows, asked_rows = [], []
    for number in range(len(classes.images.classes)):
        rows = np.flatnonzero(labels == number)
        half = min(per_class, len(rows) // 2)
        if half < 1:
            raise InputError(f"class {classes.images.classes[number]} has fewer than two images that are held out")
        fit_rows.append(rows[:half])
        if number < len(classes.members):
            asked_rows.append(rows[half : 2 * half])
    public = LabelledImages(images, labels)
    own, asked = public.select(np.concatenate(fit_rows)), public.select(np.concatenate(asked_rows))

    def of(learngene: Learngene) -> NDArray[np.float64]:
        found = Probe(learngene, own, len(classes.images.classes), device).statistics(asked, fisher=fisher)
        return np.array([found[asked.labels == number].mean(0) for number in range(len(classes.members))])

    return of


def _joined(parts: list[tuple[NDArray[np.uint8], NDArray[np.int64]]]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    return np.concatenate([pixels for pixels, _ in parts]), np.concatenate([labels for _, labels in parts])
