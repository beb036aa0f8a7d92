"""Differentially private Fisher diagonals: each image's part is clipped, and their sum gets Gaussian noise."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from collective_node.differential_privacy.mechanism import Mechanism
from collective_node.differential_privacy.randomness import PrivateRandomness
from collective_node.training_set import TrainingSet
from protocol.learngene.images import full_float32
from protocol.learngene.learngene import DifferentialPrivacy, Estimator, FisherDescription
from protocol.learngene.network import ConvolutionBlock, block_tensors

#: Images whose gradients are held at once.
AT_ONCE = 16


@dataclass(frozen=True)
class PrivateFisher:
    """Estimator of differentially private Fisher diagonals.

    Attributes:
        rate: probability with which each image takes part in one.
        images: the expected number of them.
        clip: largest norm of an image's part, its squared gradient as one vector.
        noise: standard deviation of the noise, as a multiple of ``clip``.
        randomness: chooses the images, their labels and the noise.
        guarantee: of the learngene that holds the diagonal.
    """

    rate: float
    images: int
    clip: float
    noise: float
    randomness: PrivateRandomness
    guarantee: DifferentialPrivacy

    @classmethod
    def of(cls, mechanism: Mechanism, randomness: PrivateRandomness) -> "PrivateFisher":
        """The estimator that a mechanism has planned."""
        sums = mechanism.fisher
        return cls(sums.rate, mechanism.fisher_images, sums.clip, sums.noise, randomness, mechanism.guarantee)

    def describe(self, estimator: Estimator) -> FisherDescription:
        """Description for a release. It states the expected number of images: how many took part is secret."""
        return FisherDescription(
            source="collective", estimator=estimator, samples=self.images, clip_micro=round(self.clip * 1e6)
        )

    def diagonal(
        self,
        blocks: Sequence[ConvolutionBlock],
        head: nn.Module,
        data: TrainingSet,
        estimator: Estimator,
        front: nn.Module | None = None,
    ) -> dict[str, Tensor]:
        """Estimate Eq. 7 as :func:`protocol.learngene.fisher.fisher_diagonal` does, from randomly drawn images, clipped
        and with noise.

        Args:
            blocks, head, front: parts of a network in evaluation mode.
            data: the images that may take part; only ``empirical`` reads their outputs.

        Returns:
            The diagonal by parameter name, at least 0.
        """
        total: dict[str, Tensor] = {}
        for index in self.randomness.sample(data.every_row, self.rate).split(AT_ONCE):
            if not len(index):  # no image was drawn
                break
            x, outputs = data.batch(index)
            with torch.no_grad():
                x = x if front is None else front(x)
            for name, value in self._clipped(blocks, head, x, outputs, estimator).items():
                total[name] = value.sum(0) + total.get(name, 0.0)
        found = {}
        for name, parameter in parameters_of(blocks).items():
            noise = self.randomness.normal(parameter.shape, self.noise * self.clip).to(parameter.device)
            found[name] = ((total.get(name, 0.0) + noise) / self.images).clamp(min=0).to(parameter.dtype)
        return found

    def _clipped(
        self, blocks: Sequence[ConvolutionBlock], head: nn.Module, x: Tensor, labels: Tensor, estimator: Estimator
    ) -> dict[str, Tensor]:
        """Each image's part, ``[n, *parameter]`` in float64, the norm of all of an image's parameters together at most
        ``clip``.
        """
        squares = squared_gradients(blocks, head, x, labels, estimator, self.randomness)
        lengths = torch.stack([value.flatten(1).square().sum(1) for value in squares.values()]).sum(0).sqrt()
        factor = (self.clip / lengths.clamp(min=self.clip)).clamp(max=1.0)
        return {name: value * factor.view(-1, *[1] * (value.ndim - 1)) for name, value in squares.items()}


def parameters_of(blocks: Sequence[ConvolutionBlock]) -> dict[str, nn.Parameter]:
    """Parameters of blocks by their names in the blob; statistics are not among them."""
    return {name: value for name, value in block_tensors(blocks).items() if isinstance(value, nn.Parameter)}


def squared_gradients(
    blocks: Sequence[ConvolutionBlock],
    head: nn.Module,
    x: Tensor,
    labels: Tensor,
    estimator: Estimator,
    randomness: PrivateRandomness,
) -> dict[str, Tensor]:
    """The squared gradient of each image's log-likelihood in every block parameter.

    The network is in evaluation mode, in which no image changes another's output.

    Args:
        x: inputs of the first block ``[n, C, H, W]``.
        labels: ``[n]``, read only by ``empirical``.
        randomness: draws the labels of ``sampled``.

    Returns:
        ``[n, *parameter]`` in float64 by parameter name.
    """
    network = nn.Sequential(*blocks, head)
    if any(module.training for module in network.modules() if not isinstance(module, nn.Sequential)):
        raise ValueError("the Fisher information is taken of the published network: put it in evaluation mode")
    constants = {name: value.detach() for name, value in network.state_dict(keep_vars=True).items()}
    own = {f"{number}.{name}": f"block.{number}.{name}" for number, block in enumerate(blocks)
           for name, _ in block.named_parameters()}  # fmt: skip

    def log_likelihood(parameters: Mapping[str, Tensor], picture: Tensor, label: Tensor) -> Tensor:
        logits: Tensor = functional_call(network, {**constants, **parameters}, (picture[None],))
        return logits.log_softmax(1)[0].gather(0, label[None])[0]

    each = vmap(grad(log_likelihood), in_dims=(None, 0, 0))
    parameters = {name: constants[name] for name in own}
    total: dict[str, Tensor] = {}
    with full_float32():
        for chosen, share in _labels(network, x, labels, estimator, randomness):
            for name, gradient in each(parameters, x, chosen).items():
                squared = gradient.double().square() * share.view(-1, *[1] * (gradient.ndim - 1))
                total[own[name]] = squared + total.get(own[name], 0.0)
    return total


@torch.no_grad()
def _labels(
    network: nn.Module, x: Tensor, labels: Tensor, estimator: Estimator, randomness: PrivateRandomness
) -> Iterator[tuple[Tensor, Tensor]]:
    """Labels of each image with the weights of their squares: one drawn from the model, that of the data, or all."""
    if estimator == "empirical":
        yield labels, torch.ones_like(labels, dtype=torch.float64)
        return
    probability = network(x).double().softmax(1)
    if estimator == "sampled":
        chosen = randomness.labels(probability.cpu()).to(x.device)
        yield chosen, torch.ones_like(chosen, dtype=torch.float64)
        return
    for label in range(probability.shape[1]):
        yield torch.full_like(labels, label), probability[:, label]
