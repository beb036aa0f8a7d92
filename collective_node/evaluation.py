"""Accuracies of a collective's networks on held-out images; all in per cent, among all known classes if not said."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from collective_node.collective import Collective
from collective_node.collective_images import CollectiveImages, Truth
from protocol.errors import InputError
from protocol.learngene.images import DeviceImages, Normalisation, autocast
from protocol.learngene.side_by_side import side_by_side


class OpenAccuracy(NamedTuple):
    """Accuracy on classes that an annotator named: among all known classes, and among these classes alone, where the
    largest of their own logits counts. None if no image of them is held out."""

    among_known: float | None
    among_named: float | None


@dataclass(frozen=True)
class Evaluation:
    """What a collective's networks are tested on.

    Attributes:
        heldout: held-out images of the base classes, on the device.
        normalisation: of all images.
        truth: holds the held-out images of classes that an annotator may name; None if they are unknown.
    """

    heldout: DeviceImages
    normalisation: Normalisation
    truth: Truth | None = None

    @classmethod
    def load(
        cls, images: CollectiveImages, normalisation: Normalisation, device: torch.device, truth: Truth | None = None
    ) -> "Evaluation":
        """Copy the held-out images of a collective's folder to the device."""
        heldout = DeviceImages.load(images.heldout_images, images.heldout_labels, normalisation, device)
        return cls(heldout, normalisation, truth)

    def heldout_of(self, classes: Sequence[int]) -> DeviceImages:
        """The held-out images of some base classes.

        Raises:
            InputError: there are no such images.
        """
        heldout = self.heldout
        wanted = torch.isin(heldout.labels, torch.tensor(classes, device=heldout.labels.device))
        if not wanted.any():
            raise InputError("the collective's folder holds no held-out image of its known classes")
        return DeviceImages(heldout.pixels[wanted], heldout.labels[wanted], heldout.mean, heldout.std)

    def accuracy(self, network: nn.Module, collective: Collective, classes: Sequence[int]) -> float:
        """Accuracy of a network with the collective's outputs on some base classes."""
        return accuracy(network, self.heldout_of(classes), collective.outputs)

    def base_accuracy(self, network: nn.Module, collective: Collective) -> float:
        """Accuracy of a network with the collective's outputs on the known base classes."""
        return self.accuracy(network, collective, collective.known_base)

    def open_accuracy(self, collective: Collective, named: Mapping[str, int]) -> OpenAccuracy:
        """Accuracy of the collective on classes that an annotator named; a class that has no output yet is missed.

        Args:
            named: number of each class by its name, as :attr:`Collective.named_classes` has them.
        """
        truth = self.truth
        rows = [] if truth is None else [r for r, name in enumerate(truth.heldout_names) if name.casefold() in named]
        if truth is None or not rows:
            return OpenAccuracy(None, None)
        labels = np.array([named[truth.heldout_names[row].casefold()] for row in rows])
        images = DeviceImages.load(truth.heldout_images[rows], labels, self.normalisation, self.heldout.pixels.device)
        logits, outputs = _logits(collective.network, images), collective.outputs
        others = torch.ones(logits.shape[1], dtype=torch.bool, device=logits.device)
        others[[output for output in outputs[list(named.values())].tolist() if output >= 0]] = False
        alone = logits.masked_fill(others, -torch.inf)
        wanted = outputs[images.labels]
        return OpenAccuracy(_share_right(logits, wanted), _share_right(alone, wanted))


#: Images that are tested at once.
_AT_ONCE = 500


def accuracy(model: nn.Module, images: DeviceImages, targets: Tensor) -> float:
    """Share of images that a model recognises in evaluation mode, in per cent.

    Args:
        model: images to logits; its mode is restored afterwards.
        images: all of them are tested.
        targets: the model's output for each label, int64 ``[labels]``.
    """
    return _share_right(_logits(model, images), targets[images.labels])


def _logits(model: nn.Module, images: DeviceImages) -> Tensor:
    """Logits ``[N, C]`` of all images in evaluation mode, on their device; the mode is restored afterwards."""
    was_training = model.training
    model.eval()

    @torch.no_grad()
    def answered(rows: Tensor) -> Tensor:
        x, _ = images.batch(rows)
        with autocast(images.pixels.device):
            logits: Tensor = model(x)
        return logits

    found = side_by_side(answered, torch.arange(len(images)).split(_AT_ONCE))
    model.train(was_training)
    return torch.cat(found)


def _share_right(logits: Tensor, outputs: Tensor) -> float:
    """Share of rows whose largest logit is at the output that is wanted, in per cent."""
    return float((logits.argmax(1) == outputs).cpu().double().mean() * 100)
