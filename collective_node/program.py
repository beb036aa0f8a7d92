"""What the collective's node does: it evolves, answers requests with its learngene, and takes receipts."""

import hashlib
import logging
import time
from collections.abc import Mapping

import torch

from collective_node import private_images
from collective_node.configuration import CollectiveConfiguration
from collective_node.evolution import Collective, Evolution
from collective_node.publishing import learngene_of
from protocol.audit import Crossings
from protocol.bundle import CollectiveDesk
from protocol.confinement import Confinement
from protocol.errors import PolicyDeniedError
from protocol.events import Events
from protocol.images import choose_device
from protocol.keys import SigningKey
from protocol.ledger import CollectiveLedger
from protocol.metrics import METRICS_FILE, write_metrics
from protocol.network import describe
from protocol.node import Job, Program, Role
from protocol.policy import Policy
from protocol.socket import Frame
from protocol.trust import TrustStore

logger = logging.getLogger(__name__)


class CollectiveProgram:
    """Answers the wishes ``status``, ``evolve``, ``publish`` and ``receipt``."""

    role: Role = "collective"

    def __init__(self, configuration: CollectiveConfiguration, confinement: Confinement) -> None:
        node = configuration.node
        self.party = node.party
        self._settings, self._node, self._confinement = configuration.collective, node, confinement
        self._device = choose_device(node.device)
        if node.threads:
            torch.set_num_threads(node.threads)
        self._ledger = CollectiveLedger(node.state)
        self._desk = CollectiveDesk(
            key=SigningKey.load(node.key),
            trust=TrustStore.load(node.trust),
            ledger=self._ledger,
            policy=Policy.for_role("collective"),
            run_id=node.run_id,
            crossings=Crossings(node.state / "crossings.jsonl", node.party, _now),
        )
        self._events = Events(node.state / "events.jsonl")
        self._job = Job()

    def handle(self, wish: Frame) -> Frame:
        """Answer one wish of the relay; see :class:`protocol.node.Program`."""
        if wish.word == "status":
            return self._job.answer(self.role, self.party)
        if wish.word == "evolve":
            self._job.start("evolve", self._evolve)
            return self._job.answer(self.role, self.party)
        if wish.word == "publish":
            answer = self._desk.answer_request(wish.part("request"), _now())
            return Frame("bundle", parts=answer._asdict())
        if wish.word == "receipt":
            self._desk.accept_receipt(wish.part("receipt"), _now())
            return Frame("accepted")
        raise PolicyDeniedError(f"the collective does not know the wish {wish.word!r}")

    def _evolve(self) -> None:
        """Train, condense and publish what is not there yet; then write the figures."""
        published = {form: self._ledger.latest(self._node.run_id, form) for form in self._settings.forms}
        if (self._node.state / METRICS_FILE).exists() and None not in published.values():
            logger.info("the learngene of this run is published already")
            return
        images = private_images.read(self._node.data)
        evolution = Evolution(
            images, self._settings, self._node.seed, self._device, self._node.state / "checkpoint", self._events
        )
        seconds: dict[str, float] = {}
        started = time.perf_counter()
        collective = evolution.run()
        seconds["train"] = time.perf_counter() - started

        started = time.perf_counter()
        condensed, accuracy = evolution.condense(collective)
        seconds["condense"] = time.perf_counter() - started

        started = time.perf_counter()
        parameters = {"collective": sum(p.numel() for p in collective.network.parameters())}
        descriptions: dict[str, Mapping[str, object]] = {}
        for number, form in enumerate(self._settings.forms):
            self._events.append("fisher", number, len(self._settings.forms), f"Fisher diagonal, form {form}")
            learngene = learngene_of(form, evolution, collective, condensed, self._node.seed + number)
            release = self._desk.publish(learngene, _now())
            parameters[form] = sum(
                learngene.tensors[name].size
                for name, (role, _) in learngene.architecture.tensors(fisher=False).items()
                if role == "weight"
            )
            assert learngene.fisher is not None
            fisher = {name: t for name, t in learngene.tensors.items() if name.startswith("fisher.")}
            descriptions[form] = {
                "architecture": describe(learngene.architecture),
                "release": release.digest,
                "fisher": {
                    **learngene.fisher.model_dump(),
                    "largest": max(float(t.max()) for t in fisher.values()),
                    "mean": sum(float(t.sum()) for t in fisher.values()) / sum(t.size for t in fisher.values()),
                },
            }
        self._events.append("fisher", 1, 1, "published")
        seconds["fisher"] = time.perf_counter() - started
        write_metrics(self._node.state, self._metrics(collective, accuracy, parameters, descriptions, seconds))

    def _metrics(
        self,
        collective: Collective,
        condensed_accuracy: float,
        parameters: Mapping[str, int],
        learngenes: Mapping[str, Mapping[str, object]],
        seconds: Mapping[str, float],
    ) -> dict[str, object]:
        trend = collective.trend
        layers = [f"conv {number + 1}" for number in range(trend.layers)]
        return {
            "tasks": [task.model_dump() for task in collective.tasks],
            "base_accuracy": collective.tasks[-1].accuracy,
            "known_classes": len(collective.known),
            "condensed_accuracy": condensed_accuracy,
            "gradient_trend": {
                "layers": layers,
                "rho": [list(row) for row in zip(*trend.rho, strict=True)],
                "sigma": trend.sigma,
            },
            "learngenes": learngenes,
            "parameters": parameters,
            "weights_sha256": _digest(collective),
            "device": str(self._device),
            "threads": torch.get_num_threads(),
            "confinement": self._confinement.line,
            "seconds": seconds,
        }


def make(configuration: CollectiveConfiguration, confinement: Confinement) -> Program:
    """The program of a collective's node.

    Raises:
        InputError: a device, key or trust store is missing or wrong.
    """
    return CollectiveProgram(configuration, confinement)


def _now() -> int:
    return int(time.time())


def _digest(collective: Collective) -> str:
    """SHA-256 over the network's tensors in order of their names: equal for equal weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(collective.network.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
