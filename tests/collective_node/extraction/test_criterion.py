"""Tests of the gradient criterion: Eq. 4 and 5 written out, and the settled-layer rule on made matrices."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from collective_node.extraction.criterion import (
    GradientTrend,
    check_tasks,
    choose_layers,
    found_layers,
    most_similar,
    settled,
    settled_layers,
)
from collective_node.network.expandable_network import ExpandableNetwork
from collective_node.network.growth_of_tensors import Copied, Growth
from collective_node.network.growth_steps import add_outputs, widen
from collective_node.settings import CollectiveSettings
from protocol.errors import InputError

Matrix = list[list[float | None]]


def rho(gradients: list[Tensor], sigma: float) -> float:
    """Eq. 5 over several batches of one layer."""
    size = torch.cat([gradient.flatten() for gradient in gradients]).abs()
    return float((size > sigma).double().mean())


def test_agrees_with_the_equation() -> None:
    torch.manual_seed(0)
    layers = [[torch.randn(8, 4, 3, 3) * scale for _ in range(5)] for scale in (1e-3, 1e-5, 3.0)]
    trend = GradientTrend(3, sigma=2e-4)
    for batch in range(5):
        trend.observe([layer[batch] for layer in layers])
    for found, layer in zip(trend.end_task(), layers, strict=True):
        # A bin is 1.1 % wide: an entry that close to sigma may fall on either side.
        assert rho(layer, 2e-4 * 1.012) <= found <= rho(layer, 2e-4 / 1.012)


def test_negative_gradients_count_as_much_as_positive_ones() -> None:
    gradient = torch.randn(1000)
    found = []
    for sign in (1, -1):
        trend = GradientTrend(1, sigma=0.5)
        trend.observe([gradient * sign])
        found.append(trend.end_task())
    assert found[0] == found[1]


def test_the_first_task_fixes_sigma_at_half_the_pooled_median() -> None:
    torch.manual_seed(0)
    trend = GradientTrend(2)
    batches = [[torch.randn(999), torch.randn(99) * 10] for _ in range(3)]
    for batch in batches:
        trend.observe(batch)
    trend.end_task()
    pooled = torch.cat([gradient.abs() for batch in batches for gradient in batch])
    assert trend.sigma == pytest.approx(float(pooled.median()) / 2, rel=0.012)
    first = trend.sigma
    trend.observe([torch.ones(3), torch.zeros(3)])
    assert trend.end_task() == [1.0, 0.0]
    assert trend.sigma == first


def test_a_sigma_below_every_bin_counts_every_gradient_that_is_not_zero() -> None:
    trend = GradientTrend(1, sigma=1e-30)
    trend.observe([torch.tensor([1.0, 1e-3, -1e-6, 0.0])])
    assert trend.end_task() == [0.75]


def test_a_gradient_that_is_not_finite_is_refused() -> None:
    with pytest.raises(ValueError, match="convolution 2 is not finite"):
        GradientTrend(2).observe([torch.ones(2), torch.tensor([1.0, float("nan")])])


def test_a_task_without_gradients_cannot_end() -> None:
    with pytest.raises(ValueError, match="no gradient"):
        GradientTrend(1).end_task()


def test_a_layer_put_in_between_two_tasks_has_no_share_before_and_one_afterwards() -> None:
    trend = GradientTrend(2, sigma=0.5)
    large, small = torch.ones(3), torch.zeros(3)
    trend.observe([large, small])
    trend.end_task()
    trend.insert_layer(1)
    trend.observe([small, large, large])
    trend.end_task()
    assert trend.rho == [[1.0, None, 0.0], [0.0, 1.0, 1.0]]
    trend.observe([small, small, small])
    with pytest.raises(ValueError, match="between two tasks"):
        trend.insert_layer(1)
    with pytest.raises(ValueError, match="no place 4"):
        GradientTrend(3).insert_layer(4)


@pytest.mark.parametrize("undivided", [False, True])
def test_a_copy_counts_with_the_gradient_that_its_channel_had(undivided: bool) -> None:
    """Widening divides a channel's gradient among its copies; with ``fractions`` each counts as the whole again."""
    generator = torch.Generator().manual_seed(0)
    network = ExpandableNetwork((4, 4, 6, 6, 8, 8, 8, 8, 8, 8, 8, 8, 8), hidden=0, dropout=0.0, generator=generator)
    add_outputs(network, 5, generator)
    network.eval()  # the function stays the same, so the gradients are comparable
    x, labels = torch.randn(6, 3, 32, 32, generator=generator), torch.arange(6) % 5

    def gradients() -> list[Tensor]:
        network.zero_grad()
        torch.nn.functional.cross_entropy(network(x), labels).backward()
        return [layer.conv.weight.grad.clone() for layer in network.layers if layer.conv.weight.grad is not None]

    before = gradients()[4]
    trend = GradientTrend(13, sigma=float(before.abs().median()), fractions=[None] * 13 if undivided else None)
    source = torch.arange(8)
    for extra in (8, 8):
        growth = widen(network, 4, extra, generator)
        move = growth.moves["blocks.4.conv.weight"]
        assert isinstance(move, Copied)
        source = source[move.source]
        trend.follow(growth)
    trend.observe(gradients())
    whole = float((before[source].abs() > trend.sigma).double().mean())
    assert (trend.end_task()[4] == pytest.approx(whole, abs=0.02)) == undivided


