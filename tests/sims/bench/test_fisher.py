"""``learngene bench fisher``: what is timed beside our Fisher diagonal computes the same."""

from importlib.util import find_spec

import pytest
import torch

from sims.bench.fisher_timing import FEW, OTHERS, FisherWork, measure
from tests.sims.bench.nobody import nobody


@pytest.mark.parametrize("name", OTHERS)
def test_every_other_way_gives_the_same_sums(name: str) -> None:
    other, package = OTHERS[name]
    if find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    work = FisherWork(5, width=0.0625)
    ours = work.ours()
    assert all(value.abs().max() > 0 for value in ours)
    for one, two in zip(ours, other(work), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6 * float(one.max()))
    # None of them leaves anything behind in the network.
    for one, two in zip(ours, work.ours(), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=0)


def test_rows_of_time_and_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sims.bench.fisher_timing.MANY", FEW)
    monkeypatch.setattr("sims.bench.fisher_timing.OTHERS", {})
    clock = iter(range(10_000)).__next__
    rows = measure(1, lambda: float(clock()), nobody, width=0.0625)
    assert {row.unit for row in rows} == {"s", "MiB"}
    assert all(row.runs == 1 for row in rows)
