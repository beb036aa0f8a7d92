"""The grid of learning rates and weight decays in the results."""

from io import StringIO
from pathlib import Path
from statistics import pstdev

import pytest
from rich.console import Console

from sims.results import report
from sims.results.collection import collect
from sims.results.descents import grid_rows
from sims.results.tables import results_tables
from tests.sims.made_run import METHODS, make_run

GRID = {
    f"{method} rate {rate} decay {decay}": 40.0 + 10 * number
    for method in ("condensed-eq9", "scratch")
    for number, (rate, decay) in enumerate(((0.005, 0), (0.005, 0.01), (0.1, 0)))
}


def test_best_worst_and_spread_are_those_of_the_grid(tmp_path: Path) -> None:
    folder = make_run(tmp_path, methods=METHODS | GRID, target_tasks="10:3,20:3")
    results = collect(folder)
    rows = grid_rows(results)
    assert sorted((row.method, row.shots) for row in rows) == [
        (method, shots) for method in ("condensed-eq9", "scratch") for shots in (10, 20)
    ]
    for row in rows:
        means = {n: results.methods[n][row.shots].mean for n in GRID if n.startswith(f"{row.method} ")}
        assert row.points == 3
        assert row.best[0] == max(means.values())
        assert row.worst[0] == min(means.values())
        assert means[f"{row.method} {row.best[1]}"] == row.best[0]
        assert row.spread == pytest.approx(pstdev(means.values()))
    html = report.write(folder).read_text(encoding="utf-8")
    assert html.count("<td>rate 0.005 decay 0") >= 1
    console = Console(file=StringIO(), width=100)
    console.print(results_tables(results))
    assert isinstance(console.file, StringIO)
    assert "standard deviation" in console.file.getvalue()
    without = results.model_copy(update={"methods": {name: results.methods[name] for name in METHODS}})
    assert grid_rows(without) == []
