"""Results as tables for a terminal."""

from collections.abc import Iterator

from rich import box
from rich.console import Group, RenderableType

from collective_node.metrics import Criterion
from individual_node.method_table import name_and_change
from protocol.output import PlainTable, plain
from sims.results.comparison import DEFAULT, pair_key, pairs
from sims.results.descents import grid_rows
from sims.results.models import METRICS, Results, chance_of, level_of, metric_of
from sims.results.privacy_table import PrivacyTable
from sims.results.sizes import size_rows
from sims.results.summary import ComparisonOverRuns, OverRuns, Summary
from sims.results.wording import (
    CHANCE_ROWS,
    CLASSES_UNKNOWN,
    INTERVALS,
    METRIC_NAMES,
    WHICH_INTERVAL,
    change_text,
    interval_text,
    intervals_text,
    kind_label,
    layers_text,
    number_text,
    pair_label,
    verdict,
)


def results_tables(results: Results) -> RenderableType:
    """The methods with their intervals beside the paper's figures, the comparisons on the same tasks, and the open
    world."""
    parts = [_methods(results), *_sizes(results), *_grid(results), _paired(results)]
    parts.append(plain(WHICH_INTERVAL if results.task_classes else CLASSES_UNKNOWN))
    if results.collective.open_world.cycles:
        parts += [_cycles(results), *_stream(results)]
    if results.collective.criterion is not None:
        parts.append(plain(criterion_line(results.collective.criterion)))
    if results.dataset.notice is not None:
        parts.append(plain(results.dataset.notice, style="bold yellow"))
    return Group(*parts)


def criterion_line(criterion: Criterion) -> str:
    """Which layers each criterion chose, in one line."""
    line = f"layers chosen: {layers_text(criterion.chosen)}; settled: {layers_text(criterion.settled_layers)}"
    if criterion.similarity is not None:
        line += f"; most like a pseudo-descendant's: {layers_text(criterion.similarity.layers)}"
    return line


def summary_table(summary: Summary) -> RenderableType:
    """One column for each run and one for the mean over runs."""
    title = f"{summary.dataset.name}, profile {summary.profile}: {len(summary.runs)} runs"
    table = titled(f"{title} (mean ± 95 % over training seeds, these classes (± over new classes and images))")
    table.add_column("method")
    table.add_column("shots", justify="right")
    _run_columns(table, summary)
    for method, by_shots in summary.methods.items():
        for shots, found in by_shots.items():
            table.add_row(method, str(shots), *_over(found))
    for group in pairs(summary.methods).values():
        table.add_section()
        for first, second in group:
            for shots, found in summary.paired.get(pair_key(first, second), {}).items():
                table.add_row(pair_label(first, second), str(shots), *_over(found, sign=True))
    parts: list[RenderableType] = [table, _collective_over_runs(summary)]
    own = next((kind for kind in summary.open_world if kind.own), None)
    if own is not None and any(cycle.stream for cycle in own.cycles):
        parts.append(_stream_over_runs(own))
    for run in summary.runs:
        if run.criterion is not None:
            parts.append(plain(f"seed {run.seed}: {criterion_line(run.criterion)}"))
    if summary.dataset.notice:
        parts.append(plain(summary.dataset.notice, style="bold yellow"))
    return Group(*parts)


def privacy_tables(table: PrivacyTable) -> RenderableType:
    """Accuracy of every method at each epsilon."""
    parts: list[RenderableType] = []
    for shots in table.shots:
        shown = titled(
            f"{table.dataset.name}, profile {table.profile}, {shots} shots: accuracy, % (mean ± 95 % interval), "
            f"delta {table.delta:.0e}, {table.scope}"
        )
        shown.add_column("method")
        for point in table.points:
            shown.add_column("no guarantee" if point.epsilon is None else f"ε = {point.epsilon:g}", justify="right")
        for method in table.methods:
            shown.add_row(method, *(interval_text(point.methods[method][shots]) for point in table.points))
        shown.add_section()
        counts = [(len(point.runs), next(iter(point.methods.values()))[shots]) for point in table.points]
        shown.add_row("runs", *(f"{runs}, over {found.count} {found.over}" for runs, found in counts), style="dim")
        parts.append(shown)
    if table.dataset.notice:
        parts.append(plain(table.dataset.notice, style="bold yellow"))
    return Group(*parts)


