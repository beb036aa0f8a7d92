"""Sizes in the results: a row for each method and size, with weights and bytes, in file, page, figure and terminal."""

import json
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from PIL import Image
from rich.console import Console

from protocol.errors import InputError
from sims.results import figures, report
from sims.results.collection import collect
from sims.results.comparison import pairs
from sims.results.models import Results, load, schema
from sims.results.sizes import size_rows
from sims.results.sizes_figure import SIZES_FIGURE, draw_sizes
from sims.results.tables import results_tables
from sims.run.settings import RunSettings, check_machine, from_run_config
from tests.sims.made_run import METHODS, edit, make_run

SIZES = {"x0.25": (30_000, 250_000), "x0.5": (120_000, 990_000), "full": (500_000, 4_000_000)}
SMALL = {
    f"{method} {size}": METHODS[method] - 8 / (number + 1)
    for number, size in enumerate(("x0.25", "x0.5"))
    for method in ("condensed", "direct", "scratch")
}


def facts() -> list[dict[str, object]]:
    return [
        {"size": size, "parameters": parameters, "bytes": bytes_, "accuracy": 40.0}
        for size, (parameters, bytes_) in SIZES.items()
    ]


def with_sizes(told: Any) -> None:  # noqa: ANN401 - a JSON document
    told["learngenes"]["condensed"]["sizes"] = facts()
    told["learngenes"]["direct"] = told["learngenes"]["condensed"] | {"release": "b" * 64}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Results]:
    folder = make_run(tmp_path_factory.mktemp("runs"), methods=METHODS | SMALL, target_tasks="10:4,20:3")
    edit(folder / "nodes" / "collective" / "state" / "metrics.json", with_sizes)
    return folder, collect(folder)


def test_every_size_of_a_method_stands_beside_its_weights_and_bytes(made: tuple[Path, Results]) -> None:
    folder, results = made
    Draft202012Validator(schema()).validate(json.loads((folder / "results.json").read_text(encoding="utf-8")))
    assert load(folder) == results
    rows = size_rows(results)
    assert [(row.method, row.facts.size) for row in rows] == [
        (method, size) for method in ("condensed", "direct", "scratch") for size in SIZES
    ]
    for row in rows:
        assert (row.facts.parameters, row.facts.bytes) == SIZES[row.facts.size]
        name = row.method if row.facts.size == "full" else f"{row.method} {row.facts.size}"
        assert row.by_shots == results.methods[name]
        assert row.inherits == (row.method != "scratch")


def test_the_default_is_compared_with_its_controls_at_the_same_size_and_with_no_other(
    made: tuple[Path, Results],
) -> None:
    found = [pair for group in pairs(made[1].methods).values() for pair in group]
    sized = [pair for pair in found if " " in pair[0] + pair[1]]
    wanted = [(f"condensed {size}", f"{other} {size}") for size in ("x0.25", "x0.5") for other in ("direct", "scratch")]
    assert sorted(sized) == sorted(wanted)
    plain = [pair for group in pairs(METHODS).values() for pair in group]
    assert [pair for pair in found if pair not in sized] == plain
    for first, second in sized:
        assert f"{first}-{second}" in made[1].paired


def test_page_figure_and_terminal_show_the_sizes_once(made: tuple[Path, Results]) -> None:
    folder, results = made
    html = report.write(folder).read_text(encoding="utf-8")
    assert (folder / SIZES_FIGURE).is_file()
    drawn = draw_sizes(results)
    assert drawn is not None
    assert max(Image.open(BytesIO(drawn)).size) < 2000
    assert html.count("120,000") == 3
    assert html.count("990,000") == 2  # scratch inherits no bytes
    assert "\\u" not in html
    console = Console(file=StringIO(), width=80)
    console.print(results_tables(results))
    assert isinstance(console.file, StringIO)
    assert console.file.getvalue().count("120,000") == 3
    # The bars are of the methods at full size alone.
    without = results.model_copy(update={"methods": {name: results.methods[name] for name in METHODS}})
    assert figures.accuracy_figure(results) == figures.accuracy_figure(without)
    assert size_rows(without) == []
    assert draw_sizes(without) is None


def test_sizes_that_no_learngene_offers_are_refused(tmp_path: Path) -> None:
    def resolved(changes: str) -> RunSettings:
        return from_run_config({"out": str(tmp_path), "profile": "smoke", "set": changes})

    offered = "collective.condense_sizes=x0.25,x0.5"
    resolved(f"{offered} individual.compare_sizes=x0.25,x0.5")
    resolved(f"{offered} individual.size=x0.5")
    resolved("individual.size=full")
    # More tensors than a blob holds are found before anything is started.
    many = resolved("collective.condense_budget=0.5M collective.condense_sizes=x0.25,x0.35,x0.5,x0.6,x0.7,x0.85")
    with pytest.raises(InputError, match=r"condense_sizes.*256"):
        check_machine(many)
    check_machine(resolved(f"collective.condense_budget=0.5M {offered}"))
    for wrong in ("individual.compare_sizes=x0.25", "individual.size=x0.5", f"{offered} individual.size=x0.7"):
        with pytest.raises(InputError, match=r"collective\.condense_sizes="):
            resolved(wrong)
