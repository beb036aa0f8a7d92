"""Variants of a release that an attacker may have: a learngene without its Fisher diagonal, with it, or with noise on
all of it.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from protocol.learngene.learngene import Learngene


@dataclass(frozen=True)
class Variant:
    """What the attacker has.

    Attributes:
        fisher: whether it reads the Fisher diagonal.
        noise: standard deviation of Gaussian noise on every value, in standard deviations of its tensor.
    """

    fisher: bool
    noise: float

    @property
    def name(self) -> str:
        """``weights``, ``weights + Fisher``, ``weights + Fisher, noise 0.1``."""
        return ("weights + Fisher" if self.fisher else "weights") + (f", noise {self.noise:g}" if self.noise else "")


def variants(noise: tuple[float, ...]) -> tuple[Variant, ...]:
    """Weights alone, weights and Fisher diagonal, and both with noise of each scale."""
    return (Variant(False, 0.0), Variant(True, 0.0), *(Variant(True, scale) for scale in noise))


def with_noise(learngene: Learngene, scale: float, rng: np.random.Generator) -> Learngene:
    """A learngene with Gaussian noise on weights, BatchNorm statistics and Fisher diagonal.

    The noise of a tensor has ``scale`` times the standard deviation of that tensor's values; values that cannot be
    negative (variances, the diagonal) are cut off at 0. The input's normalisation is unchanged. Without noise, the same
    object is returned.
    """
    if scale == 0:
        return learngene
    tensors: dict[str, NDArray[np.float32]] = {}
    for name, value in learngene.tensors.items():
        if name.startswith("input."):
            tensors[name] = value
            continue
        noisy = noisy_values(value, scale, rng)
        cut = name.startswith("fisher.") or name.endswith("running_var")
        tensors[name] = np.maximum(noisy, 0) if cut else noisy
    return Learngene(learngene.architecture, tensors, learngene.fisher)


def noisy_values(value: NDArray[np.float32], scale: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """``value`` plus Gaussian noise of ``scale`` times its own standard deviation."""
    return (value + rng.normal(0.0, scale * float(value.std()), value.shape)).astype(np.float32)
