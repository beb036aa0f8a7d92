"""``learngene bench train``: every row holds both sides of one run, and the file says what the table shows."""

import json
from pathlib import Path

import pytest
import torch

from protocol.commands.learngene import make
from protocol.commands.terminal import run_app
from sims.bench import machine, train_timing
from sims.bench.train_timing import TrainingStep


def test_rows_hold_both_sides_and_their_ratio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_timing, "WIDTHS", (0.25,))
    monkeypatch.setattr(train_timing, "_IMAGES", 640)
    monkeypatch.setattr(machine, "_SIDE", 64)
    monkeypatch.setattr(machine, "_BYTES", 1 << 16)
    threads, out = torch.get_num_threads(), tmp_path / "train.json"
    try:
        with pytest.raises(SystemExit) as ended:
            run_app(make(), ["bench", "train", "--repeats", "1", "--seconds", "0.01", "--json", str(out)])
    finally:
        torch.set_num_threads(threads)
    assert ended.value.code in (0, None)
    document = json.loads(out.read_text())
    assert len({row["name"] for row in document["rows"]}) == len(document["rows"]) >= 4
    for row in document["rows"]:
        assert row["runs"] == 1
        assert row["ratio"]["median"] == pytest.approx(row["ours"]["median"] / row["other"]["median"])
        assert row["ours"]["smallest"] <= row["ours"]["median"] <= row["ours"]["largest"]
    assert document["machine"]["cores"] >= 1


def test_a_step_of_a_network_twice_as_wide_has_some_four_times_the_operations() -> None:
    clock = iter(range(100_000)).__next__
    one, other = (TrainingStep.made(width, 0.0, lambda: float(clock())) for width in (0.25, 0.5))
    assert 3 < other.operations() / one.operations() < 4.5
