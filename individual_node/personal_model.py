"""Adaptation of a learngene to a user's own pictures: one model of all of them, and from folds an estimate of its
accuracy.
"""

from collections.abc import Callable
from pathlib import Path
from statistics import NormalDist

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from individual_node.adaptation import adapt, task_generator
from individual_node.adapted import AdaptedModel, Description, Estimate, Lineage, PictureClassifier, weights_of
from individual_node.feature_head import fit_feature_head, head_on_network
from individual_node.image_folder import OwnPictures
from individual_node.method_table import METHODS, Method
from individual_node.settings import IndividualSettings
from individual_node.target_tasks import TargetTask
from protocol.digest import digest_of
from protocol.errors import InputError
from protocol.exchange.verification import VerifiedLearngene
from protocol.learngene.architecture import FULL, Architecture, Form, Size
from protocol.learngene.images import DeviceImages, Normalisation
from protocol.learngene.learngene import Learngene
from protocol.learngene.sizes import descend, largest_size, sizes_in_words
from protocol.node.events import Observer

#: Settings without effect here: they concern many target tasks, or methods that inherit nothing.
ELSEWHERE = frozenset(
    {
        "methods",
        "compare_sizes",
        "compare_learning_rates",
        "compare_weight_decays",
        "scratch_learning_rate",
        "scratch_epochs",
        "paper_scratch_learning_rate",
        "paper_scratch_epochs",
        "networks_at_once",
        "curve_tasks",
        "patches",
        "floor_penalty",
    }
)


def methods_for(form: Form) -> list[str]:
    """The methods that inherit a learngene of this form; the first is the one to use."""
    return [name for name, method in METHODS.items() if method.form == form and method.inherits]


def choose_method(name: str | None, form: Form) -> Method:
    """The method of this name, or the first one of the form.

    Raises:
        InputError: the form has no method of this name.
    """
    fitting = methods_for(form)
    if name is None:
        return METHODS[fitting[0]]
    if name not in fitting:
        raise InputError(f"{name!r} is no method for a learngene in the form {form}; there are: {', '.join(fitting)}")
    return METHODS[name]


def choose_size(architecture: Architecture, settings: IndividualSettings) -> Size:
    """The size to which a learngene is descended, by the settings ``size`` and ``most_weights``.

    Raises:
        InputError: the learngene has no such size.
    """
    if not architecture.sizes and settings.size != FULL:
        raise InputError(
            f"this learngene has no smaller sizes, and size is {settings.size}: leave size out, or ask the collective "
            "for a learngene with sizes"
        )
    if settings.size not in (FULL, *architecture.sizes):
        raise InputError(f"size: the learngene has no size {settings.size}; it has {sizes_in_words(architecture)}")
    return settings.size if settings.most_weights is None else largest_size(architecture, settings.most_weights)


def adapt_to_pictures(
    verified: VerifiedLearngene,
    pictures: OwnPictures,
    settings: IndividualSettings,
    *,
    size: Size = FULL,
    method: Method,
    folds: int,
    seed: int,
    device: torch.device,
    node: Path | None = None,
    bits: int | None = None,
    observe: Observer | None = None,
) -> AdaptedModel:
    """Train a model on all pictures, after models of parts of them have given an estimate of its accuracy.

    Args:
        pictures: of the learngene's input contract.
        size: to which the learngene is descended first.
        folds: parts for the estimate, see :func:`fold_of`.
        seed: of everything random.
        node: configuration file of the node by which the learngene was verified, if a node did.
        bits: with which the pictures were read, for pictures that the model will name.

    Raises:
        InputError: the settings do not fit the learngene or the pictures.
        RunFailedError: training diverged.
    """
    learngene = descend(verified.learngene, size)
    fold = fold_of(pictures, folds, settings, seed)
    parts = 0 if fold is None else int(fold.max()) + 1
    steps = 1 if method.adaptation == "head" else settings.epochs

    def teach(rows: NDArray[np.int64], number: int, text: str) -> PictureClassifier:
        def at(step: int) -> None:
            if observe is not None:
                observe(number * steps + step, (parts + 1) * steps, text)

        at(0)
        generator = task_generator(seed, f"own pictures, {method.name}", parts, number)
        classifier = _taught(learngene, pictures, rows, settings, method, generator, device, at)
        at(steps)
        return classifier

    estimate = None if fold is None else _estimate(pictures, fold, teach)
    classifier = teach(np.arange(len(pictures.labels)), parts, "adapting to all pictures").cpu()
    description = Description(
        classes=pictures.classes,
        pictures=pictures.counts,
        method=method.name,
        network="feature-head" if method.adaptation == "head" else "individual-head" if method.head else "individual",
        learngene=_lineage(verified),
        size=size,
        architecture=learngene.architecture,
        own=settings.own_layers,
        view_shifts=settings.view_shifts,
        settings=settings.model_dump(mode="json", exclude=set(ELSEWHERE)),
        seed=seed,
        estimate=estimate,
        weights=digest_of(weights_of(classifier)),
        node=None if node is None else str(node.absolute()),
        bits=bits,
    )
    return AdaptedModel(description, classifier)


