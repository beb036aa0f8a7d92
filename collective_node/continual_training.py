"""Training of a collective on further classes, with one of the strategies against forgetting the earlier ones."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from collective_node.collective import Collective
from collective_node.ewc import EwcPenalty
from collective_node.extraction.condensing import ask
from collective_node.objectives import Objective, objective_of
from collective_node.settings import CollectiveSettings, Strategy
from collective_node.training import fit, steps_for
from protocol.errors import RunFailedError
from protocol.node.events import Events, Kind

#: Batches from one gradient histogram to the next.
OBSERVE_EVERY = 8


@dataclass(frozen=True)
class StepEvents:
    """Reports the steps of one training as events.

    Attributes:
        events: where they are reported.
        event: name of the event.
        text: what is trained.
        before: steps of this kind that other trainings take earlier.
        total: steps of this kind in the whole run; 0: no other training has steps of this kind.
    """

    events: Events
    event: Kind
    text: str
    before: int = 0
    total: int = 0

    def report(self, done: int, steps: int) -> None:
        """Report that ``done`` of ``steps`` of this training are done."""
        self.events.append(self.event, self.before + done, self.total or steps, self.text)


class Trained(NamedTuple):
    """Result of one training: its steps, the mean loss at its end, the weight of the EWC penalty (None without it)."""

    steps: int
    loss: float
    retain_weight: float | None

    def then(self, other: "Trained") -> "Trained":
        """Both trainings, one after the other."""
        return Trained(self.steps + other.steps, other.loss, other.retain_weight)


def train(
    collective: Collective,
    classes: Sequence[int],
    epochs: float,
    strategy: Strategy,
    settings: CollectiveSettings,
    events: StepEvents,
    watch: Callable[[list[Tensor]], None] | None = None,
    learning_rate: float | None = None,
    objective: Objective | None = None,
) -> Trained:
    """Train a collective's network on the images of ``classes``.

    Args:
        collective: its network and the state of its optimiser change.
        classes: numbers of known classes; with the strategy ``replay`` the earlier ones are among them.
        epochs: passes over the images of these classes.
        strategy: ``ewc`` adds the penalty of the earlier tasks, if there is one.
        learning_rate: the peak; None: that of the settings.
        objective: what is learned; None: the labels.
        watch: gets the weight gradients of all convolutions of every eighth batch.

    Raises:
        RunFailedError: the loss, a weight or a gradient is not finite any more.
    """
    network = collective.network

    def observe(step: int, steps: int) -> None:
        if watch is not None and step % OBSERVE_EVERY == 0:
            gradients = [layer.conv.weight.grad for layer in network.layers]
            try:
                watch([gradient for gradient in gradients if gradient is not None])
            except ValueError as error:
                raise RunFailedError(f"{events.text}: {error}; lower the collective's learning rate") from error
        events.report(step + 1, steps)

    held = collective.ewc.of(network) if strategy == "ewc" and collective.ewc is not None else None
    network.train()
    steps, loss = fit(
        network,
        dict(network.named_parameters()),
        collective.training_set(classes),
        epochs,
        settings=settings,
        learning_rate=learning_rate or settings.learning_rate,
        random=collective.random,
        momentum=collective.momentum,
        proximal=None if held is None else lambda step: held.proximal_step(step * settings.ewc),
        observe=observe,
        objective=objective,
    )
    return Trained(steps, loss, None if held is None else settings.ewc)


def consolidate(collective: Collective, settings: CollectiveSettings, events: Events) -> Trained:
    """Train a collective's network on everything known, in as many generations as the settings ask for.

    Each further generation goes on from the weights of the one before, which is its teacher besides the labels. (Where
    networks are born again, Furlanello et al. 2018, they begin from random weights; what a sequence of tasks taught
    would be lost.) All share the epochs equally.
    """
    generations, data = 1 + settings.consolidate_generations, collective.training_set(collective.known)
    epochs, text = settings.consolidate_epochs / generations, f"consolidating {len(collective.known)} classes"
    steps = steps_for(epochs, len(data), settings.batch_size)

    def generation(number: int) -> Trained:
        objective = None
        if number > 0:
            knowledge = ask(collective.network, data, data.every_row)
            objective = objective_of(settings.taught_by_itself, knowledge)
        reported = StepEvents(events, "consolidate", text, number * steps, generations * steps)
        return train(collective, collective.known, epochs, "replay", settings, reported, objective=objective)

    trained = generation(0)
    for number in range(1, generations):
        trained = trained.then(generation(number))
    return trained


def anchor(collective: Collective, classes: Sequence[int], settings: CollectiveSettings) -> None:
    """Add the Fisher diagonal of ``classes`` to the collective's EWC penalty, and anchor its weights where they are."""
    data, generator = collective.training_set(classes), collective.random["fisher"]
    rows = data.distinct(settings.ewc_samples, generator)
    before = collective.ewc or EwcPenalty()
    collective.ewc = before.after_task(collective.network, data.batches(rows), settings.fisher_estimator, generator)
