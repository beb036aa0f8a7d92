"""Checks, before any training, whether a collective's images suffice for its settings. Loads no torch."""

from collections.abc import Sequence

import numpy as np

from collective_node.differential_privacy.mechanism import check_delta
from collective_node.settings import CollectiveSettings
from collective_node.task_sequence import sequence
from protocol.errors import InputError


def check_enough(settings: CollectiveSettings, counts: Sequence[int], *, seed: int, fewest: int) -> None:
    """Refuse images from which no learngene could be published.

    Args:
        counts: training images of each base class, in the order of the collective's own numbering.
        seed: of the collective's training.
        fewest: images of a Fisher diagonal that the site's policy lets out.

    Raises:
        InputError: they do not suffice; the text says what to change.
    """
    check_classes(settings, len(counts))
    taught = {number for task in task_sequence(settings, len(counts), seed) for number in task}
    images = sum(counts[number] for number in taught)
    if settings.privacy_epsilon is not None:
        check_delta(settings.privacy_delta_exponent, images)
    check_fisher_images(settings, images, fewest)


def check_classes(settings: CollectiveSettings, classes: int) -> None:
    """Refuse tasks of more classes than there are base classes.

    Raises:
        InputError: they are.
    """
    if settings.classes_per_task > classes:
        raise InputError(
            f"a task of {settings.classes_per_task} classes needs as many base classes; there are {classes}: set "
            f"collective.classes_per_task={classes}"
        )


def task_sequence(settings: CollectiveSettings, classes: int, seed: int) -> list[tuple[int, ...]]:
    """Numbers of the classes of each task."""
    return sequence(classes, settings.classes_per_task, settings.tasks, np.random.default_rng([seed, classes]))


def check_fisher_images(settings: CollectiveSettings, images: int, fewest: int) -> None:
    """Refuse a Fisher diagonal that could not leave the site.

    Args:
        images: training images of all classes that some task teaches.
        fewest: images of a diagonal that the site's policy lets out.

    Raises:
        InputError: it would be of fewer.
    """
    samples = min(settings.fisher_samples, images)
    if samples >= fewest:
        return
    advice = (
        f"set fisher_samples to {fewest} or more"
        if settings.fisher_samples < fewest
        else f"the taught classes have {images} training images: add some, or teach more classes"
    )
    raise InputError(
        f"a Fisher diagonal from {samples} images may not leave a site, only from {fewest} on, so no learngene could "
        f"be published; {advice}"
    )
