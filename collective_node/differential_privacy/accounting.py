"""Privacy accounting of an evolution: the noise for a wanted epsilon, and the epsilon of a noise (dp-accounting)."""

from collections.abc import Sequence

from dp_accounting import (
    ComposedDpEvent,
    DpEvent,
    ExplicitBracketInterval,
    GaussianDpEvent,
    PoissonSampledDpEvent,
    SelfComposedDpEvent,
    calibrate_dp_mechanism,
)
from dp_accounting.pld import PLDAccountant

from collective_node.differential_privacy.mechanism import Mechanism, Sampled, check_delta
from collective_node.differential_privacy.randomness import PrivateRandomness
from collective_node.enough_images import check_fisher_images
from collective_node.settings import CollectiveSettings
from collective_node.training import steps_for
from protocol.errors import RunFailedError

#: Share of epsilon for the number of images, which sampling rates and numbers of steps follow from.
COUNT_SHARE = 0.01
#: Width of the steps in which privacy losses are rounded up while a noise multiplier is sought, and how exact it is.
_COARSE, _TOLERANCE = 1e-3, 1e-3
#: The step width for the final accounting.
_FINE = 1e-4


def event_of(sums: Sampled) -> DpEvent:
    """The event of dp-accounting for such sums."""
    once: DpEvent = GaussianDpEvent(sums.noise)
    if sums.rate < 1:
        once = PoissonSampledDpEvent(sums.rate, once)
    return SelfComposedDpEvent(once, sums.times)


def epsilon_of(sums: Sequence[Sampled], delta: float, interval: float = _FINE) -> float:
    """Epsilon of several kinds of sums over the same images, for one image more or fewer.

    By privacy loss distributions (Koskela et al., arXiv 1906.03049; Doroshenko et al., arXiv 2207.04380), rounded so
    that the epsilon is never too small, in steps of ``interval``.
    """
    accountant = PLDAccountant(value_discretization_interval=interval)
    accountant.compose(ComposedDpEvent([event_of(one) for one in sums]))
    return float(accountant.get_epsilon(delta))


def plan(
    settings: CollectiveSettings,
    images: int,
    *,
    fishers: int,
    randomness: PrivateRandomness,
    fewest_fisher_images: int = 1,
) -> Mechanism:
    """Plan the noise with which an evolution keeps the epsilon and delta of its settings.

    The number of images is a secret too, because neighbours differ in it. So all other numbers follow from a noisy one.
    Whatever this number is, the sums stay within the rest of epsilon, and the two parts add up (basic composition).
    Every call draws a new number; the numbers of earlier calls, for evolutions that were refused or killed, are not
    added up.

    Args:
        settings: with ``privacy_epsilon``.
        images: training images, the true number.
        fishers: Fisher diagonals that will be released.
        fewest_fisher_images: fewest images of a Fisher diagonal that the site's policy lets out.

    Raises:
        InputError: delta is larger than 1 / (10 n) for n images, or these are too few for a Fisher diagonal.
        RunFailedError: by the final, finer accounting the planned noise does not keep epsilon.
    """
    if settings.privacy_epsilon is None:
        raise ValueError("these settings ask for no privacy")
    delta = 10.0**-settings.privacy_delta_exponent
    count_epsilon = COUNT_SHARE * settings.privacy_epsilon
    wanted = settings.privacy_epsilon - count_epsilon
    count = randomness.noisy_count(images, count_epsilon)
    fisher_images = min(settings.fisher_samples, count)
    _check_count(settings, count, fewest_fisher_images)
    share = 1.0 if settings.privacy_scope == "fisher-given-weights" else settings.privacy_fisher_share
    fisher = calibrated(fishers, fisher_images / count, settings.privacy_fisher_clip, (), share * wanted, delta)
    training = None
    if settings.privacy_scope == "weights-and-fisher":
        steps = steps_for(settings.privacy_epochs, count, settings.privacy_batch_size)
        rate = min(1.0, settings.privacy_batch_size / count)
        training = calibrated(steps, rate, settings.privacy_clip, (fisher,), wanted, delta)
    sums = [fisher] if training is None else [training, fisher]
    # Never in larger steps than the noise was sought in: these alone could make a small epsilon too large.
    accounted = count_epsilon + epsilon_of(sums, delta, min(_FINE, _interval(wanted)))
    if accounted > settings.privacy_epsilon:
        raise RunFailedError(
            f"the planned noise costs epsilon {accounted:.6g}, more than the {settings.privacy_epsilon:g} asked for; "
            "nothing was trained: set another privacy_epsilon, or report this"
        )
    return Mechanism(
        scope=settings.privacy_scope,
        images=count,
        count_epsilon=count_epsilon,
        training=training,
        fisher=fisher,
        accounted=accounted,
        epsilon=settings.privacy_epsilon,
        delta=delta,
    )


def _check_count(settings: CollectiveSettings, count: int, fewest_fisher_images: int) -> None:
    check_delta(settings.privacy_delta_exponent, count)
    check_fisher_images(settings, count, fewest_fisher_images)


def _interval(epsilon: float) -> float:
    return _COARSE * min(1.0, epsilon)


def calibrated(
    times: int, rate: float, clip: float, others: tuple[Sampled, ...], epsilon: float, delta: float
) -> Sampled:
    """Sums with the least noise that keeps epsilon, together with other sums over the same images.

    Args:
        times, rate, clip: of the sums, see :class:`collective_node.differential_privacy.mechanism.Sampled`.
        others: the other sums.
        epsilon, delta: of all of them together.
    """

    def sums(noise: float) -> Sampled:
        return Sampled(times=times, rate=rate, clip=clip, noise=noise)

    def event(noise: float) -> DpEvent:
        return ComposedDpEvent([event_of(one) for one in (sums(noise), *others)])

    def accountant() -> PLDAccountant:
        return PLDAccountant(value_discretization_interval=_interval(epsilon))

    # Accounting is slow for small noise, so the search starts at 1.
    low = 1.0
    while accountant().compose(event(low)).get_epsilon(delta) < epsilon:
        low /= 2
    high = 2 * low
    while accountant().compose(event(high)).get_epsilon(delta) > epsilon:
        low, high = high, 2 * high
    bracket = ExplicitBracketInterval(low, high)
    return sums(calibrate_dp_mechanism(accountant, event, epsilon, delta, bracket, tol=_TOLERANCE * low))
