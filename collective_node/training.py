"""Gradient descent on batches from the collective's images: the one loop that tasks and condensing share."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from collective_node.random_states import RandomStates
from collective_node.settings import CollectiveSettings
from protocol.errors import RunFailedError
from protocol.learngene.images import CropAndFlip, DeviceImages, autocast

#: Called after each backward pass, before the step: (step, steps).
Observer = Callable[[int, int], None]
#: Share of a one-cycle spent warming up, and the share of the peak rate it begins with.
WARM_UP = 0.15
FLOOR = 0.02


def one_cycle(step: int, steps: int, peak: float) -> float:
    """Learning rate of ``step`` of ``steps``: a linear rise over the first 15 %, then half a cosine down."""
    rise = max(1, math.ceil(WARM_UP * steps))
    if step < rise:
        return peak * (FLOOR + (1 - FLOOR) * (step + 1) / rise)
    return peak * (FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise))))


def class_balanced_batches(
    rows_by_class: Iterable[Tensor], steps: int, batch_size: int, generator: torch.Generator
) -> Iterator[Tensor]:
    """Index batches in which every class (its row numbers) stands equally often.

    Each class is walked in a random order, again and again, so no image is drawn twice before its class is through;
    the classes are interleaved in a fresh random order per round.
    """
    rows = list(rows_by_class)
    wanted = -(-steps * batch_size // len(rows))
    columns = []
    for pool in rows:
        rounds = -(-wanted // len(pool))
        order = torch.cat([torch.randperm(len(pool), generator=generator) for _ in range(rounds)])[:wanted]
        columns.append(pool[order])
    order = torch.stack([torch.randperm(len(rows), generator=generator) for _ in range(wanted)])
    mixed = torch.stack(columns, 1).gather(1, order).flatten()
    for step in range(steps):
        yield mixed[step * batch_size : (step + 1) * batch_size]


def steps_for(epochs: float, images: int, batch_size: int) -> int:
    """Batches in so many passes over the images, at least one."""
    return max(1, round(epochs * images / batch_size))


def fit(
    model: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    images: DeviceImages,
    rows_by_class: Sequence[Tensor],
    epochs: float,
    target: Callable[[Tensor], Tensor],
    *,
    settings: CollectiveSettings,
    learning_rate: float,
    random: RandomStates,
    momentum: dict[str, Tensor] | None = None,
    regularise: Callable[[], None] | None = None,
    observe: Observer | None = None,
) -> tuple[int, float]:
    """Train ``parameters`` of ``model`` on class-balanced batches.

    Args:
        model: images to logits; its modes (train, eval) are the caller's.
        rows_by_class: row numbers in ``images`` of each class that is trained on.
        epochs: passes over these images.
        target: labels of the images to output numbers of the model, both ``[N]``.
        learning_rate: the peak of one cycle over the steps.
        random: draws batches, augmentation and dropout.
        momentum: where the optimiser begins and, afterwards, where it ended, by parameter name; None: from rest.
        regularise: adds the gradient of a penalty, after the backward pass and what ``observe`` sees of it.

    Returns:
        The number of batches, and the mean loss of the last tenth of them.

    Raises:
        RunFailedError: the loss is not a number any more.
    """
    steps = steps_for(epochs, sum(len(rows) for rows in rows_by_class), settings.batch_size)
    order = class_balanced_batches(rows_by_class, steps, settings.batch_size, random["batches"])
    optimiser = torch.optim.SGD(
        list(parameters.values()),
        learning_rate,
        settings.momentum,
        weight_decay=settings.weight_decay,
        nesterov=settings.momentum > 0,
        fused=True,
    )
    if momentum:
        for name, parameter in parameters.items():
            # In the parameter's own memory format, which the fused step takes for granted; a new layer begins at rest.
            before = torch.zeros_like(parameter)
            if name in momentum:
                before.copy_(momentum[name])
            optimiser.state[parameter]["momentum_buffer"] = before
    criterion = nn.CrossEntropyLoss(label_smoothing=settings.label_smoothing)
    device = images.pixels.device
    last: list[Tensor] = []
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(random.draw_seed("dropout"))  # dropout takes no generator of its own
        for step, index in enumerate(order):
            for group in optimiser.param_groups:
                group["lr"] = one_cycle(step, steps, learning_rate)
            x, labels = images.batch(index)
            with autocast(device):
                logits = model(CropAndFlip.draw(len(x), random["augmentation"])(x))
            loss = criterion(logits.float(), target(labels))
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            if observe is not None:
                observe(step, steps)
            if regularise is not None:
                regularise()
            optimiser.step()
            if step >= int(steps * 0.9):
                last.append(loss.detach())
    mean = float(torch.stack(last).mean())
    # The last step comes after the last loss, so the weights are looked at too.
    if not math.isfinite(mean) or not all(bool(torch.isfinite(value).all()) for value in model.state_dict().values()):
        raise RunFailedError("the collective's loss or weights are not finite any more; lower its learning rate")
    if momentum is not None and settings.momentum > 0:
        momentum.update({name: optimiser.state[value]["momentum_buffer"] for name, value in parameters.items()})
    return steps, mean


@torch.no_grad()
def accuracy(model: nn.Module, images: DeviceImages, target: Callable[[Tensor], Tensor]) -> Tensor:
    """Whether each image is recognised, in evaluation mode: bool ``[N]`` on the CPU."""
    was_training = model.training
    model.eval()
    hits = []
    for x, labels in images.in_order():
        with autocast(images.pixels.device):
            logits = model(x)
        hits.append(logits.argmax(1) == target(labels))
    model.train(was_training)
    return torch.cat(hits).cpu()
