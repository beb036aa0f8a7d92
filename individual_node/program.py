"""The program of an individual's node: it requests, verifies and inherits learngenes, and adapts to its target
tasks.
"""

import logging
import secrets
from collections.abc import Mapping
from statistics import median
from typing import get_args

from individual_node import target_tasks
from individual_node.configuration import IndividualConfiguration
from individual_node.method_table import METHODS
from individual_node.methods import Evaluation, Outcome
from individual_node.metrics import IndividualMetrics, LearningCurve
from protocol.confinement.guards import Confinement
from protocol.encoding.calendar import unix_seconds
from protocol.errors import MalformedError, PolicyDeniedError
from protocol.exchange.individual_endpoint import IndividualEndpoint
from protocol.keys.party_keys import NodeKeys
from protocol.learngene.architecture import Architecture, Form, form_named
from protocol.learngene.network import describe
from protocol.node.metrics import write_metrics
from protocol.node.program import PartyProgram
from protocol.node.server import Program
from protocol.transport.frame import Frame
from protocol.trust.role import Role

logger = logging.getLogger(__name__)


class IndividualProgram(PartyProgram[IndividualEndpoint]):
    """Answers the commands ``status``, ``request``, ``inherit``, ``abort`` and ``adapt``."""

    role: Role = "individual"

    def __init__(self, configuration: IndividualConfiguration, confinement: Confinement, keys: NodeKeys) -> None:
        super().__init__(configuration.node, confinement, keys, IndividualEndpoint)
        self._settings = configuration.individual

    def _fulfil(self, command: Frame) -> Frame | None:
        if command.name == "request":
            form, now = _form(command.fields.get("form", "")), unix_seconds()
            return Frame("request", parts={"request": self._endpoint.request(form, now, secrets.token_bytes(16))})
        if command.name == "inherit":
            bundle = (command.part("release"), command.part("grant"), command.part("blob"))
            return Frame("receipt", parts={"receipt": self._endpoint.inherit(*bundle, unix_seconds()).receipt})
        if command.name == "abort":
            self._endpoint.accept_abort(command.part("abort"), unix_seconds())
            return Frame("accepted")
        if command.name == "adapt":
            return self._begin("adapt", self._adapt)
        return None

    def _adapt(self) -> None:
        """Run every method on the node's own target tasks and write the figures into its own folder."""
        verified = {form: self._endpoint.learngene(form) for form in get_args(Form)}
        inherited = {form: found for form, found in verified.items() if found is not None}
        learngenes = {form: found.learngene for form, found in inherited.items()}
        statuses = {
            form: self._endpoint.revocation_status(found.release_digest, found.release.signer)
            for form, found in inherited.items()
        }
        for form, status in statuses.items():
            if status is not None:
                logger.warning(
                    "the learngene in the form %s is %s, adapted all the same; request a new one", form, status
                )
        forms = {METHODS[name].form: name for name in self._settings.methods}
        for form, name in forms.items():
            if form is not None and form not in learngenes:
                raise PolicyDeniedError(
                    f"no learngene in the form {form!r} was inherited yet, and {name!r} needs one; request it"
                )
        images = target_tasks.read(self._node.data)
        evaluation = Evaluation(learngenes, images, self._settings, self._node.seed, self._device, self._events)
        outcomes, seconds = evaluation.run_all()
        found = {
            **_figures(outcomes),
            "task_classes": {task.number: task.classes for tasks in images.tasks.values() for task in tasks},
            "inherited": {form: describe(self._at_its_size(found.architecture)) for form, found in learngenes.items()},
            "revocation_status": {form: status for form, status in statuses.items() if status is not None},
            **self._circumstances(),
            "seconds": seconds,
        }
        write_metrics(self._node.state, IndividualMetrics.model_validate(found))

    def _at_its_size(self, inherited: Architecture) -> Architecture:
        """What the methods adapted."""
        return inherited.of_size(self._settings.size_of(inherited))


def _figures(outcomes: Mapping[str, Mapping[int, Outcome]]) -> dict[str, object]:
    """Metrics of every method: accuracy by shots and task, learning curves, and the lambda of Eq. 9 (the median, if
    each task and epoch has its own).
    """
    curves = {
        method: {
            shots: LearningCurve(
                tasks=len(next(iter(outcome.curve.values()))),
                epochs=tuple(outcome.curve),
                accuracy=tuple(sum(values) / len(values) for values in outcome.curve.values()),
            )
            for shots, outcome in by_shots.items()
            if outcome.curve
        }
        for method, by_shots in outcomes.items()
    }
    lambdas = {
        method: [r for o in by_shots.values() for r in o.retain_weights] for method, by_shots in outcomes.items()
    }
    return {
        "methods": {
            method: {shots: outcome.accuracy for shots, outcome in by_shots.items()}
            for method, by_shots in outcomes.items()
        },
        "curves": {method: by_shots for method, by_shots in curves.items() if by_shots},
        "retain_weight": {method: median(values) for method, values in lambdas.items() if values},
    }


def make(configuration: IndividualConfiguration, confinement: Confinement, keys: NodeKeys) -> Program:
    """The program of an individual's node.

    Raises:
        InputError: a device, key or trust store is missing or wrong.
    """
    return IndividualProgram(configuration, confinement, keys)


def _form(word: str) -> Form:
    form = form_named(word)
    if form is None:
        raise MalformedError(f"{word!r} is no form of a learngene")
    return form