def _methods(results: Results) -> RenderableType:
    table = titled(f"{results.dataset.name}, profile {results.profile}, seed {results.seed}: accuracy, % ({INTERVALS})")
    table.add_column("method")
    for shots in results.shots:
        table.add_column(f"{shots} shots", justify="right", no_wrap=True)
        table.add_column("tasks", justify="right")
    for method, by_shots in results.methods.items():
        if name_and_change(method)[1]:
            continue  # stands in the table of sizes
        cells = [
            cell
            for shots in results.shots
            for cell in (intervals_text(by_shots.get(shots)), str(by_shots[shots].tasks) if shots in by_shots else "–")
        ]
        table.add_row(method, *cells, style="bold" if method == DEFAULT else "")
    for label, figures in results.paper.novel.items() if results.paper else ():
        cells = [
            cell
            for shots in results.shots
            for cell in ("{:.1f} ± {:.1f}".format(*figures[shots]) if shots in figures else "–", "5")
        ]
        table.add_row(label, *cells, style="dim")
    return table


def _sizes(results: Results) -> Iterator[RenderableType]:
    """Accuracy against weights, if the learngene has smaller sizes."""
    rows = size_rows(results)
    if not rows:
        return
    table = titled("sizes of one learngene (bytes: in the report)")
    table.add_column("method, size", no_wrap=True)
    for name in ("weights", *(f"{shots} shots" for shots in results.shots)):
        table.add_column(name, justify="right", no_wrap=True)
    for number, row in enumerate(rows):
        if not number or row.method != rows[number - 1].method:
            table.add_section()
            table.add_row(row.method, style="bold" if row.method == DEFAULT else "")
        cells = [intervals_text(row.by_shots.get(shots)) for shots in results.shots]
        table.add_row(f"  {row.facts.size}", f"{row.facts.parameters:,}", *cells)
    yield table


def _grid(results: Results) -> Iterator[RenderableType]:
    """How much methods depend on learning rate and weight decay, if they were scored with several."""
    rows = grid_rows(results)
    if not rows:
        return
    table = titled("mean accuracy, %, over learning rates and weight decays")
    table.add_column("method")
    for name in ("shots", "settings", "worst", "best", "standard deviation"):
        table.add_column(name, justify="right")
    for row in rows:
        numbers = (row.worst[0], row.best[0], row.spread)
        table.add_row(row.method, str(row.shots), str(row.points), *map(number_text, numbers))
    yield table


def _paired(results: Results) -> RenderableType:
    table = titled("on the same tasks; told apart where the wider interval is clear of zero")
    table.add_column("difference")
    table.add_column("shots", justify="right")
    table.add_column("points", justify="right", no_wrap=True)
    table.add_column("the first is")
    for group in pairs(results.methods).values():
        table.add_section()
        for first, second in group:
            for shots, found in results.paired.get(pair_key(first, second), {}).items():
                table.add_row(pair_label(first, second), str(shots), intervals_text(found, sign=True), verdict(found))
    return table


def _cycles(results: Results) -> RenderableType:
    """Accuracies before and after each cycle, by score and strategy."""
    table = titled("open world: accuracy, %, before → after the new classes are learned")
    table.add_column("score, strategy")
    columns = ("cycle", "unknown set (truly)", "found + given", "new", "open-world classes", "among them alone")
    for name in (*columns, "earlier ones", "base classes"):
        table.add_column(name, justify="right")
    for number, kind in enumerate(results.collective.open_world.every):
        own = number == 0
        for cycle in kind.cycles:
            table.add_row(
                kind_label(kind.score, kind.strategy) + (" (this run)" if own else ""),
                str(cycle.cycle + 1),
                f"{cycle.unknown_set} ({'–' if cycle.truly_unknown is None else cycle.truly_unknown})",
                f"{cycle.found} + {cycle.given}",
                str(len(cycle.classes)),
                change_text(cycle.open_accuracy_before, cycle.open_accuracy_after),
                change_text(cycle.open_only_accuracy_before, cycle.open_only_accuracy_after),
                change_text(cycle.old_open_accuracy_before, cycle.old_open_accuracy_after),
                f"{change_text(cycle.base_accuracy_before, cycle.base_accuracy_after)} "
                f"({number_text(cycle.base_accuracy_after - cycle.base_accuracy_before, sign=True)})",
                style="bold" if own else "",
            )
        if kind.stopped:
            table.add_row(f"{kind_label(kind.score, kind.strategy)} stopped: {kind.stopped}")
    guessed = results.collective.open_world.by_chance
    if guessed is not None:
        known, alone = map(number_text, guessed)
        table.add_row("by chance, in the end", "–", "–", "–", "–", known, alone, "–", known, style="dim")
    if results.paper is not None:
        reached = "{:.1f} ± {:.1f}".format(*results.paper.open_world)
        # It does not say among how many classes, so its figure stands below both of ours.
        table.add_row("the paper, Table 2", "–", "–", "–", "–", reached, reached, "–", "–", style="dim")
    return table


