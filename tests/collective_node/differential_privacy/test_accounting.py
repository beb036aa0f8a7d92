"""Epsilon against independent computations; the plan keeps what the settings ask for, whatever the noisy number is."""

import math

import numpy as np
import pytest
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant
from scipy.optimize import brentq
from scipy.special import log_ndtr, ndtr

from collective_node.differential_privacy import accounting
from collective_node.differential_privacy.accounting import COUNT_SHARE, epsilon_of, event_of, plan
from collective_node.differential_privacy.mechanism import Mechanism, Sampled, check_delta
from collective_node.differential_privacy.randomness import PrivateRandomness
from collective_node.settings import CollectiveSettings
from protocol.errors import InputError, RunFailedError

PRIVATE = CollectiveSettings(forms=("condensed",), cycles=0, privacy_epsilon=3.0)


def gaussian_epsilon(noise: float, delta: float) -> float:
    """Of one Gaussian mechanism, exactly (Balle and Wang, arXiv 1805.06530, theorem 8)."""

    def excess(epsilon: float) -> float:
        first = ndtr(1 / (2 * noise) - epsilon * noise)
        second = math.exp(epsilon + log_ndtr(-1 / (2 * noise) - epsilon * noise))
        return float(first - second - delta)

    return float(brentq(excess, 0, 1e4))


@pytest.mark.parametrize(("noise", "delta"), [(0.5, 1e-5), (1.0, 1e-5), (4.0, 1e-6), (30.0, 1e-3)])
@pytest.mark.parametrize("times", [1, 4])
def test_epsilon_without_sampling_is_that_of_the_gaussian_mechanism(noise: float, delta: float, times: int) -> None:
    """Several sums with noise are one with less: their losses are normally distributed."""
    found = epsilon_of([Sampled(times=times, rate=1, clip=1, noise=noise * math.sqrt(times))], delta)
    exact = gaussian_epsilon(noise, delta)
    assert exact <= found <= exact + 1e-3


@pytest.mark.parametrize("noise", [1.0, 5.0])
def test_renyi_divergence_at_a_rate_of_one_is_that_of_the_gaussian(noise: float) -> None:
    """alpha / (2 noise^2) at every order (Mironov 2017, proposition 7), in the accountant that is the other bound."""
    orders = [1.5, 2.0, 8.0, 64.0]
    accountant = RdpAccountant(orders).compose(event_of(Sampled(times=1, rate=1, clip=1, noise=noise)))
    np.testing.assert_allclose(accountant._rdp, [order / (2 * noise**2) for order in orders])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("rate", "noise", "times"), [(0.03, 1.0, 300), (0.2, 2.0, 50), (0.5, 5.0, 3)])
def test_sampled_sums_lie_below_renyi_accounting_and_above_what_no_adversary_can_beat(
    rate: float, noise: float, times: int
) -> None:
    sums = Sampled(times=times, rate=rate, clip=1, noise=noise)
    found = epsilon_of([sums], 1e-5)
    assert found <= RdpAccountant().compose(event_of(sums)).get_epsilon(1e-5)
    # One step with the same sampling: e^epsilon - 1 shrinks by the rate, delta too (amplification by subsampling).
    single = epsilon_of([Sampled(times=1, rate=rate, clip=1, noise=noise)], rate * 1e-5)
    amplified = math.log1p(rate * math.expm1(gaussian_epsilon(noise, 1e-5)))
    assert single == pytest.approx(amplified, abs=2e-3)
    assert found > single


def monte_carlo_delta(sums: Sampled, epsilon: float, draws: int = 400_000) -> float:
    """How much of the outcomes' probability exceeds ``e^epsilon`` times that without the image; the loss of each step
    is drawn, so that nothing but the densities is assumed."""
    rng = np.random.default_rng(0)
    loss = np.zeros(draws)
    for _ in range(sums.times):
        x = rng.normal(0, sums.noise, draws) + (rng.random(draws) < sums.rate)
        loss += np.log1p(sums.rate * np.expm1((2 * x - 1) / (2 * sums.noise**2)))
    return float(np.maximum(0, -np.expm1(epsilon - loss)).mean())


