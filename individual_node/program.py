"""What an individual's node does: it requests, verifies and inherits learngenes, and adapts to its target tasks."""

import secrets
import time
from typing import get_args

import torch

from individual_node import target_tasks
from individual_node.adaptation import choose_retain
from individual_node.configuration import IndividualConfiguration
from individual_node.methods import FORMS, Evaluation
from protocol.architecture import Form
from protocol.bundle import IndividualDesk
from protocol.confinement import Confinement
from protocol.errors import MalformedError, PolicyDeniedError
from protocol.events import Events
from protocol.images import choose_device
from protocol.keys import SigningKey
from protocol.metrics import write_metrics
from protocol.network import describe
from protocol.node import Job, Program, Role
from protocol.socket import Frame
from protocol.trust import TrustStore


class IndividualProgram:
    """Answers the wishes ``status``, ``request``, ``inherit`` and ``adapt``."""

    role: Role = "individual"

    def __init__(self, configuration: IndividualConfiguration, confinement: Confinement) -> None:
        node = configuration.node
        self.party = node.party
        self._settings, self._node, self._confinement = configuration.individual, node, confinement
        self._device = choose_device(node.device)
        if node.threads:
            torch.set_num_threads(node.threads)
        self._desk = IndividualDesk.open(
            node.state,
            party=node.party,
            key=SigningKey.load(node.key),
            trust=TrustStore.load(node.trust),
            run_id=node.run_id,
            clock=_now,
        )
        self._events = Events(node.state / "events.jsonl")
        self._job = Job()

    def handle(self, wish: Frame) -> Frame:
        """Answer one wish of the relay; see :class:`protocol.node.Program`."""
        if wish.word == "status":
            return self._job.answer(self.role, self.party)
        if wish.word == "request":
            request = self._desk.request(_form(wish.words.get("form", "")), _now(), secrets.token_bytes(16))
            return Frame("request", parts={"request": request})
        if wish.word == "inherit":
            inheritance = self._desk.inherit(wish.part("release"), wish.part("grant"), wish.part("blob"), _now())
            return Frame("receipt", parts={"receipt": inheritance.receipt})
        if wish.word == "adapt":
            self._job.start("adapt", self._adapt)
            return self._job.answer(self.role, self.party)
        raise PolicyDeniedError(f"the individual does not know the wish {wish.word!r}")

    def _adapt(self) -> None:
        """Run every method on the node's own target tasks and write the figures into its own folder."""
        verified = {form: self._desk.learngene(form) for form in get_args(Form)}
        learngenes = {form: found.learngene for form, found in verified.items() if found is not None}
        wanted = sorted({FORMS[method] for method in self._settings.methods if method in FORMS} - set(learngenes))
        if wanted:
            raise PolicyDeniedError(f"no learngene in the form {wanted[0]!r} was inherited yet")
        images = target_tasks.read(self._node.data)
        evaluation = Evaluation(learngenes, images, self._settings, self._node.seed, self._device, self._events)
        outcomes, seconds = evaluation.run_all()
        metrics: dict[str, object] = {
            "methods": {
                method: {str(shots): {str(t): a for t, a in o.accuracy.items()} for shots, o in by_shots.items()}
                for method, by_shots in outcomes.items()
            },
            "curves": {
                method: {
                    str(shots): {
                        "tasks": len(next(iter(outcome.curve.values()))),
                        "epochs": list(outcome.curve),
                        "accuracy": [sum(values) / len(values) for values in outcome.curve.values()],
                    }
                    for shots, outcome in by_shots.items()
                    if outcome.curve
                }
                for method, by_shots in outcomes.items()
                if any(outcome.curve for outcome in by_shots.values())
            },
            "retain": {
                method: choose_retain(learngenes[FORMS[method]], self._settings)
                for method in self._settings.methods
                if method in ("condensed-eq9", "paper")
            },
            "inherited": {form: describe(found.architecture) for form, found in learngenes.items()},
            "device": str(self._device),
            "threads": torch.get_num_threads(),
            "confinement": self._confinement.line,
            "seconds": seconds,
        }
        write_metrics(self._node.state, metrics)


def make(configuration: IndividualConfiguration, confinement: Confinement) -> Program:
    """The program of an individual's node.

    Raises:
        InputError: a device, key or trust store is missing or wrong.
    """
    return IndividualProgram(configuration, confinement)


def _form(word: str) -> Form:
    for form in get_args(Form):
        if word == form:
            found: Form = form
            return found
    raise MalformedError(f"{word!r} is no form of a learngene")


def _now() -> int:
    return int(time.time())
