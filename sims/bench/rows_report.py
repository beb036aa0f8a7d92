"""Measures the parts of a benchmark, prints their rows as one table, and writes them down."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from protocol.commands.progress_bar import progress_bar
from protocol.files.user_files import check_free, write_new
from protocol.learngene.side_by_side import usable_cores
from protocol.output import add_row, print_table, say, table
from sims.bench.machine import machine
from sims.bench.rows import Bench, Row, with_range

#: Takes repeats, a clock, an observer and what is particular to it.
Measure = Callable[..., list[Row]]


def measure_and_show(
    title: str, parts: Sequence[tuple[Measure, Mapping[str, object]]], repeats: int, json_file: Path | None
) -> None:
    """Measure everything, then say it.

    Args:
        title: of the table.
        parts: with what each is told besides.
        repeats: of everything.
        json_file: file to write everything measured to.

    Raises:
        InputError: the file is there already. RunFailedError: something could not be measured.
    """
    if json_file is not None:
        check_free(json_file)
    clock = time.perf_counter
    torch.set_num_threads(usable_cores())  # As a node does.
    with progress_bar(thread=False) as observe:
        rows = [row for measure, told in parts for row in measure(repeats, clock, observe, **told)]
        observe(0, 1, "measuring the limits of the machine")
        result = Bench(rows=tuple(rows), machine=machine(clock))
    numbers = ("ours", "other", "ratio")
    shown = table("", *numbers, "unit", "target", title=f"{title}, {repeats} repeats", right=numbers)
    for one in result.rows:
        sides = (f"{side.median:,.4g}" for side in (one.ours, one.other))
        add_row(shown, one.name, *sides, with_range(one.ratio), one.unit, one.target)
    print_table(shown)
    say("Medians; ratios are taken within each repeat, smallest and largest in brackets.")
    say(", ".join(f"{name} {value}" for name, value in result.machine.items()))
    if json_file is not None:
        write_new(json_file, result.model_dump_json(indent=2).encode("ascii") + b"\n", mode=0o644)
        say(f"{json_file}")
