"""What a Fisher diagonal reveals about the single images behind it: their activations, and which images they were.

For one image and a linear layer the squared gradient is the outer product of the squared sensitivities and the squared
activations: the diagonal *is* the activations, up to their sign and one factor. Averaging over more images shows less
of each. Here we measure how fast, compared with what an attacker knows anyway.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from collective_node.network.compact_network import CompactNetwork
from protocol.learngene.fisher import fisher_diagonal
from protocol.learngene.images import DeviceImages
from protocol.learngene.learngene import Estimator, Learngene
from protocol.learngene.network import layers_of
from sims.leakage.attack_metrics import Bounds, auroc, mean_bounds
from sims.leakage.probe import LabelledImages, Probe
from sims.leakage.release_variants import noisy_values

_EVERY = "mean"
#: Images processed at once while a diagonal is computed.
_AT_ONCE = 64


def activations_from_fisher(diagonal: Tensor) -> Tensor:
    """Root-mean-square activations, up to a factor, that best explain a diagonal ``[O, ...]`` as one outer product.

    The square root of the leading right singular vector of the diagonal with one row for each output: exact for one
    image and a linear layer, or a convolution on maps of one position. Shaped as a row, at least 0.
    """
    rows = diagonal.flatten(1).double()
    _, _, right = torch.linalg.svd(rows, full_matrices=False)
    # A nonnegative matrix has a leading singular vector of one sign (Perron and Frobenius).
    leading: Tensor = right[0].abs().sqrt()
    return leading.reshape(diagonal.shape[1:])


def correlations(template: Tensor, observed: Tensor) -> Tensor:
    """Pearson's correlation of each row of ``template [N, P]`` with ``observed [P]``: ``[N]``; 0 for a constant."""
    return standardised(template.double()) @ standardised(observed.double()[None])[0]


def standardised(rows: Tensor) -> Tensor:
    """Each row less its mean, of length 1 (0 if it is constant): the product of two is their correlation."""
    centred = rows - rows.mean(1, keepdim=True)
    return nn.functional.normalize(centred, dim=1, eps=1e-30)


@dataclass(frozen=True)
class Templates:
    """An attacker's features of each image for the comparison with a diagonal, by layer: ``[N, P]``, standardised.

    Attributes:
        activations: root-mean-square of each kernel weight's inputs.
        gradients: squared gradients, with the attacker's own head.
    """

    activations: tuple[Tensor, ...]
    gradients: tuple[Tensor, ...]

    @classmethod
    def of(cls, probe: Probe, images: LabelledImages) -> "Templates":
        """The templates of every image and every convolution."""
        return cls(
            activations=_joined([{n: v.sqrt() for n, v in part.items()} for part in probe.patch_energies(images)]),
            gradients=_joined(list(probe.squared_gradients(images))),
        )

    def correlations(self, diagonals: Sequence[Tensor]) -> dict[str, Tensor]:
        """Correlations by template, ``[N, layers]``."""
        guessed = [activations_from_fisher(diagonal).flatten() for diagonal in diagonals]
        flat = [diagonal.flatten() for diagonal in diagonals]
        return {
            "activations": _by_layer(self.activations, guessed),
            "gradients": _by_layer(self.gradients, flat),
        }


@dataclass(frozen=True)
class Reconstruction:
    """What diagonals from a given number of images reveal; each value is a mean over draws of images with its 95 %
    interval.

    Attributes:
        samples: images behind the diagonal.
        noise: on the diagonal, in standard deviations of each layer's values.
        template: ``activations`` or ``gradients``.
        layer: number of the convolution, counted from the image (without noise), or ``mean``: the mean over all.
        inside: correlation with images behind the diagonal.
        outside: with images that are not.
        guess: correlation of images behind it with the mean template of the others, which is known without a diagonal.
        auroc: how often an image behind it correlates more than one that is not.
        match: how often an image behind it correlates more than every image that is not (at least ``crowd`` of them).
        made_up: negative control: ``auroc`` with made-up labels; should be 0.5.
    """

    samples: int
    noise: float
    template: str
    layer: str
    inside: Bounds
    outside: Bounds
    guess: Bounds
    auroc: Bounds
    match: Bounds
    made_up: Bounds
    crowd: int