def _stream(results: Results) -> Iterator[RenderableType]:
    """How well each score recognised unknown images in this run's own cycles."""
    if not results.collective.open_world.measured:
        yield plain("Nobody knows the truth about this stream, so recognition was not measured.")
        return
    table = titled("recognising unknown images, %, before → after (FPR95: less is better)")
    table.add_column("cycle", justify="right")
    table.add_column("score", overflow="fold")
    for metric in METRICS:
        table.add_column(METRIC_NAMES[metric], justify="right")
    for cycle in results.collective.open_world.cycles:
        table.add_section()
        for score, before in (cycle.before or {}).items():
            after = (cycle.after or {}).get(score)
            cells = [change_text(metric_of(before, metric), metric_of(after, metric)) for metric in METRICS]
            table.add_row(str(cycle.cycle + 1), score, *cells, style="bold" if score == cycle.score else "")
        for name, levels in CHANCE_ROWS.items():
            sides = [chance_of(cycle.before), chance_of(cycle.after)]
            both = [[level_of(side, levels[m]) if m in levels else None for side in sides] for m in METRICS]
            table.add_row(str(cycle.cycle + 1), name, *(change_text(*pair) for pair in both), style="dim")
    yield table


def _collective_over_runs(summary: Summary) -> RenderableType:
    table = titled("the collective, % of held-out images right")
    table.add_column("")
    _run_columns(table, summary)
    names = {
        "base_accuracy": "base classes, at the end",
        "old_accuracy": "older classes, after the last task",
        "condensed_accuracy": "base classes, condensed",
    }
    for name, found in summary.collective.items():
        table.add_row(names.get(name, f"base classes, {name.removeprefix('compact_accuracy.')}"), *_over(found))
    for kind in summary.open_world:
        table.add_section()
        for cycle in kind.cycles:
            label = f"{kind_label(kind.score, kind.strategy)}, cycle {cycle.cycle + 1}: "
            for name, what in (
                ("open_accuracy_before", "open-world classes before"),
                ("open_accuracy_after", "open-world classes after"),
                ("open_only_accuracy_after", "open-world classes after, among them alone"),
                ("old_open_accuracy_before", "earlier named classes before"),
                ("old_open_accuracy_after", "earlier named classes after"),
                ("base_accuracy_before", "base classes before"),
                ("base_accuracy_after", "base classes after"),
                ("forgotten", "base classes forgotten, points"),
            ):
                if name in cycle.figures:
                    table.add_row(label + what, *_over(cycle.figures[name]), style="bold" if kind.own else "")
    return table


def _stream_over_runs(own: ComparisonOverRuns) -> RenderableType:
    """Every score's metrics in the runs' own cycles; the values of each run stand in ``summary.json``."""
    table = titled("recognising unknown images, % (mean ± 95 % over training seeds; FPR95: less is better)")
    for name in ("cycle", "score", "new classes"):
        table.add_column(name, overflow="fold")
    for metric in METRICS:
        table.add_column(METRIC_NAMES[metric], justify="right")
    for cycle in own.cycles:
        table.add_section()
        for score, found in cycle.stream.items():
            for when, side in (("before", found.before), ("after", found.after)):
                cells = [interval_text(side.get(metric)) for metric in METRICS]
                style = "bold" if score == own.score else ""
                table.add_row(str(cycle.cycle + 1), score, when, *cells, style=style)
        for name, levels in CHANCE_ROWS.items():
            for when, chance in (("before", cycle.chance.before), ("after", cycle.chance.after)):
                cells = [interval_text(chance.get(levels[m]) if m in levels else None) for m in METRICS]
                table.add_row(str(cycle.cycle + 1), name, when, *cells, style="dim")
    return table


def titled(title: str) -> PlainTable:
    """An empty table in the style of all tables of results."""
    return PlainTable(title=plain(title), box=box.SIMPLE_HEAD, title_justify="left", title_style="bold")


def _run_columns(table: PlainTable, summary: Summary) -> None:
    for run in summary.runs:
        table.add_column(f"seed {run.seed}", justify="right")
    table.add_column("mean", justify="right", no_wrap=True)


def _over(found: OverRuns, sign: bool = False) -> list[str]:
    text = interval_text(found, sign)
    if found.ci95_classes is not None:
        text += f" (± {number_text(found.ci95_classes)})"
    return [*(number_text(value, sign) for value in found.per_run), text]
