"""Results as tables for a terminal."""

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from sims.results import PAPER_FIGURES, Results
from sims.summary import Summary
from sims.wording import interval_text, pair_label, verdict


def results_tables(results: Results) -> RenderableType:
    """The methods with their intervals beside the paper's figures, and the comparisons on the same tasks."""
    title = (
        f"{results.dataset.name}, profile {results.profile}, seed {results.seed}: accuracy, % (mean ± 95 % interval)"
    )
    methods = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold")
    methods.add_column("method")
    for shots in results.shots:
        methods.add_column(f"{shots} shots", justify="right", no_wrap=True)
        methods.add_column("tasks", justify="right")
    for method, by_shots in results.methods.items():
        cells = [
            cell
            for shots in results.shots
            for cell in (interval_text(by_shots.get(shots)), str(by_shots[shots].tasks) if shots in by_shots else "–")
        ]
        methods.add_row(method, *cells, style="bold" if method == "condensed" else "")
    if results.dataset.notice is None:
        for label, figures in PAPER_FIGURES.items():
            cells = [
                cell
                for shots in results.shots
                for cell in ("{:.1f} ± {:.1f}".format(*figures[shots]) if shots in figures else "–", "5")
            ]
            methods.add_row(label, *cells, style="dim")
    paired = Table(title="on the same tasks, points", box=box.SIMPLE_HEAD, title_justify="left", title_style="bold")
    paired.add_column("difference")
    for shots in results.shots:
        paired.add_column(f"{shots} shots", justify="right", no_wrap=True)
        paired.add_column("")
    for pair, differences in results.paired.items():
        cells = []
        for shots in results.shots:
            found = differences.get(shots)
            cells += [interval_text(found, sign=True), verdict(found) if found else ""]
        paired.add_row(pair_label(pair, list(results.methods)), *cells)
    parts: list[RenderableType] = [methods, paired]
    if results.dataset.notice is not None:
        parts.append(Text(results.dataset.notice, style="bold yellow"))
    return Group(*parts)


def summary_table(summary: Summary) -> RenderableType:
    """One column for each run and one for the mean over runs."""
    title = f"{summary.dataset['name']}, profile {summary.profile}: {len(summary.runs)} runs (mean ± 95 % over runs)"
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold")
    table.add_column("method")
    table.add_column("shots", justify="right")
    for run in summary.runs:
        table.add_column(f"seed {run.seed}", justify="right")
    table.add_column("mean", justify="right", no_wrap=True)
    for method, by_shots in summary.methods.items():
        for shots, found in by_shots.items():
            table.add_row(method, str(shots), *[f"{value:.1f}" for value in found.per_run], interval_text(found))
    table.add_section()
    for pair, by_shots in summary.paired.items():
        for shots, found in by_shots.items():
            label = pair_label(pair, list(summary.methods))
            values = [f"{value:+.1f}" for value in found.per_run]
            table.add_row(label, str(shots), *values, interval_text(found, sign=True))
    notice = summary.dataset["notice"]
    return Group(table, Text(notice, style="bold yellow")) if notice else table
