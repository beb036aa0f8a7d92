"""Gradient descent on class-balanced batches: the one loop that tasks, cycles and condensing share."""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from collective_node.augmentation import AugmentationPlan, Augmenter
from collective_node.batch_gradient import BatchGradient
from collective_node.mixing import Mixer, blocks_of
from collective_node.objectives import Objective, objective_of
from collective_node.random_states import RandomStates
from collective_node.settings import CollectiveSettings, Schedule
from collective_node.training_set import TrainingSet
from collective_node.weight_averaging import WeightAverage
from protocol.errors import RunFailedError

#: Called after each backward pass, before the step: (step, steps).
Observer = Callable[[int, int], None]
#: Share of a one-cycle spent warming up, and the share of the peak rate it begins with.
WARM_UP = 0.15
FLOOR = 0.02
#: Shares of the steps from which on the schedule `step` takes a tenth of the rate before.
DROPS = (0.6, 0.8)


def one_cycle(step: int, steps: int, peak: float) -> float:
    """Learning rate of ``step`` of ``steps``: a linear rise over the first 15 %, then half a cosine down."""
    rise = max(1, math.ceil(WARM_UP * steps))
    if step < rise:
        return peak * (FLOOR + (1 - FLOOR) * (step + 1) / rise)
    return peak * (FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise))))


def rate_of(schedule: Schedule, step: int, steps: int, peak: float) -> float:
    """Learning rate of ``step`` (from 0) of ``steps`` under a schedule; all rise to the peak as one cycle does.

    Without that rise a compact network learned half as much in six epochs at a rate of 0.1.
    """
    if schedule == "one-cycle" or step < math.ceil(WARM_UP * steps):
        return one_cycle(step, steps, peak)
    if schedule == "constant":
        return peak
    return peak * math.prod(0.1 for share in DROPS if step >= share * steps)


def steps_for(epochs: float, images: int, batch_size: int) -> int:
    """Batches in so many passes over the images, at least one."""
    return max(1, round(epochs * images / batch_size))


def fit(
    model: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    data: TrainingSet,
    epochs: float,
    *,
    settings: CollectiveSettings,
    learning_rate: float,
    random: RandomStates,
    momentum: dict[str, Tensor] | None = None,
    proximal: Callable[[float], None] | None = None,
    observe: Observer | None = None,
    objective: Objective | None = None,
) -> tuple[int, float]:
    """Train ``parameters`` of ``model`` on class-balanced batches, with the regularisers of the settings.

    Args:
        model: images to logits; the caller chooses its mode (train, eval). If the settings ask for rotation, it has a
            head that tells turns (:class:`collective_node.objectives.Answering`).
        parameters: by name; the optimiser changes these and no others.
        data: what to train on.
        epochs: passes over its images.
        learning_rate: the largest one; its schedule is that of the settings.
        random: draws batches, augmentation and dropout.
        momentum: of the optimiser, by parameter name; changed to that at the end. None: it begins at zero.
        proximal: takes the proximal step, of the size that it is given, of a penalty on the parameters; called after
            each step of the optimiser. The momentum knows nothing of the penalty, and a constant gradient moves the
            parameters by ``rate / (1 - momentum)`` a step in the end. That is the size, so a training comes to rest
            where loss + penalty is least, whatever the momentum.
        observe: called after each backward pass.
        objective: what is learned; None: the labels, as the settings say.

    Returns:
        The number of batches, and the mean loss of the last tenth of them.

    Raises:
        RunFailedError: the loss or a weight is not finite any more.
    """
    steps = steps_for(epochs, len(data), settings.batch_size)
    order = data.balanced(steps, settings.batch_size, random["batches"])
    optimiser = _optimiser(parameters, learning_rate, settings, momentum)
    objective = objective or objective_of(settings)
    augmenter = Augmenter(_augmentation(settings, model), random)
    average = WeightAverage(parameters, steps, decay=settings.ema, share=settings.swa)
    parts = settings.parts if data.device.type == "cpu" else 1
    last: list[Tensor] = []
    with BatchGradient(model, data, parts, objective, random, augmenter) as gradient:
        for step, index in enumerate(order):
            rate = rate_of(settings.schedule, step, steps, learning_rate)
            for group in optimiser.param_groups:
                group["lr"] = rate
            loss = gradient(index)
            if observe is not None:
                observe(step, steps)
            optimiser.step()
            if proximal is not None:
                proximal(rate / (1 - settings.momentum))
            average.update(step)
            if step >= int(steps * 0.9):
                last.append(loss)
    average.finish(model, data, random["batches"], settings.batch_size)
    mean = float(torch.stack(last).mean())
    _check_finite(mean, model)
    if momentum is not None and settings.momentum > 0:
        momentum.update({name: optimiser.state[value]["momentum_buffer"] for name, value in parameters.items()})
    return steps, mean


def _augmentation(settings: CollectiveSettings, model: nn.Module) -> AugmentationPlan:
    """What the settings ask for besides crops and mirroring."""
    mixer = None
    if settings.mixup or settings.manifold_mixup:
        layers = len(blocks_of(model)) if settings.manifold_mixup else 1
        mixer = Mixer(settings.mixup or settings.manifold_mixup, layers)
    return AugmentationPlan(
        operations=settings.randaugment,
        magnitude=settings.randaugment_magnitude if settings.randaugment else 0.0,
        turned=settings.rotation_share if settings.rotation else None,
        mixer=mixer,
    )


def _check_finite(loss: float, model: nn.Module) -> None:
    # The last step comes after the last loss, so the weights are checked too.
    if not math.isfinite(loss) or not all(bool(torch.isfinite(value).all()) for value in model.state_dict().values()):
        raise RunFailedError("the collective's loss or weights are not finite any more; lower its learning rate")


def _optimiser(
    parameters: Mapping[str, nn.Parameter],
    learning_rate: float,
    settings: CollectiveSettings,
    momentum: Mapping[str, Tensor] | None,
) -> torch.optim.SGD:
    """Stochastic gradient descent that begins with this momentum."""
    optimiser = torch.optim.SGD(
        list(parameters.values()),
        learning_rate,
        settings.momentum,
        weight_decay=settings.weight_decay,
        nesterov=settings.momentum > 0,
        fused=True,
    )
    for name, parameter in parameters.items():
        # In the parameter's own memory format, which the fused step takes for granted; what is new begins at zero. The
        # fused step wants every buffer from the beginning too, also of what has its first gradient later.
        before = torch.zeros_like(parameter)
        if momentum is not None and name in momentum:
            before.copy_(momentum[name])
        optimiser.state[parameter]["momentum_buffer"] = before
    return optimiser