def _lineage(verified: VerifiedLearngene) -> Lineage:
    """What a model keeps of the learngene from which it was adapted."""
    release = verified.release
    return Lineage(
        release=verified.release_digest,
        seq=release.seq,
        run_id=release.run_id,
        form=release.form,
        collective=release.signer,
    )


def _estimate(
    pictures: OwnPictures, fold: NDArray[np.int64], teach: Callable[[NDArray[np.int64], int, str], PictureClassifier]
) -> Estimate:
    """Accuracy on each part of the pictures, of models that were taught the others."""
    parts = int(fold.max()) + 1
    correct = np.zeros(len(pictures.classes), np.int64)
    for part in range(parts):
        classifier = teach(np.flatnonzero(fold != part), part, f"estimating, part {part + 1} of {parts}")
        truth = pictures.labels[fold == part]
        named = classifier.probabilities(pictures.pixels[fold == part]).argmax(1)
        correct += np.bincount(truth[named == truth], minlength=len(correct))
    return Estimate(folds=parts, correct=tuple(correct.tolist()))


def fold_of(pictures: OwnPictures, folds: int, settings: IndividualSettings, seed: int) -> NDArray[np.int64] | None:
    """The part of each picture ``[N]``: parts are as equal as possible, and each class is spread over as many as
    possible.

    At most ``folds`` parts, and no more than pictures. None for fewer than two pictures, and if a class has so few
    pictures that, without those of one part, none would be left to learn from (with early stopping: and one to validate
    on).
    """
    folds = min(folds, len(pictures.labels))
    if folds < 2:
        return None
    left = min(count - -(-count // folds) for count in pictures.counts)
    if left < (1 if settings.early_stopping is None else 2):
        return None
    rng = np.random.default_rng(seed)
    # Class by class in random order, and then dealt: neighbours go to different parts.
    order = np.lexsort((rng.permutation(len(pictures.labels)), pictures.labels))
    fold = np.empty(len(order), np.int64)
    fold[order] = np.arange(len(order)) % folds
    return fold


def wilson_interval(correct: int, total: int, level: float = 0.95) -> tuple[float, float]:
    """Confidence interval of a share ``correct / total`` (Wilson 1927, *Probable Inference*), in 0..1."""
    z = NormalDist().inv_cdf((1 + level) / 2)
    share, spread = correct / total, z * z / total
    centre = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * (share * (1 - share) / total + spread / (4 * total)) ** 0.5
    return max(0.0, centre - half), min(1.0, centre + half)


def _taught(
    learngene: Learngene,
    pictures: OwnPictures,
    rows: NDArray[np.int64],
    settings: IndividualSettings,
    method: Method,
    generator: torch.Generator,
    device: torch.device,
    at: Callable[[int], None],
) -> PictureClassifier:
    """A classifier, in evaluation mode, trained on the pictures ``rows``; ``at`` is called after each epoch."""
    mean, std = learngene.tensors["input.mean"], learngene.tensors["input.std"]
    pixels, labels, ways = pictures.pixels[rows], pictures.labels[rows], len(pictures.classes)
    images = DeviceImages.load(pixels, labels, Normalisation(mean, std), device)
    network: nn.Module
    if method.adaptation == "head":
        network = fit_feature_head(learngene, images, ways=ways, settings=settings.head)
    else:
        none = np.empty(0, np.int64)
        task = TargetTask(0, ways, np.arange(len(rows)), labels, none, none, pictures.classes)
        done = adapt(
            method,
            learngene.architecture,
            learngene,
            [task],
            images,
            settings,
            [generator],
            observe=lambda epoch, _: at(epoch),
        )
        trained = done.networks.network(0)
        network = head_on_network(trained, images, settings.head) if method.head else trained
    classifier = PictureClassifier(network, mean, std).to(device)
    return classifier.eval().requires_grad_(False)
