"""The criterion that finds the learngene: shares of large gradients (Eq. 4, 5), and which layers settled."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from collective_node.network.growth_of_tensors import Copied, Growth, convolution_of
from collective_node.settings import CollectiveSettings
from protocol.errors import InputError

#: Bins per factor of two, and the exponents of two that the histogram spans.
BINS_PER_OCTAVE = 64
SMALLEST, LARGEST = -80, 20
#: The numbers of :func:`settled`: a large share, how far it must fall (as a share of where it was), how little it may
#: vary afterwards, over which part of the tasks, at least how many.
LARGE = 0.5
FALLEN = 0.5
STEADY = 0.1
LAST_PART = 0.25
LAST_TASKS = 3
#: Number of layers k in the paper.
PAPER_LAYERS = 3
#: Fewest tasks that show whether a layer settled: the last ones, and as many before them.
FEWEST_TASKS = 2 * LAST_TASKS


@dataclass
class GradientTrend:
    """The tasks x layers matrix of ``rho``, streamed: counts are kept, gradients are not.

    ``g = |dL/dw|`` of the batch-mean loss (Eq. 4); ``rho`` is the share of a layer's parameters with ``g > sigma``
    (Eq. 5), over the batches seen. The first task fixes ``sigma``, if it is not given, at half the pooled median of
    its ``g``, found from a histogram on a logarithmic grid (64 bins per factor of two, so within 0.6 %).

    Widening divides what a channel sends on among its copies, and with it the gradient of the weights that make the
    channel: each copy has its fraction of it, whatever the network learned. ``fractions`` takes that out again.

    Attributes:
        layers: number of convolutions.
        sigma: threshold; None until the first task has ended.
        rho: one list per finished task, a share per layer; None if the layer was not there yet.
        fractions: of each layer, the fraction of the first channel that each channel is ``[out]``, by which its
            gradient is divided before it is counted; None: a layer that was not widened. The whole attribute is None
            if gradients count as they are.
    """

    layers: int
    sigma: float | None = None
    rho: list[list[float | None]] = field(default_factory=list)
    fractions: list[Tensor | None] | None = None
    _histogram: Tensor | None = None

    def observe(self, gradients: Sequence[Tensor]) -> None:
        """Count one batch: the weight gradient of every convolution, any shape, in order.

        Raises:
            ValueError: not one gradient per layer, or a gradient that is not finite.
        """
        if len(gradients) != self.layers:
            raise ValueError(f"{len(gradients)} gradients for {self.layers} layers")
        bins = (LARGEST - SMALLEST) * BINS_PER_OCTAVE
        rows = []
        for number, gradient in enumerate(gradients):
            size = self._whole(number, gradient.detach()).abs().flatten()
            if not torch.isfinite(size).all():
                raise ValueError(f"the gradient of convolution {number + 1} is not finite")
            place = (torch.log2(size) - SMALLEST).mul_(BINS_PER_OCTAVE).clamp_(0, bins - 1)
            rows.append(torch.bincount(place.long(), minlength=bins).cpu())
        counts = torch.stack(rows)
        self._histogram = counts if self._histogram is None else self._histogram + counts

    def _whole(self, number: int, gradient: Tensor) -> Tensor:
        """The gradient as if the layer's channels had not been divided."""
        fraction = None if self.fractions is None else self.fractions[number]
        if fraction is None:
            return gradient
        return gradient / fraction.to(gradient).reshape(-1, *[1] * (gradient.ndim - 1))

    def follow(self, growth: Growth) -> None:
        """Follow a growth of the network, between two tasks.

        Raises:
            ValueError: a layer cannot be inserted there, or now.
        """
        if growth.inserted is not None:
            self.insert_layer(growth.inserted)
        for name, move in growth.moves.items():
            number = convolution_of(name)
            if self.fractions is None or number is None or not isinstance(move, Copied) or move.axis != 0:
                continue
            before = self.fractions[number]
            if before is None:
                before = torch.ones(int(move.source.max()) + 1, dtype=torch.float64)
            self.fractions[number] = move.follow(before, "gradient")

    def insert_layer(self, index: int) -> None:
        """Follow the insertion of convolution ``index`` (0-based): the finished tasks have no ``rho`` of it.

        Raises:
            ValueError: no such place, or a task is under way.
        """
        if not 0 <= index <= self.layers:
            raise ValueError(f"there is no place {index} among {self.layers} layers")
        if self._histogram is not None:
            raise ValueError("a layer can be inserted between two tasks only")
        self.layers += 1
        for row in self.rho:
            row.insert(index, None)
        if self.fractions is not None:
            self.fractions.insert(index, None)

    def end_task(self) -> list[float]:
        """Close the task: fixes ``sigma`` if it is open and appends the task's ``rho`` (one share per layer)."""
        if self._histogram is None:
            raise ValueError("no gradient was observed in this task")
        histogram, self._histogram = self._histogram, None
        if self.sigma is None:
            cumulated = histogram.sum(0).cumsum(0)
            middle = int(torch.searchsorted(cumulated, int(cumulated[-1] + 1) // 2))
            self.sigma = float(2.0 ** (SMALLEST + (middle + 0.5) / BINS_PER_OCTAVE)) / 2
        threshold = max(0, math.floor((math.log2(self.sigma) - SMALLEST) * BINS_PER_OCTAVE))
        large = histogram[:, threshold + 1 :].sum(1).double() / histogram.sum(1)
        row = [float(share) for share in large]
        self.rho.append([*row])
        return row


def settled(trend: Sequence[float | None]) -> bool:
    """Test whether a layer settled: its ``rho`` fell from large to small and stayed there.

    Of the paper's three scenarios (section "Inheriting Learngene") only the third makes a candidate. The tasks that the
    layer has lived through are split in two: the last ones, a quarter of them (rounded up) but at least three, and
    those before, as many at least. A layer settled if all of this holds:

    - *large before*: ``rho`` was at least 0.5 in some task before the last ones, which excludes layers that hardly ever
      change (scenario 1);
    - *small since*: in every one of the last tasks it is at most half the largest value before, which excludes layers
      that go on changing (scenario 2);
    - *steady*: over the last tasks its largest and smallest value differ by at most 0.1, which excludes layers that
      fluctuate, or still fall.

    "Large" is absolute because ``sigma`` gives ``rho`` its scale: at half the first task's pooled median, more than
    half of all parameters lie above it at first. "Small" is relative to the layer itself, since layers begin on
    different levels. If one of the last tasks leaves the level, the layer did not settle.

    Args:
        trend: ``rho`` of one layer in every task; None if the layer was not there yet.

    Returns:
        Whether the layer settled; False also for a layer with fewer than six tasks, which show too little.
    """
    shares = [share for share in trend if share is not None]
    last = max(LAST_TASKS, math.ceil(LAST_PART * len(shares)))
    before, since = shares[:-last], shares[-last:]
    if len(before) < last:
        return False
    level = max(before)
    return level >= LARGE and max(since) <= FALLEN * level and max(since) - min(since) <= STEADY


def settled_layers(rho: Sequence[Sequence[float | None]]) -> list[bool]:
    """:func:`settled` for each layer of a tasks x layers matrix."""
    return [settled(trend) for trend in zip(*rho, strict=True)]


def check_tasks(tasks: int) -> None:
    """Refuse to look for settled layers in too few tasks.

    Raises:
        InputError: there are fewer than six tasks.
    """
    if tasks < FEWEST_TASKS:
        raise InputError(
            f"which layers settle cannot be told from {tasks} tasks, it takes {FEWEST_TASKS}: "
            "set the collective's layers to a number, or give it more tasks"
        )


def found_layers(rho: Sequence[Sequence[float | None]]) -> int:
    """``k`` by the criterion: how many settled layers stand in a row that ends at the last convolution; may be 0.

    Args:
        rho: tasks x layers.
    """
    found = settled_layers(rho)
    return found[::-1].index(False) if False in found else len(found)


def most_similar(similarity: Sequence[float], k: int) -> range:
    """The ``k`` adjacent layers with the largest mean similarity; of equal ones the deepest."""
    if not 1 <= k <= len(similarity):
        raise ValueError(f"there are no {k} adjacent layers among {len(similarity)}")
    starts = range(len(similarity) - k + 1)
    start = max(starts, key=lambda first: (math.fsum(similarity[first : first + k]), first))
    return range(start, start + k)


def choose_layers(
    settings: CollectiveSettings,
    layers: int,
    rho: Sequence[Sequence[float | None]],
    similarity: Sequence[float] | None,
    *,
    most: int,
) -> range:
    """The layers (0-based) that the form ``paper`` takes; their number is ``k`` for every form.

    ``k`` is ``settings.layers`` or, if that is none, the number of layers that settled (:func:`found_layers`), with
    either criterion: the paper's 3 if none did, and at most ``most``. ``gradient-trend`` takes the deepest
    ``k``, as the paper does; ``similarity`` the ``k`` adjacent layers that are most like a pseudo-descendant's
    (:func:`most_similar`).

    Args:
        layers: convolutions of the network.
        rho: tasks x layers, read if ``settings.layers`` is none.
        similarity: of each layer, read by the criterion ``similarity``.
        most: layers that every form of the settings can hold.

    Raises:
        InputError: the ``k`` of the settings is larger than the network.
        ValueError: the criterion ``similarity`` without a similarity per layer.
    """
    k = min(found_layers(rho) or PAPER_LAYERS, most) if settings.layers is None else settings.layers
    if k > layers:
        raise InputError(f"{k} layers to inherit, but the network has {layers}: set the collective's layers lower")
    if settings.criterion == "gradient-trend":
        return range(layers - k, layers)
    if similarity is None or len(similarity) != layers:
        raise ValueError(f"the criterion similarity needs a similarity of each of the {layers} layers")
    return most_similar(similarity, k)