def measure_reconstruction(
    network: CompactNetwork,
    probe: Probe,
    images: DeviceImages,
    asked: NDArray[np.int64],
    outputs: Tensor,
    *,
    samples: Sequence[int],
    noise: Sequence[float],
    repetitions: int,
    estimator: Estimator,
    rng: np.random.Generator,
) -> list[Reconstruction]:
    """Take diagonals from ``samples`` of the collective's images, again and again, and compare images with them.

    Args:
        network: the collective's condensed network, with the classifier, which no one else has.
        probe: the attacker's view of the same release.
        images: the collective's images.
        asked: rows of them that the attacker compares: at most half of them, drawn for each repetition, are behind the
            diagonal. The others are training images too, so only the diagonal can separate the two.
        outputs: output number of each class of the collective, ``[classes]``.
        noise: scales besides 0.

    Returns:
        One result for each number of samples, scale of noise, template and layer.
    """
    rows_asked = torch.from_numpy(asked)
    shown = LabelledImages(images.pixels[rows_asked].cpu().numpy(), images.labels[rows_asked].cpu().numpy())
    templates = Templates.of(probe, shown)
    others = np.setdiff1d(np.flatnonzero((outputs[images.labels] >= 0).cpu().numpy()), asked)
    drawn: dict[tuple[int, float, str, str], list[_Draw]] = {}
    for count in samples:
        if count > len(others) + len(asked) // 2:
            continue
        for _ in range(repetitions):
            inner = rng.permutation(len(asked))[: min(count, len(asked) // 2)]
            rows = np.concatenate([asked[inner], rng.permutation(others)[: count - len(inner)]])
            diagonals = diagonal_of(network, images, rows, outputs, estimator, rng)
            behind = np.isin(np.arange(len(shown)), inner)
            guesses = {
                template: _guesses(parts, behind)
                for template, parts in (("activations", templates.activations), ("gradients", templates.gradients))
            }
            for scale in (0.0, *noise):
                noisy = [_noisy(value, scale, rng) for value in diagonals] if scale else diagonals
                for template, found in templates.correlations(noisy).items():
                    layers = {_EVERY: found.mean(1)}
                    if not scale:
                        layers |= {str(number): one for number, one in enumerate(found.T, start=1)}
                    for layer, values in layers.items():
                        draw = _Draw.of(values, behind, guesses[template][layer], rng)
                        drawn.setdefault((count, scale, template, layer), []).append(draw)
    return _summarised(drawn, crowd=len(shown) - len(asked) // 2)


def _summarised(drawn: Mapping[tuple[int, float, str, str], Sequence["_Draw"]], crowd: int) -> list[Reconstruction]:
    return [
        Reconstruction(
            *key,
            inside=mean_bounds([draw.inside for draw in draws]),
            outside=mean_bounds([draw.outside for draw in draws]),
            guess=mean_bounds([draw.guess for draw in draws]),
            auroc=mean_bounds([draw.auroc for draw in draws]),
            match=mean_bounds([draw.match for draw in draws]),
            made_up=mean_bounds([draw.made_up for draw in draws]),
            crowd=crowd,
        )
        for key, draws in drawn.items()
    ]


def diagonal_of(
    network: CompactNetwork,
    images: DeviceImages,
    rows: NDArray[np.int64],
    outputs: Tensor,
    estimator: Estimator,
    rng: np.random.Generator,
) -> list[Tensor]:
    """The diagonal of every convolution from these images, through the collective's own classifier."""
    network.eval()
    blocks = [*layers_of(network.stem), *layers_of(network.top)]

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for index in torch.from_numpy(rows).split(_AT_ONCE):
            x, labels = images.batch(index)
            yield x, outputs[labels]

    generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
    found, _ = fisher_diagonal(blocks, network.classifier, batches(), estimator, generator)
    return [found[f"block.{number}.conv.weight"] for number in range(len(blocks))]


def with_few_images_behind(
    network: CompactNetwork,
    learngene: Learngene,
    images: DeviceImages,
    asked: NDArray[np.int64],
    halves: NDArray[np.bool_],
    outputs: Tensor,
    *,
    estimator: Estimator,
    rng: np.random.Generator,
) -> list[Learngene]:
    """Make leaky releases: the same learngene, each time with a diagonal from one half of a few images.

    Args:
        asked: rows of the few images.
        halves: which of them are behind each release, bool ``[releases, len(asked)]``.
    """
    releases = []
    for behind in halves:
        diagonals = diagonal_of(network, images, asked[behind], outputs, estimator, rng)
        tensors = dict(learngene.tensors)
        for number, diagonal in enumerate(diagonals):
            tensors[f"fisher.block.{number}.conv.weight"] = diagonal.cpu().numpy().astype(np.float32)
        releases.append(Learngene(learngene.architecture, tensors, learngene.fisher))
    return releases


def class_behind_fisher(
    network: CompactNetwork,
    probe: Probe,
    images: DeviceImages,
    heldout: LabelledImages,
    outputs: Tensor,
    *,
    samples: int,
    estimator: Estimator,
    rng: np.random.Generator,
) -> Bounds:
    """Attack a leaky release, whose diagonal is from ``samples`` images of one class: how often that class's other
    images match it better than those of another class, mean over the classes.

    Args:
        heldout: images of every class, with the labels of ``images``.
    """
    gradients = _joined(list(probe.squared_gradients(heldout)))
    found = []
    for number in np.unique(heldout.labels):
        rows = torch.nonzero(images.labels.cpu() == int(number))[:, 0].numpy()
        diagonals = diagonal_of(network, images, rng.permutation(rows)[:samples], outputs, estimator, rng)
        flat = [diagonal.flatten() for diagonal in diagonals]
        scores = _by_layer(gradients, flat).mean(1).cpu().numpy()
        by_class = np.array([scores[heldout.labels == other].mean() for other in np.unique(heldout.labels)])
        found.append(auroc(by_class, np.unique(heldout.labels) == number))
    return mean_bounds(found)


@dataclass(frozen=True)
class _Draw:
    """One draw of images."""

    inside: float
    outside: float
    guess: float
    auroc: float
    match: float
    made_up: float

    @classmethod
    def of(cls, values: Tensor, behind: NDArray[np.bool_], guess: float, rng: np.random.Generator) -> "_Draw":
        found = values.double().cpu().numpy()
        inside, outside = found[behind], found[~behind]
        return cls(
            inside=float(inside.mean()),
            outside=float(outside.mean()),
            guess=guess,
            auroc=auroc(found, behind),
            match=float((inside > outside.max()).mean()),
            made_up=auroc(found, rng.permutation(behind)),
        )


def _guesses(parts: Sequence[Tensor], behind: NDArray[np.bool_]) -> dict[str, float]:
    """Correlation of images behind a diagonal with the mean template of the others, by layer, and the mean over all."""
    mask = torch.from_numpy(behind).to(parts[0].device)
    by_layer = [float(correlations(part[mask], part[~mask].mean(0)).mean()) for part in parts]
    return {_EVERY: float(np.mean(by_layer))} | {str(number): one for number, one in enumerate(by_layer, start=1)}


def _by_layer(templates: Sequence[Tensor], observed: Sequence[Tensor]) -> Tensor:
    """Correlations ``[N, layers]`` of standardised templates."""
    ones = [standardised(one.double()[None])[0].to(rows) for rows, one in zip(templates, observed, strict=True)]
    return torch.stack([rows @ one for rows, one in zip(templates, ones, strict=True)], 1)


def _joined(parts: Sequence[dict[str, Tensor]]) -> tuple[Tensor, ...]:
    """The templates of all images, standardised, by layer."""
    return tuple(standardised(torch.cat([part[name] for part in parts]).flatten(1)) for name in parts[0])


def _noisy(value: Tensor, scale: float, rng: np.random.Generator) -> Tensor:
    noisy = noisy_values(value.cpu().numpy(), scale, rng)
    return torch.from_numpy(np.maximum(noisy, 0)).to(value.device)