def test_a_layer_put_in_moves_the_fractions_of_those_behind_it() -> None:
    trend = GradientTrend(2, sigma=0.5, fractions=[None, torch.tensor([0.25, 1.0])])
    trend.follow(Growth({}, inserted=1))
    trend.observe([torch.ones(1, 1), torch.ones(1, 1), torch.full((2, 1), 0.2)])
    assert trend.end_task() == [1.0, 1.0, 0.5]


def noisy(values: Sequence[float], seed: int) -> list[float | None]:
    """Values with noise of at most 0.02, within 0 and 1."""
    noise = np.random.default_rng(seed).uniform(-0.02, 0.02, len(values))
    return [float(value) for value in np.clip(values + noise, 0, 1)]


def falling(tasks: int, at: int, high: float = 0.9, low: float = 0.1) -> list[float]:
    """``high`` up to task ``at``, ``low`` from it on."""
    return [high] * at + [low] * (tasks - at)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("tasks", [6, 13, 50])
class TestScenarios:
    """The paper's three scenarios, section "Inheriting Learngene", and what lies between them."""

    def test_a_layer_that_falls_from_large_to_small_and_stays_settled(self, tasks: int, seed: int) -> None:
        assert settled(noisy(falling(tasks, tasks // 2), seed))
        gradually = np.clip(np.linspace(1.6, -0.5, tasks), 0.1, 0.9)
        assert settled(noisy(gradually.tolist(), seed)) is (tasks > 6)  # in six tasks it falls too late

    def test_a_layer_that_hardly_ever_changes_did_not(self, tasks: int, seed: int) -> None:
        assert not settled(noisy([0.05] * tasks, seed))
        assert not settled(noisy(falling(tasks, tasks // 2, 0.3, 0.0), seed))

    def test_a_layer_that_stays_large_did_not(self, tasks: int, seed: int) -> None:
        assert not settled(noisy([0.9] * tasks, seed))
        assert not settled(noisy(falling(tasks, tasks // 2, 0.9, 0.6), seed))

    def test_a_layer_that_fluctuates_did_not(self, tasks: int, seed: int) -> None:
        assert not settled(noisy([0.9, 0.1] * (tasks // 2), seed))
        assert not settled(noisy([0.9] * (tasks - 4) + [0.1, 0.35, 0.1, 0.35], seed))

    def test_a_layer_that_is_still_falling_or_grows_again_did_not(self, tasks: int, seed: int) -> None:
        assert not settled(noisy(np.linspace(0.9, 0.1, tasks).tolist(), seed))
        assert not settled(noisy([*falling(tasks - 1, tasks // 2), 0.9], seed))
        assert not settled(noisy(falling(tasks, tasks // 2)[::-1], seed))


def test_the_rule_at_its_numbers() -> None:
    """Each of the three conditions holds at its number, and fails beyond it."""
    assert settled([0.5, 0.1, 0.1, 0.25, 0.25, 0.25])
    assert not settled([0.49, 0.1, 0.1, 0.2, 0.2, 0.2])
    assert not settled([0.5, 0.1, 0.1, 0.25, 0.26, 0.25])
    assert settled([0.8, 0.1, 0.1, 0.0, 0.1, 0.05])
    assert not settled([0.8, 0.1, 0.1, 0.0, 0.11, 0.05])
    # Of 13 tasks the last four count, of 12 the last three.
    assert not settled([0.8] * 10 + [0.1] * 3)
    assert settled([0.8] * 9 + [0.1] * 4)
    assert settled([0.8] * 9 + [0.1] * 3)


def test_a_layer_is_judged_by_the_tasks_it_has_lived_through() -> None:
    life: list[float | None] = [0.9, 0.9, 0.9, 0.1, 0.1, 0.1]
    assert settled([None] * 20 + life)
    assert not settled([None] * 20 + life[1:])
    assert not settled([None] * 20)
    assert not settled([])


def matrix(*layers: bool, tasks: int = 12) -> Matrix:
    """Tasks x layers in which the true ones settle."""
    columns = [falling(tasks, tasks // 2, 0.9, 0.1 if one else 0.8) for one in layers]
    return [list(row) for row in zip(*columns, strict=True)]


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ((False, False, True, True, True), 3),
        ((True, True, False, True), 1),  # those in front of a gap do not count
        ((True, True, True), 3),
    ],
)
def test_k_is_the_number_of_settled_layers_in_a_row_at_the_end(layers: tuple[bool, ...], expected: int) -> None:
    assert settled_layers(matrix(*layers)) == list(layers)
    assert found_layers(matrix(*layers)) == expected


def test_where_no_layer_settled_at_the_end_none_is_found_and_the_papers_three_are_taken() -> None:
    assert found_layers(matrix(True, True, False)) == 0
    assert found_layers([]) == 0
    settings = CollectiveSettings(layers=None)
    assert choose_layers(settings, 5, matrix(True, True, True, True, False), None, most=5) == range(2, 5)


def test_no_more_layers_are_found_than_every_form_can_hold() -> None:
    settings = CollectiveSettings(layers=None)
    assert choose_layers(settings, 4, matrix(True, True, True, True), None, most=2) == range(2, 4)


def test_too_few_tasks_are_an_error_before_they_are_learned() -> None:
    assert found_layers(matrix(False, True, tasks=6)) == 1
    assert found_layers(matrix(False, True, tasks=5)) == 0
    check_tasks(6)
    for tasks in (0, 5):
        with pytest.raises(InputError, match=f"from {tasks} tasks"):
            check_tasks(tasks)


def test_a_layer_that_came_late_breaks_the_row_until_it_has_settled() -> None:
    rho: Matrix = matrix(False, True, True)
    late: Matrix = [[*row[:2], None if task < 8 else 0.1, *row[2:]] for task, row in enumerate(rho)]
    assert found_layers(rho) == 2
    assert found_layers(late) == 1


def test_the_chosen_layers_end_at_the_last_one_with_k_given_or_found() -> None:
    rho = matrix(False, False, True, True)
    assert choose_layers(CollectiveSettings(layers=3), 4, rho, None, most=12) == range(1, 4)
    assert choose_layers(CollectiveSettings(layers=None), 4, rho, None, most=12) == range(2, 4)
    assert choose_layers(CollectiveSettings(layers=4), 4, [], None, most=12) == range(4)


def test_the_most_similar_layers_are_chosen_by_the_second_criterion() -> None:
    settings = CollectiveSettings(layers=2, criterion="similarity", descendant_epochs=1)
    similarity = (0.1, 0.7, 0.6, 0.9, 0.2)
    assert choose_layers(settings, 5, [], similarity, most=12) == range(2, 4)
    found = settings.model_copy(update={"layers": None})
    assert choose_layers(found, 5, matrix(False, False, True, True, True), similarity, most=12) == range(1, 4)
    with pytest.raises(ValueError, match="similarity of each of the 5 layers"):
        choose_layers(settings, 5, [], None, most=12)


def test_more_layers_than_the_network_has_are_refused() -> None:
    for criterion in ("gradient-trend", "similarity"):
        settings = CollectiveSettings(layers=14, criterion=criterion, descendant_epochs=1)
        with pytest.raises(InputError, match="14 layers to inherit, but the network has 13"):
            choose_layers(settings, 13, [], [0.5] * 13, most=12)


def test_the_window_with_the_largest_mean_is_found_among_all() -> None:
    rng = np.random.default_rng(0)
    for k in range(1, 8):
        similarity = rng.random(7).tolist()
        found = most_similar(similarity, k)
        means = [np.mean(similarity[start : start + k]) for start in range(8 - k)]
        assert len(found) == k
        assert found.start == int(np.argmax(means))
    assert most_similar([0.5] * 5, 2) == range(3, 5)
    with pytest.raises(ValueError, match="no 4 adjacent layers among 3"):
        most_similar([0.1, 0.2, 0.3], 4)
