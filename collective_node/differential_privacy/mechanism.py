"""The mechanism of a private evolution: all sums over sampled images, clipped and with noise."""

import math

from pydantic import BaseModel, ConfigDict, Field

from protocol.errors import InputError
from protocol.learngene.learngene import DifferentialPrivacy, PrivacyScope

#: Delta is at most 1 / (this times the number of training images).
_MARGIN = 10


def check_delta(exponent: int, images: int) -> None:
    """Refuse a delta of 10 to the minus ``exponent`` that is above 1 / (10 n) for ``n`` = ``images``.

    Delta allows that with this probability anything is given away. A mechanism that publishes each image outright with
    probability delta keeps every epsilon: on average it publishes ``n delta`` images. So delta has to be well below
    1 / n (Dwork and Roth 2014, section 2.3).

    Raises:
        InputError: delta is larger; it names the exponent to set.
    """
    if _MARGIN * images > 10**exponent:
        raise InputError(
            f"delta 1e-{exponent} is above 1 / ({_MARGIN} n) for n = about {images} training images; "
            f"set privacy_delta_exponent to {len(str(_MARGIN * images - 1))} or more"
        )


class Sampled(BaseModel):
    """Sums over randomly drawn images, each image's part clipped, with Gaussian noise.

    Attributes:
        times: number of sums.
        rate: probability with which each image takes part in one, on its own.
        clip: largest norm of an image's part.
        noise: standard deviation of the noise, as a multiple of ``clip``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    times: int = Field(ge=1)
    rate: float = Field(gt=0, le=1)
    clip: float = Field(gt=0)
    noise: float = Field(gt=0)


class Mechanism(BaseModel):
    """Everything in a private evolution that reads images.

    Attributes:
        scope: what the guarantee is about.
        images: the number of training images, with noise.
        count_epsilon: epsilon that this number cost, by itself and with delta 0.
        training: the steps of DP-SGD; none if the weights carry no guarantee. The guarantee of the Fisher sums then
            takes as given the whole network, its unpublished classifier and front layers included, and the set of named
            images.
        fisher: one sum for each form's Fisher diagonal.
        accounted: epsilon of the sums as they were planned, and of the number.
        epsilon, delta: of the whole, for one image more or fewer. For another noisy number, other sums would have been
            planned, but none that cost more; ``accounted`` is at most ``epsilon``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    scope: PrivacyScope
    images: int = Field(ge=1)
    count_epsilon: float = Field(ge=0)
    training: Sampled | None
    fisher: Sampled
    accounted: float = Field(gt=0)
    epsilon: float = Field(gt=0)
    delta: float = Field(gt=0, lt=1)

    @property
    def fisher_images(self) -> int:
        """Expected number of images of a Fisher diagonal."""
        return round(self.fisher.rate * self.images)

    @property
    def guarantee(self) -> DifferentialPrivacy:
        """The guarantee as a release states it."""
        return DifferentialPrivacy(
            epsilon_micro=math.ceil(round(self.epsilon * 1e6, 3)),
            delta_exponent=round(-math.log10(self.delta)),
            relation="add-or-remove",
            scope=self.scope,
        )
