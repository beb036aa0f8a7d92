"""What an attacker computes from a release and images: features, a head of its own, squared gradients, statistics."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from individual_node.logistic_regression import logistic_regression
from protocol.learngene.images import DeviceImages
from protocol.learngene.learngene import Learngene
from protocol.learngene.network import ConvolutionBlock, build_blocks, layers_of, load_blocks

#: Weight of the squared weights of the attacker's head.
PENALTY = 1.0
#: Images whose gradients are held at once.
_GRADIENTS_AT_ONCE = 32
#: Added to variances, which noise can bring to 0.
_LEAST_VARIANCE = 1e-5

#: Columns of :func:`statistics`.
STATISTICS = ("loss", "confidence", "batchnorm", "fisher")


@dataclass(frozen=True)
class LabelledImages:
    """Images ``[N, H, W, C]`` uint8 and labels ``[N]`` int64 that count from 0."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, rows: NDArray[np.int64]) -> "LabelledImages":
        """The images of these rows, in this order."""
        return LabelledImages(self.images[rows], self.labels[rows])


def first_of_each(labels: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Rows of the first ``count`` images of every class, class by class."""
    rows = [np.flatnonzero(labels == number)[:count] for number in np.unique(labels)]
    return np.concatenate(rows).astype(np.int64)


class Probe:
    """A release's network with a head that the attacker fits on images of its own.

    Args:
        learngene: of the form ``condensed``, which reaches from the image to the features.
        own: the attacker's images of every class.
        classes: number of classes.
    """

    def __init__(self, learngene: Learngene, own: LabelledImages, classes: int, device: torch.device) -> None:
        if learngene.architecture.form != "condensed":
            raise ValueError(f"the form {learngene.architecture.form} gives no features of an image")
        self._learngene, self._device = learngene, device
        self.blocks = build_blocks(learngene.architecture.blocks)
        load_blocks(layers_of(self.blocks), learngene.tensors)
        self.blocks = self.blocks.to(device).eval().requires_grad_(False)
        features = self.features(own)
        self._centre, self._scale = features.mean(0), features.std(0) + 1e-3
        x = torch.cat([self._standardised(features), self._standardised(self.features(own, mirrored=True))])
        labels = torch.from_numpy(np.tile(own.labels, 2)).to(device)
        self._head = logistic_regression(x[None], labels[None], classes, PENALTY)[0].float()

    @property
    def layers(self) -> list[ConvolutionBlock]:
        """The release's blocks, from the image on."""
        return layers_of(self.blocks)

    @torch.no_grad()
    def features(self, images: LabelledImages, *, mirrored: bool = False) -> Tensor:
        """The last block's output for each image, float32 ``[N, F]``."""
        return torch.cat([self.blocks(x.flip(3) if mirrored else x).flatten(1) for x, _ in self._batches(images, 256)])

    @torch.no_grad()
    def logits(self, images: LabelledImages, *, mirrored: bool = False) -> Tensor:
        """Logits of the attacker's head, float64 ``[N, classes]``."""
        return self._logits(self.features(images, mirrored=mirrored)).double()

    def statistics(self, images: LabelledImages, *, fisher: bool) -> NDArray[np.float64]:
        """One row of :data:`STATISTICS` for each image, ``[N, 4]``; for each, a larger value means that the release
        fits the image better.

        ``loss``: negative cross-entropy; ``confidence``: ``log p / (1 - p)`` of the label; both of the attacker's head,
        over the image and its mirror image. ``batchnorm``: negative squared distance of the image's channel means from
        the running means, in running variances, over all layers. ``fisher``: cosine of the image's squared gradient and
        the Fisher diagonal, mean over the convolutions; 0 without the diagonal.
        """
        labels = torch.from_numpy(np.array(images.labels)).to(self._device)
        losses, confidences = [], []
        for mirrored in (False, True):
            log_likelihood = self.logits(images, mirrored=mirrored).log_softmax(1)
            own = log_likelihood.gather(1, labels[:, None])[:, 0]
            rest = log_likelihood.scatter(1, labels[:, None], -torch.inf).logsumexp(1)
            losses.append(own)
            confidences.append(own - rest)
        columns = [sum(losses, torch.zeros(())) / 2, sum(confidences, torch.zeros(())) / 2, self._nearness(images)]
        columns.append(self._fisher_cosine(images) if fisher else torch.zeros(len(images)))
        table: NDArray[np.float64] = torch.stack([column.double().cpu() for column in columns], 1).numpy()
        return table

    def squared_gradients(self, images: LabelledImages) -> Iterator[dict[str, Tensor]]:
        """Squared gradients of each image's log-likelihood at every convolution, by parameter name, some images at a
        time: ``[n, O, I, 3, 3]``."""
        parameters = {
            name: value.detach() for name, value in self.blocks.named_parameters() if name.endswith("conv.weight")
        }

        def log_likelihood(own: dict[str, Tensor], x: Tensor, label: Tensor) -> Tensor:
            features: Tensor = functional_call(self.blocks, own, (x[None],)).flatten(1)
            return self._logits(features).log_softmax(1)[0].gather(0, label[None])[0]

        per_image = vmap(grad(log_likelihood), in_dims=(None, 0, 0))
        for x, labels in self._batches(images, _GRADIENTS_AT_ONCE):
            found = per_image(parameters, x.contiguous(), labels)
            yield {f"block.{name}": value.detach().square() for name, value in found.items()}

    @torch.no_grad()
    def patch_energies(self, images: LabelledImages) -> Iterator[dict[str, Tensor]]:
        """Mean square of each kernel weight's inputs from an image, ``[n, I, 3, 3]``, by name."""
        for x, _ in self._batches(images, _GRADIENTS_AT_ONCE):
            found: dict[str, Tensor] = {}
            for number, layer in enumerate(self.layers):
                patches = nn.functional.unfold(x, 3, padding=1).square().mean(2)
                found[f"block.{number}.conv.weight"] = patches.unflatten(1, (x.shape[1], 3, 3))
                x = layer(x)
            yield found

    @torch.no_grad()
    def _nearness(self, images: LabelledImages) -> Tensor:
        found = []
        for x, _ in self._batches(images, 256):
            distance = x.new_zeros(len(x))
            for layer in self.layers:
                mean, variance = layer.norm.running_mean, layer.norm.running_var
                assert isinstance(mean, Tensor)
                assert isinstance(variance, Tensor)
                means = layer.conv(x).mean((2, 3))
                squared = (means - mean).square() / (variance + _LEAST_VARIANCE)
                distance += squared.mean(1)
                x = layer(x)
            found.append(-distance / len(self.layers))
        return torch.cat(found)

    def _fisher_cosine(self, images: LabelledImages) -> Tensor:
        diagonals = self.diagonals()
        found = []
        for squares in self.squared_gradients(images):
            cosines = [
                nn.functional.cosine_similarity(value.flatten(1), diagonals[name].flatten()[None], dim=1, eps=1e-30)
                for name, value in squares.items()
            ]
            found.append(torch.stack(cosines).mean(0))
        return torch.cat(found)

    def diagonals(self) -> dict[str, Tensor]:
        """The release's Fisher diagonal of every convolution, by the parameter's name."""
        return {
            f"block.{number}.conv.weight": torch.from_numpy(
                np.array(self._learngene.tensors[f"fisher.block.{number}.conv.weight"])
            ).to(self._device)
            for number in range(len(self._learngene.architecture.blocks))
        }

    def _logits(self, features: Tensor) -> Tensor:
        return self._standardised(features) @ self._head[:, :-1].T + self._head[:, -1]

    def _standardised(self, features: Tensor) -> Tensor:
        return (features - self._centre) / self._scale

    def _batches(self, images: LabelledImages, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        mean, std = (torch.from_numpy(np.array(self._learngene.tensors[f"input.{n}"])) for n in ("mean", "std"))
        own = DeviceImages(
            torch.from_numpy(np.array(images.images)).to(self._device),
            torch.from_numpy(np.array(images.labels)).to(self._device),
            mean.to(self._device),
            std.to(self._device),
        )
        return own.in_order(size)