def test_epsilon_agrees_with_drawn_outcomes() -> None:
    sums = Sampled(times=5, rate=0.3, clip=1, noise=1.0)
    for epsilon in (0.5, 1.0, 2.0):
        delta = monte_carlo_delta(sums, epsilon)
        assert epsilon_of([sums], delta) == pytest.approx(epsilon, abs=0.02)


def test_two_kinds_of_sums_cost_more_than_each_and_no_more_than_both() -> None:
    first, second = Sampled(times=40, rate=0.1, clip=1, noise=1.2), Sampled(times=1, rate=0.3, clip=9, noise=1.5)
    delta = 1e-5
    both = epsilon_of([first, second], delta)
    assert max(epsilon_of([first], delta), epsilon_of([second], delta)) < both
    assert both <= epsilon_of([first], delta / 2) + epsilon_of([second], delta / 2)


@pytest.mark.parametrize("scope", ["weights-and-fisher", "fisher-given-weights"])
@pytest.mark.parametrize("epsilon", [0.5, 3.0])
def test_a_plan_spends_what_is_asked_for_and_no_more(scope: str, epsilon: float) -> None:
    settings = CollectiveSettings.model_validate(
        PRIVATE.model_dump() | {"privacy_epsilon": epsilon, "privacy_scope": scope}
    )
    found = plan(settings, 20_000, fishers=1, randomness=PrivateRandomness())
    spent = epsilon_of([one for one in (found.training, found.fisher) if one is not None], found.delta)
    assert found.accounted == pytest.approx(found.count_epsilon + spent, abs=1e-12)
    assert 0.98 * epsilon < found.accounted <= epsilon
    assert found.count_epsilon == COUNT_SHARE * epsilon
    assert (found.training is None) == (scope == "fisher-given-weights")
    assert found.guarantee.epsilon_micro == round(epsilon * 1e6)
    assert found.guarantee.delta_exponent == settings.privacy_delta_exponent
    assert 10.0**-found.guarantee.delta_exponent == found.delta
    assert (found.guarantee.relation, found.guarantee.scope) == ("add-or-remove", scope)


def test_the_fisher_diagonal_has_its_share() -> None:
    found = plan(PRIVATE, 20_000, fishers=1, randomness=PrivateRandomness())
    alone = epsilon_of([found.fisher], found.delta)
    share = PRIVATE.privacy_fisher_share * (found.epsilon - found.count_epsilon)
    assert 0.97 * share < alone <= share


def test_several_forms_are_accounted_together() -> None:
    """Each release states what all releases of the run cost: their Fisher diagonals are of the same images."""
    settings = CollectiveSettings(privacy_epsilon=2.0, privacy_scope="fisher-given-weights")
    one, two = (plan(settings, 20_000, fishers=n, randomness=PrivateRandomness()) for n in (1, 2))
    assert two.fisher.times == 2
    assert two.fisher.noise > one.fisher.noise
    assert epsilon_of([one.fisher] * 2, one.delta) > one.epsilon


def test_the_sampling_follows_from_the_noisy_number_alone() -> None:
    """With the same noise, neighbours that come out with one number have one plan."""

    class Fixed(PrivateRandomness):
        def noisy_count(self, count: int, epsilon: float) -> int:
            return 16_384

    found = {plan(PRIVATE, n, fishers=1, randomness=Fixed()).model_dump_json() for n in (16_000, 16_001, 20_000)}
    assert len(found) == 1
    mechanism = Mechanism.model_validate_json(found.pop())
    assert mechanism.images == 16_384
    assert mechanism.training is not None
    assert mechanism.training.rate == PRIVATE.privacy_batch_size / 16_384
    assert mechanism.training.times == round(PRIVATE.privacy_epochs * 16_384 / PRIVATE.privacy_batch_size)
    assert mechanism.fisher_images == PRIVATE.fisher_samples


