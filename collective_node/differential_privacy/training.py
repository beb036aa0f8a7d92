"""DP-SGD (Abadi et al., arXiv 1607.00133) over every weight of one network, with Opacus."""

import math
import warnings

import torch
from opacus import GradSampleModule
from opacus.optimizers import DPOptimizer
from torch import nn

from collective_node.differential_privacy.mechanism import Sampled
from collective_node.differential_privacy.randomness import PrivateRandomness
from collective_node.settings import CollectiveSettings
from collective_node.training import Observer, one_cycle
from collective_node.training_set import TrainingSet
from protocol.errors import RunFailedError

#: Images whose gradients are held at once.
AT_ONCE = 64


class NoisyOptimiser(DPOptimizer):  # type: ignore[misc]
    """Opacus' optimiser with noise from the operating system's randomness instead of a generator with a seed."""

    def __init__(
        self, optimiser: torch.optim.Optimizer, sums: Sampled, divisor: int, random: PrivateRandomness
    ) -> None:
        super().__init__(optimiser, noise_multiplier=sums.noise, max_grad_norm=sums.clip, expected_batch_size=divisor)
        self._randomness = random

    def add_noise(self) -> None:
        """Set each parameter's gradient to the clipped sum with noise."""
        for parameter in self.params:
            noise = self._randomness.normal(parameter.shape, self.noise_multiplier * self.max_grad_norm)
            # One rounding, of the sum: noise that was rounded by itself would hide less of what it is added to.
            summed = parameter.summed_grad.to(noise.device).double()
            parameter.grad = (summed + noise).to(parameter.dtype).to(parameter.device)


def train_privately(
    network: nn.Module,
    data: TrainingSet,
    sums: Sampled,
    settings: CollectiveSettings,
    randomness: PrivateRandomness,
    observe: Observer | None = None,
) -> frozenset[nn.Parameter]:
    """Train a network by DP-SGD; in the network no image changes another's output.

    Images are neither cropped nor mirrored, so that only ``randomness`` draws anything.

    Args:
        network: from images to logits; every parameter is trained. It has no buffer: a running statistic would hold
            image data without noise.
        data: the images that may take part.
        sums: number of steps, sampling rate, clip and noise.

    Returns:
        The trained parameters: what may be released.

    Raises:
        ValueError: the network has a buffer, or a parameter that is not trained.
        RunFailedError: a weight is no longer finite.
    """
    if any(True for _ in network.buffers()) or not all(value.requires_grad for value in network.parameters()):
        raise ValueError("a private network is trained as a whole and keeps no statistics")
    network.train()
    hooked = GradSampleModule(network, loss_reduction="sum")
    parameters = list(network.parameters())
    inner = torch.optim.SGD(parameters, settings.privacy_learning_rate, settings.momentum)
    # Divide by the expected size of a batch: the true size is a secret.
    optimiser = NoisyOptimiser(inner, sums, settings.privacy_batch_size, randomness)
    rows = data.every_row
    for step in range(sums.times):
        for group in inner.param_groups:
            group["lr"] = one_cycle(step, sums.times, settings.privacy_learning_rate)
        chunks = randomness.sample(rows, sums.rate).split(AT_ONCE)
        for number, index in enumerate(chunks):
            optimiser.zero_grad(set_to_none=True)
            x, outputs = data.batch(index)
            # Opacus reads a convolution's input by its strides, and computes wrong gradients if channels come last.
            logits = hooked(x.contiguous())
            loss = nn.functional.cross_entropy(
                logits, outputs, reduction="sum", label_smoothing=settings.label_smoothing
            )
            with warnings.catch_warnings():  # torch: the gradients of the images themselves are not needed
                warnings.filterwarnings("ignore", "Full backward hook is firing")
                loss.backward()
            optimiser.signal_skip_step(number + 1 < len(chunks))
            optimiser.step()
        if observe is not None:
            observe(step, sums.times)
    hooked.to_standard_module()
    if not all(math.isfinite(float(value.detach().sum())) for value in parameters):
        raise RunFailedError("the private weights are not finite any more; lower privacy_learning_rate")
    return frozenset(parameters)
