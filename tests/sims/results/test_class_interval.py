"""The interval over new classes covers in made worlds whose truth is known, and the one over tasks alone does not."""

from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from sims.results.class_interval import over_new_classes
from sims.results.statistics import mean_interval, paired_difference

POOL, WAYS, IMAGES = 20, 5, 100
Classes = list[tuple[str, ...]]


@dataclass(frozen=True)
class World:
    """How target tasks come about, in points of accuracy.

    Attributes:
        own: standard deviation of a class's effect on its own accuracy.
        neighbour: that of its effect on each of its neighbours; the same classes are hard and confusing.
        pair: that of the confusion of two classes, which costs both.
        support: that of what the support images do to a task.
    """

    own: float
    neighbour: float
    pair: float
    support: float
    mean: float = 70.0

    def draw(self, generator: np.random.Generator, tasks: int) -> tuple[list[float], Classes]:
        """New classes with new images, and tasks of them: the accuracy of each one and its classes."""
        trait = generator.normal(size=POOL)
        confusion = generator.normal(0, self.pair, (POOL, POOL))
        confusion = (confusion + confusion.T) / np.sqrt(2)
        # An image is recognised where its class is accurate enough for it; all tasks of a class share its images.
        hardness = np.sort(generator.uniform(0, 100, (POOL, IMAGES)))
        chosen = generator.random((tasks, POOL)).argsort(1)[:, :WAYS]  # [tasks, ways]
        accuracy = self.mean + self.own * trait[chosen] + generator.normal(0, self.support, (tasks, 1))
        accuracy += self.neighbour * (trait[chosen].sum(1, keepdims=True) - trait[chosen])
        accuracy += confusion[chosen[:, :, None], chosen[:, None, :]].sum(2) - confusion[chosen, chosen]
        values = (hardness[chosen] < accuracy[:, :, None]).mean((1, 2)) * 100
        return values.tolist(), [tuple(f"class {number}" for number in one) for one in chosen]


WORLDS = {
    "hard and easy classes": World(own=12, neighbour=0, pair=0, support=3),
    "classes that disturb their neighbours": World(own=6, neighbour=2, pair=0, support=3),
    "pairs that are confused": World(own=6, neighbour=0, pair=4, support=3),
    "mostly noise of the support images": World(own=4, neighbour=0, pair=0, support=6),
}


def coverage(world: World, tasks: int, worlds: int = 250) -> tuple[float, float]:
    """How often the interval over new classes, and the one over tasks, hold the mean of all classes."""
    generator = np.random.default_rng([tasks, 17])
    hit = np.zeros(2)
    for _ in range(worlds):
        values, classes = world.draw(generator, tasks)
        found = mean_interval(values, classes)
        assert found.ci95 is not None
        assert found.ci95_classes is not None
        error = abs(found.mean - world.mean)
        hit += error <= found.ci95_classes, error <= found.ci95
    return hit[0] / worlds, hit[1] / worlds


@pytest.mark.parametrize("name", WORLDS)
@pytest.mark.parametrize("tasks", [10, 40])
def test_it_covers_the_mean_of_classes_that_were_not_drawn(name: str, tasks: int) -> None:
    covered, _ = coverage(WORLDS[name], tasks)
    assert covered >= 0.91  # three standard deviations of a binomial below 0.95


@pytest.mark.parametrize("name", WORLDS)
def test_with_many_tasks_it_covers_and_the_control_over_tasks_alone_does_not(name: str) -> None:
    covered, over_tasks = coverage(WORLDS[name], 200)
    assert 0.91 <= covered <= 0.99
    assert over_tasks < 0.6