def test_more_images_wanted_than_there_are_means_all_of_them() -> None:
    settings = PRIVATE.model_copy(update={"privacy_batch_size": 10**6, "fisher_samples": 10**6})
    found = plan(settings, 5000, fishers=1, randomness=PrivateRandomness())
    assert found.training is not None
    assert (found.training.rate, found.fisher.rate) == (1.0, 1.0)
    assert found.fisher_images == found.images


@pytest.mark.parametrize(("exponent", "most"), [(1, 1), (5, 10_000), (6, 100_000), (30, 10**29)])
def test_delta_is_at_most_a_tenth_of_one_over_the_number_of_images(exponent: int, most: int) -> None:
    check_delta(exponent, most)
    with pytest.raises(InputError, match=f"privacy_delta_exponent to {exponent + 1} or more"):
        check_delta(exponent, most + 1)


def test_a_delta_that_is_too_large_is_refused_before_noise_is_sought(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accounting, "calibrated", lambda *_: pytest.fail("noise for a delta that is refused"))
    settings = PRIVATE.model_copy(update={"privacy_delta_exponent": 5})
    with pytest.raises(InputError, match="privacy_delta_exponent to 6"):
        plan(settings, 20_000, fishers=1, randomness=PrivateRandomness())


def test_the_default_delta_suits_the_base_images_of_every_dataset() -> None:
    """64 classes of 1,300 images, ImageNet's, are the most."""
    check_delta(PRIVATE.privacy_delta_exponent, 64 * 1300)


def test_a_plan_with_too_little_noise_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """An attack on the search for the noise: whatever it finds, the final accounting has the last word."""
    calibrate = accounting.calibrate_dp_mechanism
    settings = PRIVATE.model_copy(update={"privacy_scope": "fisher-given-weights"})
    plan(settings, 20_000, fishers=1, randomness=PrivateRandomness())
    monkeypatch.setattr(accounting, "calibrate_dp_mechanism", lambda *given, **more: 0.9 * calibrate(*given, **more))
    with pytest.raises(RunFailedError, match="more than the 3 asked for"):
        plan(settings, 20_000, fishers=1, randomness=PrivateRandomness())


def test_what_was_found_is_never_accounted_for_more_coarsely_than_it_was_sought(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else rounding alone would put a small epsilon above what was asked for, and a good plan would be refused."""
    intervals: list[float] = []

    class Recorded(PLDAccountant):  # type: ignore[misc]
        def __init__(self, *, value_discretization_interval: float) -> None:
            intervals.append(value_discretization_interval)
            super().__init__(value_discretization_interval=value_discretization_interval)

    class Exact(PrivateRandomness):
        def noisy_count(self, count: int, epsilon: float) -> int:
            return count

    monkeypatch.setattr(accounting, "PLDAccountant", Recorded)
    settings = CollectiveSettings(privacy_epsilon=0.08, privacy_scope="fisher-given-weights")
    assert plan(settings, 20_000, fishers=1, randomness=Exact()).accounted <= 0.08
    assert len(intervals) > 1
    assert intervals[-1] <= min(intervals[:-1]) < 1e-4


def test_too_few_images_for_what_the_policy_lets_leave_are_refused() -> None:
    with pytest.raises(InputError, match=r"from 300 images .* only from 1024"):
        plan(
            PRIVATE.model_copy(update={"fisher_samples": 300}),
            20_000,
            fishers=1,
            randomness=PrivateRandomness(),
            fewest_fisher_images=1024,
        )


@pytest.mark.parametrize(
    "wrong", [{"forms": ("condensed", "paper")}, {"cycles": 1}, {"layers": None}, {"descendant_epochs": 1.0}]
)
def test_settings_that_would_look_at_images_without_noise_are_refused(wrong: dict[str, object]) -> None:
    given = PRIVATE.model_dump() | wrong
    with pytest.raises(ValueError, match=f"set forms=condensed, cycles=0.*differ: {next(iter(wrong))}"):
        CollectiveSettings.model_validate(given)
    CollectiveSettings.model_validate(given | {"privacy_epsilon": None})
    CollectiveSettings.model_validate(given | {"privacy_scope": "fisher-given-weights"})
