"""What a private evolution costs: its noise for a wanted epsilon, and the epsilon of its noise (dp-accounting)."""

import math
from collections.abc import Sequence

from dp_accounting import (
    ComposedDpEvent,
    DpEvent,
    GaussianDpEvent,
    LowerEndpointAndGuess,
    PoissonSampledDpEvent,
    SelfComposedDpEvent,
    calibrate_dp_mechanism,
)
from dp_accounting.pld import PLDAccountant
from pydantic import BaseModel, ConfigDict, Field

from collective_node.private_randomness import PrivateRandomness
from collective_node.settings import CollectiveSettings
from collective_node.training import steps_for
from protocol.errors import InputError
from protocol.learngene import DifferentialPrivacy, PrivacyScope

#: Share of epsilon for the number of images, which sampling rates and numbers of steps follow from.
COUNT_SHARE = 0.01
#: Where the search for a noise multiplier begins, and how exact it is.
_FIRST_NOISE, _TOLERANCE = 1.0, 1e-4


class Sampled(BaseModel):
    """Sums over randomly drawn images, each image's part clipped, with Gaussian noise.

    Attributes:
        times: how many such sums are taken.
        rate: probability with which each image takes part in one, on its own.
        clip: largest norm of an image's part.
        noise: standard deviation of the noise, as a multiple of ``clip``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    times: int = Field(ge=1)
    rate: float = Field(gt=0, le=1)
    clip: float = Field(gt=0)
    noise: float = Field(ge=0)

    @property
    def event(self) -> DpEvent:
        """As the accountant takes it."""
        once: DpEvent = GaussianDpEvent(self.noise)
        if self.rate < 1:
            once = PoissonSampledDpEvent(self.rate, once)
        return SelfComposedDpEvent(once, self.times)


class Mechanism(BaseModel):
    """Everything of a private evolution that looks at images.

    Attributes:
        scope: what the guarantee is about.
        images: the number of training images, with noise.
        count_epsilon: epsilon that this number cost, by itself and with delta 0.
        training: the steps of DP-SGD; none where the weights carry no guarantee.
        fisher: one sum for each form's Fisher diagonal.
        epsilon, delta: of all of it together, for one image more or fewer.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    scope: PrivacyScope
    images: int = Field(ge=1)
    count_epsilon: float = Field(ge=0)
    training: Sampled | None
    fisher: Sampled
    epsilon: float = Field(gt=0)
    delta: float = Field(gt=0, lt=1)

    @property
    def fisher_images(self) -> int:
        """Images behind a Fisher diagonal, as many as are to be expected."""
        return round(self.fisher.rate * self.images)

    @property
    def guarantee(self) -> DifferentialPrivacy:
        """As a release states it; epsilon is rounded up."""
        return DifferentialPrivacy(
            epsilon_micro=math.ceil(self.epsilon * 1e6),
            delta_exponent=round(-math.log10(self.delta)),
            relation="add-or-remove",
            scope=self.scope,
        )


def epsilon_of(sums: Sequence[Sampled], delta: float) -> float:
    """Epsilon of several kinds of sums over the same images, for one image more or fewer.

    By privacy loss distributions (Koskela et al., arXiv 1906.03049; Doroshenko et al., arXiv 2207.04380), rounded so
    that the epsilon is never too small.
    """
    accountant = PLDAccountant()
    accountant.compose(ComposedDpEvent([one.event for one in sums]))
    return float(accountant.get_epsilon(delta))


def plan(settings: CollectiveSettings, images: int, *, fishers: int, randomness: PrivateRandomness) -> Mechanism:
    """Noise such that the evolution that the settings ask for keeps their epsilon and delta.

    How many images there are is a secret between neighbours too, so everything follows from a noisy number. Whatever it
    came out as, what follows keeps the rest of epsilon, and the two add up (basic composition).

    Args:
        settings: with ``privacy_epsilon``.
        images: training images, the true number.
        fishers: Fisher diagonals that will be released.

    Raises:
        InputError: delta is not small beside the number of images.
    """
    if settings.privacy_epsilon is None:
        raise ValueError("these settings ask for no privacy")
    delta = 10.0**-settings.privacy_delta_exponent
    count_epsilon = COUNT_SHARE * settings.privacy_epsilon
    wanted = settings.privacy_epsilon - count_epsilon
    count = randomness.noisy_count(images, count_epsilon)
    if delta * count >= 1:
        raise InputError(
            f"delta 1e-{settings.privacy_delta_exponent} would allow to publish one of about {count} images outright; "
            f"set privacy_delta_exponent to {len(str(count))} or more"
        )
    share = 1.0 if settings.privacy_scope == "fisher-given-weights" else settings.privacy_fisher_share
    fisher = _calibrated(
        fishers, min(1.0, settings.fisher_samples / count), settings.privacy_fisher_clip, (), share * wanted, delta
    )
    training = None
    if settings.privacy_scope == "weights-and-fisher":
        steps = steps_for(settings.privacy_epochs, count, settings.privacy_batch_size)
        rate = min(1.0, settings.privacy_batch_size / count)
        training = _calibrated(steps, rate, settings.privacy_clip, (fisher,), wanted, delta)
    sums = [fisher] if training is None else [training, fisher]
    return Mechanism(
        scope=settings.privacy_scope,
        images=count,
        count_epsilon=count_epsilon,
        training=training,
        fisher=fisher,
        epsilon=count_epsilon + epsilon_of(sums, delta),
        delta=delta,
    )


def _calibrated(
    times: int, rate: float, clip: float, others: tuple[Sampled, ...], epsilon: float, delta: float
) -> Sampled:
    """Sums with as little noise as they can have, so that with the others they keep epsilon."""

    def sums(noise: float) -> Sampled:
        return Sampled(times=times, rate=rate, clip=clip, noise=noise)

    def event(noise: float) -> DpEvent:
        return ComposedDpEvent([one.event for one in (sums(noise), *others)])

    start = LowerEndpointAndGuess(0.0, _FIRST_NOISE)
    return sums(calibrate_dp_mechanism(PLDAccountant, event, epsilon, delta, start, tol=_TOLERANCE))