def test_more_tasks_of_the_same_classes_say_no_more_about_new_ones() -> None:
    generator = np.random.default_rng(3)
    values, classes = WORLDS["hard and easy classes"].draw(generator, 2000)
    few, many = mean_interval(values[:100], classes[:100]), mean_interval(values, classes)
    assert few.ci95 is not None
    assert few.ci95_classes is not None
    assert many.ci95 is not None
    assert many.ci95_classes is not None
    assert many.ci95 < few.ci95 / 3
    assert many.ci95_classes > few.ci95_classes / 2
    # Twenty classes, each of which weighs a twentieth: Student's interval over their own effects.
    effects = np.linalg.lstsq(members(classes), np.array(values) - np.mean(values))[0]
    expected = stats.t.ppf(0.975, POOL - 1) * WAYS * effects.std(ddof=1) / np.sqrt(POOL)
    assert many.ci95_classes == pytest.approx(expected, rel=0.1)


def members(classes: Classes) -> NDArray[np.float64]:
    names = sorted({name for one in classes for name in one})
    return np.array([[float(name in one) for name in names] for one in classes])


def test_tasks_without_a_common_class_are_independent() -> None:
    values = [61.0, 70.0, 55.0, 82.0, 74.0]
    classes = [(f"a{task}", f"b{task}") for task in range(5)]
    found = mean_interval(values, classes)
    assert found.ci95_classes == pytest.approx(found.ci95)


def test_noise_alone_gives_little_more_than_the_interval_over_tasks() -> None:
    generator = np.random.default_rng(5)
    _, classes = WORLDS["hard and easy classes"].draw(generator, 400)
    found = mean_interval(generator.normal(70, 5, 400).tolist(), classes)
    assert found.ci95 is not None
    assert found.ci95_classes is not None
    assert found.ci95 <= found.ci95_classes < 2.5 * found.ci95


@pytest.mark.parametrize("factor", [0.01, 3.0, -2.0])
def test_it_moves_with_scale_and_not_with_place_or_names(factor: float) -> None:
    values, classes = WORLDS["hard and easy classes"].draw(np.random.default_rng(7), 40)
    half = over_new_classes(values, classes)
    assert half is not None
    changed = over_new_classes([factor * value + 11 for value in values], classes)
    assert changed == pytest.approx(abs(factor) * half)
    renamed = [tuple(f"z{name[6:]}" for name in reversed(one)) for one in classes]
    assert over_new_classes(values[::-1], renamed[::-1]) == pytest.approx(half)


def test_pairing_takes_away_what_is_hard_for_both_methods() -> None:
    values, classes = WORLDS["hard and easy classes"].draw(np.random.default_rng(11), 40)
    first, second = dict(enumerate(values)), {task: value - 5 for task, value in enumerate(values)}
    second[3] += 1.0
    found = paired_difference(first, second, dict(enumerate(classes)))
    assert found is not None
    assert found.ci95_classes is not None
    alone = over_new_classes(values, classes)
    assert alone is not None
    assert found.ci95_classes < alone / 10


def test_classes_that_explain_everything_are_no_trouble() -> None:
    classes = [(a, b) for a in "abcdef" for b in "abcdef" if a < b]
    values = [10.0 * "abcdef".index(a) + 10.0 * "abcdef".index(b) for a, b in classes]
    half = over_new_classes(values, classes)
    assert half is not None
    effects = [20.0 * place for place in range(6)]
    assert half == pytest.approx(stats.t.ppf(0.975, 5) * stats.sem(effects), rel=0.2)


def test_nothing_is_said_where_the_tasks_say_nothing_about_classes() -> None:
    same = [("a", "b")] * 5
    assert over_new_classes([1.0, 2.0, 3.0, 4.0, 5.0], same) is None
    assert over_new_classes([1.0], [("a", "b")]) is None
    assert over_new_classes([1.0, 2.0], []) is None
    assert mean_interval([1.0, 2.0]).ci95_classes is None
    assert over_new_classes([4.0, 4.0, 4.0], [("a", "b"), ("b", "c"), ("a", "c")]) == 0.0


@pytest.mark.parametrize("values", [[1.0], [1.0, float("nan")], [1.0, 2.0, 3.0]])
def test_values_that_do_not_fit_the_tasks_are_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match="2 tasks need as many finite values"):
        over_new_classes(values, [("a", "b"), ("b", "c")])
