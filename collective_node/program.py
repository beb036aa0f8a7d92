"""The program of the collective's node: it evolves, answers requests with its learngene, and takes receipts."""

import hashlib
import logging
import secrets
from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from collective_node import collective_images
from collective_node.collective_images import CollectiveImages
from collective_node.configuration import CollectiveConfiguration
from collective_node.metrics import (
    CollectiveMetrics,
    Criterion,
    FisherFacts,
    GradientTrend,
    LearngeneFacts,
    OpenWorld,
    Similarity,
    SizeFacts,
)
from collective_node.open_world.annotators import Annotator, Oracle, PageAnnotator
from collective_node.pipeline import Chosen, Evolved, check_privacy, evolve
from protocol.confinement.guards import Confinement
from protocol.encoding.calendar import unix_seconds
from protocol.exchange.collective_endpoint import CollectiveEndpoint, Withdrawal
from protocol.exchange.collective_ledger import StoredRelease
from protocol.keys.party_keys import NodeKeys
from protocol.learngene import storage
from protocol.learngene.architecture import FULL, Form, Size
from protocol.learngene.learngene import Learngene
from protocol.learngene.network import describe
from protocol.messages.sealing import CONTENT_KEY_BYTES
from protocol.node.metrics import METRICS_FILE, write_metrics
from protocol.node.program import PartyProgram
from protocol.node.server import Program
from protocol.transport.frame import Frame
from protocol.trust.role import Role

if TYPE_CHECKING:
    from collective_node.differential_privacy.evolution import PrivatelyEvolved

logger = logging.getLogger(__name__)


class CollectiveProgram(PartyProgram[CollectiveEndpoint]):
    """Answers the commands ``status``, ``evolve``, ``publish`` and ``receipt``."""

    role: Role = "collective"

    def __init__(self, configuration: CollectiveConfiguration, confinement: Confinement, keys: NodeKeys) -> None:
        super().__init__(configuration.node, confinement, keys, CollectiveEndpoint)
        self._settings = configuration.collective

    def _fulfil(self, command: Frame) -> Frame | None:
        if command.name == "evolve":
            return self._begin("evolve", self._evolve)
        if command.name == "publish":
            answer = self._endpoint.answer_request(command.part("request"), unix_seconds())
            return Frame("abort" if isinstance(answer, Withdrawal) else "bundle", parts=answer._asdict())
        if command.name == "receipt":
            self._endpoint.accept_receipt(command.part("receipt"), unix_seconds())
            return Frame("accepted")
        return None

    def _evolve(self) -> None:
        """Train, condense and publish, unless all forms are already published; then write the figures."""
        published = [self._endpoint.published(form) for form in self._settings.forms]
        if (self._node.state / METRICS_FILE).exists() and None not in published:
            logger.info("the learngene of this run is published already")
            return
        images = collective_images.read(self._node.data)
        evolved = self._evolved(images)
        now = unix_seconds()
        releases = {
            form: self._endpoint.publish(learngene, now, secrets.token_bytes(CONTENT_KEY_BYTES))
            for form, learngene in evolved.learngenes.items()
        }
        self._events.append("fisher", 1, 1, "published")
        figures = _figures(evolved) if isinstance(evolved, Evolved) else _private_figures(evolved)
        rights = _accuracies(evolved) if isinstance(evolved, Evolved) else {}
        described = {
            form: _described(learngene, releases[form], rights.get(form, {}))
            for form, learngene in evolved.learngenes.items()
        }
        found = {
            **figures,
            "learngenes": described,
            "privacy": evolved.mechanism,
            **self._circumstances(),
            "seconds": evolved.seconds,
        }
        write_metrics(self._node.state, CollectiveMetrics.model_validate(found))

    def _evolved(self, images: CollectiveImages) -> "Evolved | PrivatelyEvolved":
        """Evolve with or without differential privacy, as the settings say."""
        folder, fewest = self._node.state / "checkpoint", self._endpoint.fewest_samples
        if not self._settings.private_weights:
            return evolve(
                images,
                self._settings,
                seed=self._node.seed,
                device=self._device,
                checkpoints=folder,
                events=self._events,
                annotator=self._annotator(),
                fewest_fisher_images=fewest,
            )
        check_privacy(self._settings)
        # Imported here, because it needs the extra `privacy`.
        from collective_node.differential_privacy.evolution import evolve_privately

        return evolve_privately(
            images,
            self._settings,
            seed=self._node.seed,
            device=self._device,
            checkpoints=folder,
            events=self._events,
            fewest_fisher_images=fewest,
        )

    def _annotator(self) -> Annotator | None:
        """The annotator of the settings."""
        if not self._settings.cycles:
            return None
        if self._settings.annotator == "annotate":
            return PageAnnotator(self._node.state)
        return Oracle(collective_images.read_truth(self._node.data), self._settings.examples)


