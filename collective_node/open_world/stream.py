"""The stream: which of its images look unknown, and how well they are recognised (Eq. 2 and 3)."""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from collective_node.annotation.unknown_set import UnknownSet
from collective_node.collective import Collective
from collective_node.collective_images import Truth
from collective_node.network.expandable_network import ExpandableNetwork, output_weights
from collective_node.open_world.annotators import LabelQuery
from collective_node.open_world.metrics import stream_metrics
from collective_node.open_world.scores import Responses, calibrated_threshold, fit_score
from collective_node.records import StreamMetrics
from collective_node.settings import SCORES, CollectiveSettings, Score
from protocol.errors import InputError, RunFailedError
from protocol.learngene.images import DeviceImages, full_float32

#: Training images of each known class that the scores with a memory are fitted on.
FIT_IMAGES_PER_CLASS = 100


@dataclass(frozen=True)
class Recognition:
    """Result of recognising one part of the stream.

    Attributes:
        rows: rows ``[n]`` of the stream.
        scores: ``[n]``, by the score that decides; larger is more unknown.
        threshold: above it an image is unknown (Eq. 3).
        features: float32 ``[n, F]``.
        metrics: by score; None if the truth is not known, and for a score that could not be taken.
    """

    rows: NDArray[np.int64]
    scores: NDArray[np.float64]
    threshold: float
    features: NDArray[np.float32]
    metrics: dict[Score, StreamMetrics | None] | None

    @property
    def flagged(self) -> NDArray[np.bool_]:
        """Which images are unknown."""
        return np.asarray(self.scores > self.threshold)


class Stream:
    """An unlabelled stream, cut into one part for each cycle and one more to measure on after the last.

    If the tasks of a run teach only some base classes, the others are neither known nor new. Their images are left out
    if the truth says which they are.

    Args:
        images: uint8 ``[N, H, W, C]``.
        heldout: held-out images of the base classes: what thresholds are calibrated on, with the images of named
            classes that the collective is not trained on.
        truth: the stream's labels, if they are known; apart from this they are used only for measuring.
        untaught: names of the base classes that no task teaches.

    Raises:
        InputError: fewer images than parts, or not one label for each.
    """

    def __init__(
        self,
        images: NDArray[np.uint8],
        heldout: DeviceImages,
        truth: Truth | None,
        untaught: Collection[str],
        settings: CollectiveSettings,
    ) -> None:
        rows = np.arange(len(images))
        if truth is not None and len(truth.stream_names) != len(images):
            raise InputError(f"the stream has {len(images)} images and {len(truth.stream_names)} labels")
        if truth is not None:
            rows = rows[np.array([name not in untaught for name in truth.stream_names], dtype=np.bool_)]
        if len(rows) < settings.cycles + 1:
            raise InputError(
                f"a stream of {len(rows)} images cannot be cut into {settings.cycles + 1} parts: one for each cycle, "
                "and one to measure on; set cycles lower"
            )
        self.images, self.truth = images, truth
        self._heldout, self._settings = heldout, settings
        self.parts = np.array_split(rows, settings.cycles + 1)

    def recognise(self, collective: Collective, part: int, score: Score) -> Recognition:
        """Recognise a part of the stream, numbered from 0; ``score`` decides, and all scores are measured."""
        settings, rows = self._settings, self.parts[part]
        network = collective.network
        fitted = torch.cat([found[:FIT_IMAGES_PER_CLASS] for found in collective.rows_of(collective.known)])
        known = _responses(network, collective.images, fitted)
        outputs = collective.outputs
        labels = outputs[collective.images.labels[fitted.to(outputs.device)]].cpu()
        mean, std = collective.images.mean, collective.images.std
        pixels = torch.from_numpy(np.ascontiguousarray(self.images[rows])).to(mean.device)
        stream = DeviceImages(pixels, torch.zeros(len(rows), dtype=torch.int64, device=mean.device), mean, std)
        seen = _responses(network, stream)
        # Images of classes that no task teaches must not calibrate the threshold.
        is_known = torch.isin(self._heldout.labels.cpu(), torch.tensor(collective.known))
        calibrated_on = [_responses(network, self._heldout, torch.nonzero(is_known)[:, 0])]
        if len(collective.calibration):
            calibrated_on.append(_responses(network, collective.images, collective.calibration))
        weights = output_weights(network.classifier)
        scores: dict[Score, Tensor] = {}
        thresholds: dict[Score, float] = {}
        for name in SCORES if self.truth is not None else (score,):
            try:
                found = fit_score(name, known, labels, weights=weights, neighbours=settings.neighbours)
            except (InputError, RunFailedError):
                if name == score:
                    raise
                continue  # one that is only measured
            scores[name] = found(seen)
            kept = torch.cat([found(responses) for responses in calibrated_on])
            thresholds[name] = calibrated_threshold(kept, settings.keep_known)
        if settings.threshold is not None and score == settings.score:
            thresholds[score] = settings.threshold
        return Recognition(
            rows,
            scores[score].cpu().numpy(),
            thresholds[score],
            seen.features.cpu().numpy(),
            self._metrics(collective, rows, seen, scores, thresholds),
        )

    def query(self, collective: Collective, recognition: Recognition, cycle: int) -> LabelQuery:
        """Query for the annotator about the unknown images of a part.

        Raises:
            InputError: no image looks unknown.
        """
        flagged = recognition.flagged
        if not flagged.any():
            raise InputError(
                f"open-world cycle {cycle + 1}: none of {len(flagged)} images of the stream looks unknown (score above "
                f"{recognition.threshold:.4g}); lower keep_known or threshold, or set cycles to {cycle}"
            )
        unknown = UnknownSet(
            images=self.images[recognition.rows[flagged]],
            scores=np.asarray(recognition.scores[flagged], dtype=np.float64),
            features=recognition.features[flagged],
            known=tuple(collective.classes[number] for number in collective.known),
        )
        return LabelQuery(cycle, recognition.rows, flagged, unknown, self._settings.classes_per_cycle)

    def _metrics(
        self,
        collective: Collective,
        rows: NDArray[np.int64],
        seen: Responses,
        scores: dict[Score, Tensor],
        thresholds: dict[Score, float],
    ) -> dict[Score, StreamMetrics | None] | None:
        if self.truth is None:
            return None
        names = [collective.classes[number] for number in collective.known]
        truly = [self.truth.stream_names[row] for row in rows]
        unknown = torch.tensor([name not in names for name in truly])
        predicted = seen.logits.argmax(1).tolist()
        correct = torch.tensor([names[output] == name for output, name in zip(predicted, truly, strict=True)])
        return {
            name: stream_metrics(scores[name].cpu(), unknown, correct, thresholds[name]) if name in scores else None
            for name in SCORES
        }


@torch.no_grad()
def _responses(network: ExpandableNetwork, images: DeviceImages, rows: Tensor | None = None) -> Responses:
    """Logits of images, and what the classifier's last part takes; evaluation mode and float32: no rounding may make
    ties."""
    was_training = network.training
    network.eval()
    *before, output = network.classifier
    hidden = nn.Sequential(*before)
    features: list[Tensor] = []
    logits: list[Tensor] = []
    with full_float32():
        for index in (torch.arange(len(images)) if rows is None else rows).split(500):
            x, _ = images.batch(index)
            found = hidden(network.blocks(x))
            features.append(found)
            logits.append(output(found))
    network.train(was_training)
    return Responses(torch.cat(logits), torch.cat(features))
