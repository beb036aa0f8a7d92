"""Tests of the batches that tasks train on, and of the learning rate."""

import pytest
import torch

from collective_node.training import FLOOR, class_balanced_batches, one_cycle


def test_rehearsal_gives_every_class_equally_often_and_every_image_before_any_twice() -> None:
    pools = [torch.arange(0, 30), torch.arange(30, 60), torch.arange(60, 70)]
    drawn = torch.cat(list(class_balanced_batches(pools, 9, 10, torch.Generator().manual_seed(0))))
    assert len(drawn) == 90
    counts = torch.bincount(drawn, minlength=70)
    assert counts[:60].tolist() == [1] * 60
    assert counts[60:].tolist() == [3] * 10


def test_rehearsal_mixes_classes_inside_a_batch() -> None:
    pools = [torch.arange(c * 100, c * 100 + 100) for c in range(4)]
    for batch in class_balanced_batches(pools, 5, 16, torch.Generator().manual_seed(0)):
        assert torch.bincount(batch // 100, minlength=4).tolist() == [4] * 4


def test_one_cycle_rises_to_the_peak_and_falls_to_the_floor() -> None:
    rates = [one_cycle(step, 100, 0.1) for step in range(100)]
    top = rates.index(max(rates))
    assert max(rates) == pytest.approx(0.1)
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert min(rates) >= 0.1 * FLOOR
