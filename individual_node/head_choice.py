"""The choice of a logistic head for each target task, by cross-validation on its support images alone."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from individual_node.logistic_regression import logistic_regression, logits_of, span_coordinates
from individual_node.settings import HeadChoice, HeadSettings
from individual_node.views import centred_and_normalised

#: Factors on the logits from which a temperature is chosen, a half octave from one to the next.
INVERSE_TEMPERATURES = tuple(2 ** (number / 2) for number in range(-6, 13))


def scales_of(choice: HeadChoice) -> tuple[float, float]:
    """Factors on the stem's and the top's view, whose squares sum to 2: 1 and 1 where both have the same share."""
    return (2 * (1 - choice.top_share)) ** 0.5, (2 * choice.top_share) ** 0.5


def scaled(x: Tensor, choice: HeadChoice, stem: int) -> Tensor:
    """``x [..., F]`` with the first ``stem`` features, and the others, multiplied by :func:`scales_of`."""
    if choice.top_share == 0.5:
        return x
    low, high = scales_of(choice)
    return torch.cat([x[..., :stem] * low, x[..., stem:] * high], -1)


def dealt(labels: Tensor, folds: int) -> Tensor:
    """The fold of each image ``[tasks, n]``: the images of a class are dealt to the folds in turn, in their order; each
    class begins where the class before it ended."""
    order = labels.argsort(dim=1, stable=True)
    place = torch.arange(labels.shape[1], device=labels.device).expand_as(labels)
    return torch.empty_like(labels).scatter_(1, order, place) % folds


def validation_logits(views: Sequence[Tensor], labels: Tensor, ways: int, choice: HeadChoice, folds: int) -> Tensor:
    """Logits of each image under the head that was fitted without it and the others of its fold.

    A head's centres are those of the images that it is fitted on. The folds of all tasks are fitted at once.

    Args:
        views: each ``[tasks, copies * n, F]``, the images themselves first and then shifted copies of all of them.
        labels: ``[tasks, n]``.

    Returns:
        float64 ``[tasks, n, ways]``.
    """
    tasks, count = labels.shape
    copies = views[0].shape[1] // count
    held = dealt(labels, folds)[None] == torch.arange(folds, device=labels.device)[:, None, None]  # [folds, tasks, n]
    learns = (~held).flatten(0, 1).repeat(1, copies).double()  # [folds * tasks, copies * n]
    parts = [view.double().repeat(folds, 1, 1) for view in views]
    centres = [(learns[:, None] @ view) / learns.sum(1)[:, None, None] for view in parts]
    x = scaled(centred_and_normalised(parts, centres), choice, parts[0].shape[2])
    weight = logistic_regression(x, labels.repeat(folds, copies), ways, choice.penalty, learns / copies)
    logits = logits_of(weight, x[:, :count])
    of_their_own_fold: Tensor = logits.unflatten(0, (folds, tasks)) * held[..., None]
    return of_their_own_fold.sum(0)


def losses_at_best_temperature(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy ``[tasks, n]`` of each image at the one temperature of its task that makes the mean lowest.

    Without it the cross-entropy would choose by confidence: a larger penalty makes a head less sure of what it names,
    and not less right (temperature scaling: Guo, Pleiss, Sun and Weinberger 2017).

    Args:
        logits: ``[tasks, n, ways]``, of images that were held out.
        labels: ``[tasks, n]``.
    """
    by_temperature = torch.stack(
        [
            nn.functional.cross_entropy((logits * factor).movedim(2, 1), labels, reduction="none")
            for factor in INVERSE_TEMPERATURES
        ]
    )
    best = by_temperature.mean(2).argmin(0)
    return by_temperature.gather(0, best[None, :, None].expand(1, *labels.shape))[0]


def chosen_heads(views: Sequence[Tensor], labels: Tensor, ways: int, settings: HeadSettings) -> list[HeadChoice]:
    """The head of each task: the candidate with the lowest mean loss on images that were held out, if it is lower than
    the default's by more than one standard error of the difference; otherwise the default.

    The rule of one standard error (Breiman, Friedman, Olshen and Stone 1984, section 3.4.3), here of the difference
    image by image, keeps the default where the candidates differ by chance. A task with a class of one image has the
    default. The loss is that of :func:`losses_at_best_temperature`.

    Args:
        views: as :func:`validation_logits` takes them.
        labels: ``[tasks, n]``.
    """
    fewest = int(min(torch.bincount(row, minlength=ways).min() for row in labels))
    folds = min(settings.folds, fewest)
    if not settings.others or folds < 2:
        return [settings.default] * len(labels)
    # In the space that the images span all lengths and angles are the same, and there are far fewer coordinates.
    small = [span_coordinates(view.double())[0] for view in views]
    candidates = (settings.default, *settings.others)
    logits = [validation_logits(small, labels, ways, choice, folds) for choice in candidates]
    losses = torch.stack([losses_at_best_temperature(found, labels) for found in logits])
    best = losses.mean(2).argmin(0)
    gain = losses[0] - losses.gather(0, best[None, :, None].expand(1, *labels.shape))[0]
    clear = gain.mean(1) > gain.std(1) / gain.shape[1] ** 0.5
    return [candidates[int(number)] if sure else candidates[0] for number, sure in zip(best, clear, strict=True)]