def make(configuration: CollectiveConfiguration, confinement: Confinement, keys: NodeKeys) -> Program:
    """The program of a collective's node.

    Raises:
        InputError: a device, key or trust store is missing or wrong.
    """
    return CollectiveProgram(configuration, confinement, keys)


def _figures(evolved: Evolved) -> dict[str, object]:
    collective, trend = evolved.collective, evolved.collective.trend
    parameters = {"collective": sum(p.numel() for p in collective.network.parameters())}
    parameters |= {form: learngene.architecture.parameters for form, learngene in evolved.learngenes.items()}
    assert trend.sigma is not None  # fixed by the first task
    return {
        "tasks": tuple(collective.tasks),
        "base_accuracy": (
            collective.cycles[-1].base_accuracy_after if collective.cycles else collective.tasks[-1].accuracy
        ),
        "known_classes": len(collective.known),
        "condensed_accuracy": evolved.accuracy.get("condensed"),
        "compact_accuracy": evolved.accuracy,
        "gradient_trend": GradientTrend(
            layers=tuple(f"conv {number + 1}" for number in range(trend.layers)),
            rho=tuple(zip(*trend.rho, strict=True)),
            sigma=trend.sigma,
        ),
        "criterion": _criterion(evolved.chosen),
        "open_world": OpenWorld(cycles=tuple(collective.cycles), comparisons=tuple(evolved.comparisons)),
        "parameters": parameters,
        "weights_sha256": _digest(collective.network.state_dict()),
    }


def _private_figures(evolved: "PrivatelyEvolved") -> dict[str, object]:
    """Figures without a gradient trend: there is no sequence of tasks."""
    return {
        "tasks": (),
        "known_classes": evolved.known,
        "condensed_accuracy": evolved.condensed_accuracy,
        "parameters": {form: learngene.architecture.parameters for form, learngene in evolved.learngenes.items()},
    }


def _criterion(chosen: Chosen) -> Criterion:
    """The chosen layers, numbered from 1."""
    similarity = None
    if chosen.similarity is not None and chosen.by_similarity is not None:
        similarity = Similarity(
            per_layer=chosen.similarity.per_layer, layers=tuple(number + 1 for number in chosen.by_similarity)
        )
    return Criterion(
        chosen=tuple(number + 1 for number in chosen.layers),
        settled=tuple(chosen.settled),
        found=chosen.found,
        similarity=similarity,
    )


def _accuracies(evolved: Evolved) -> dict[Form, dict[Size, float]]:
    """Accuracy of every size of every compact form, the whole's among them."""
    found: dict[Form, dict[Size, float]] = {}
    for form, accuracy in evolved.accuracy.items():
        found[form] = {FULL: accuracy}
        for size, smaller in evolved.size_accuracy.get(form, {}).items():
            found[form][size] = smaller
    return found


def _sizes(learngene: Learngene, accuracy: Mapping[Size, float]) -> tuple[SizeFacts, ...]:
    """Facts of every size, smallest first; none if there is the whole alone."""
    whole = learngene.architecture
    found = []
    for size in (*whole.sizes, FULL) if whole.sizes else ():
        own = whole.of_size(size)
        fisher = learngene.fisher is not None and (size == FULL or whole.size_weights == "nested")
        found.append(
            SizeFacts(
                size=size,
                parameters=own.parameters,
                bytes=storage.encoded_size(own, fisher=fisher),
                accuracy=accuracy.get(size),
            )
        )
    return tuple(found)


def _described(learngene: Learngene, release: StoredRelease, accuracy: Mapping[Size, float]) -> LearngeneFacts:
    assert learngene.fisher is not None
    fisher = [tensor for name, tensor in learngene.tensors.items() if name.startswith("fisher.")]
    return LearngeneFacts(
        architecture=describe(learngene.architecture),
        release=release.digest,
        dtype=learngene.architecture.dtype,
        bytes=release.payload.plaintext.size,
        sizes=_sizes(learngene, accuracy),
        fisher=FisherFacts(
            **learngene.fisher.model_dump(),
            largest=max(float(t.max()) for t in fisher),
            mean=sum(float(t.sum()) for t in fisher) / sum(t.size for t in fisher),
        ),
    )


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of a network's tensors in the order of their names; equal for equal weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
