"""``learngene bench start``: the help of commands, and pictures that are read a second time."""

import pytest

from protocol.commands.learngene import make
from sims.bench import start_timing
from tests.sims.bench.nobody import nobody


def test_one_row_for_each_program_and_one_for_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start_timing, "_commands", lambda command: iter([(), ("keygen",)]))
    monkeypatch.setattr(start_timing, "PROGRAMS", {"learngene": ("protocol.commands.learngene", make)})
    ticks = iter(range(1000)).__next__
    helps, pictures = start_timing.measure(1, lambda: float(ticks()), nobody, pictures=6)
    assert helps.name.startswith("learngene")
    assert helps.ratio.median == 1
    assert pictures.unit == "s"
