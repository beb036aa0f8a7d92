"""Multinomial logistic regression with an L2 penalty, of many target tasks at once."""

import torch
from torch import Tensor, nn


def span_coordinates(x: Tensor) -> tuple[Tensor, Tensor | None]:
    """Coordinates of ``x [tasks, n, F]`` in the space that its rows span, where that is smaller than the features'.

    Returns:
        ``[tasks, n, n]`` and the orthonormal basis ``[tasks, F, n]``: ``x`` is their product; or ``x`` itself and None.
    """
    if x.shape[1] >= x.shape[2]:
        return x, None
    basis, coordinates = torch.linalg.qr(x.transpose(1, 2))
    return coordinates.transpose(1, 2), basis


def logistic_regression(
    x: Tensor, labels: Tensor, ways: int, penalty: float, weights: Tensor | None = None, iterations: int = 100
) -> Tensor:
    """Fit each task's own weights ``W``.

    Minimises ``sum_n w_n CE(W x_n, y_n) + penalty / 2 |W|^2`` per task, the bias unpenalised: the tasks' convex
    problems are independent, so their sum is minimised by one L-BFGS in float64. With more features than images it
    works in the space that the images span: the penalty keeps the weights in it, and is the same in its coordinates.

    Args:
        x: ``[tasks, n, F]``.
        labels: ``[tasks, n]``.
        weights: how much each row counts, ``[tasks, n]``, 0: not at all; None: all 1.

    Returns:
        ``[tasks, ways, F + 1]``, the bias last.
    """
    x, basis = span_coordinates(x.double())
    x = torch.cat([x, torch.ones_like(x[..., :1])], -1)
    weight = x.new_zeros((len(x), ways, x.shape[-1])).requires_grad_(True)
    optimiser = torch.optim.LBFGS(
        [weight], max_iter=iterations, tolerance_grad=1e-7, line_search_fn="strong_wolfe", history_size=20
    )
    counts = torch.ones_like(labels, dtype=x.dtype) if weights is None else weights.to(x)

    def closure() -> float:
        optimiser.zero_grad()
        losses = nn.functional.cross_entropy(
            (x @ weight.transpose(1, 2)).flatten(0, 1), labels.flatten(), reduction="none"
        )
        loss = losses @ counts.flatten() + 0.5 * penalty * weight[..., :-1].square().sum()
        loss.backward()
        return float(loss.detach())

    with torch.enable_grad():
        optimiser.step(closure)
    found = weight.detach()
    return found if basis is None else torch.cat([found[..., :-1] @ basis.transpose(1, 2), found[..., -1:]], -1)


def logits_of(weight: Tensor, x: Tensor) -> Tensor:
    """Logits ``[tasks, n, ways]`` of ``x [tasks, n, F]`` under weights ``[tasks, ways, F + 1]``."""
    return x.double() @ weight[..., :-1].transpose(1, 2) + weight[..., -1][:, None]


def predict(weight: Tensor, x: Tensor) -> Tensor:
    """The most likely way of ``x [tasks, n, F]`` under weights ``[tasks, ways, F + 1]``: ``[tasks, n]``."""
    return logits_of(weight, x).argmax(-1)
