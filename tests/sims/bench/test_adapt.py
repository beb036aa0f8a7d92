"""``learngene bench adapt``: both sides of each row solve the same tasks."""

from pathlib import Path

import pytest
import torch

from sims.bench.adapt_timing import AdaptationWork, HeadWork, measure, paper_learngene
from tests.sims.bench.nobody import nobody


@pytest.fixture
def work(tmp_path: Path) -> AdaptationWork:
    return AdaptationWork(3, 1, paper_learngene(8), tmp_path)


def test_tasks_together_and_alone_are_the_same_tasks(work: AdaptationWork) -> None:
    together, alone = work.together(), work.alone()
    assert together.keys() == alone.keys() == {0, 1, 2}
    # One of 75 test images more or less, where rounding decides.
    assert all(abs(together[number] - alone[number]) <= 3 for number in together)


def test_the_written_out_floor_is_the_floor(work: AdaptationWork) -> None:
    ours, other = work.floor(), work.floor_alone()
    assert ours.keys() == other.keys()
    assert all(abs(ours[number] - other[number]) <= 3 for number in ours)


def test_heads_name_what_scikit_learn_names() -> None:
    heads = HeadWork(3, features=40)
    ours, other = heads.together(), heads.alone()
    assert ours.shape == other.shape
    assert float((ours == other).float().mean()) > 0.99
    truth = torch.arange(5).repeat_interleave(15)
    assert float((ours == truth).float().mean()) > 0.5


def test_rates_are_of_all_tasks() -> None:
    """Every work takes one tick of this clock."""
    ticks = iter(range(10_000)).__next__
    rows = measure(1, lambda: float(ticks()), nobody, tasks=2, epochs=1)
    assert len({row.name for row in rows}) == len(rows) == 3
    assert all(row.ours.median == row.other.median == 2 for row in rows)
