"""Rows of a benchmark: ours beside another thing, as a ratio of the same run, and the limits of the machine."""

import hashlib
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict

from protocol.learngene.images import bfloat16_is_fast
from protocol.learngene.side_by_side import usable_cores
from protocol.node.events import Observer
from sims.bench.measurements import Range, ratio, spread

#: Seconds that go on steadily.
Clock = Callable[[], float]
#: Side of the matrices whose product is timed, and bytes that are copied and digested.
_SIDE, _BYTES = 1536, 64 << 20


class Row(BaseModel):
    """One comparison, each side measured in turn in every repeat.

    Attributes:
        name: what is compared with what.
        ours, other: in ``unit``.
        ratio: ours to the other, of each repeat.
        runs: repeats.
        target: what the ratio is to be, in words; empty where nothing was promised.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    ours: Range
    other: Range
    unit: str
    ratio: Range
    runs: int
    target: str = ""


class Bench(BaseModel):
    """The rows of a benchmark, and the machine that they belong to."""

    model_config = ConfigDict(frozen=True)

    format: int = 1
    rows: tuple[Row, ...]
    machine: dict[str, str | int | float]


def row(name: str, ours: Sequence[float], other: Sequence[float], unit: str, target: str = "") -> Row:
    """A row from what both sides gave in each repeat."""
    return Row(
        name=name,
        ours=spread(ours),
        other=spread(other),
        unit=unit,
        ratio=ratio(ours, other),
        runs=len(ours),
        target=target,
    )


@dataclass(frozen=True)
class Comparison:
    """Two things to measure in turn.

    Attributes:
        name: what is compared with what.
        ours, other: each measures once and says how much, in ``unit``.
        target: what the ratio of ours to the other is to be, in words.
    """

    name: str
    ours: Callable[[], float]
    other: Callable[[], float]
    unit: str
    target: str = ""


def compare(comparisons: Sequence[Comparison], repeats: int, observe: Observer) -> list[Row]:
    """Measure both sides of each comparison in turn, so many times."""
    rows = []
    for number, one in enumerate(comparisons):
        found: list[tuple[float, float]] = []
        for repeat in range(repeats):
            observe(number * repeats + repeat, len(comparisons) * repeats, one.name)
            found.append((one.ours(), one.other()))
        rows.append(row(one.name, [a for a, _ in found], [b for _, b in found], one.unit, one.target))
    return rows


def seconds_of(work: Callable[[], object], clock: Clock) -> float:
    """How long a piece of work takes once."""
    started = clock()
    work()
    return clock() - started


def machine(clock: Clock) -> dict[str, str | int | float]:
    """What the times belong to, with the limits of the machine: products of matrices (10^9 operations a second), a copy
    in memory and SHA-256 (10^6 bytes a second)."""
    cores = usable_cores()
    data = os.urandom(_BYTES)
    return {
        "processor": processor(),
        "cores": cores,
        "python": platform.python_version(),
        "torch": version("torch"),
        "bfloat16 in hardware": int(bfloat16_is_fast(torch.device("cpu"))),
        **{
            f"GEMM {str(dtype).removeprefix('torch.')}, {threads} thread{'s' * (threads > 1)}": round(
                gemm_rate(dtype, threads, clock) / 1e9, 1
            )
            for dtype in (torch.float32, torch.bfloat16)
            for threads in dict.fromkeys((1, cores))
        },
        "memory copy": round(_BYTES / best(lambda: bytearray(data), clock) / 1e6),
        "SHA-256": round(_BYTES / best(lambda: hashlib.sha256(data).digest(), clock) / 1e6),
    }


def gemm_rate(dtype: torch.dtype, threads: int, clock: Clock) -> float:
    """Operations a second of a product of square matrices, with so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        a, b = (torch.randn(_SIDE, _SIDE).to(dtype) for _ in range(2))
        return 2 * _SIDE**3 / best(lambda: a @ b, clock)
    finally:
        torch.set_num_threads(before)


def best(work: Callable[[], object], clock: Clock = time.perf_counter, repeats: int = 5) -> float:
    """Seconds of the quickest of some repeats."""
    return min([seconds_of(work, clock) for _ in range(repeats + 1)][1:])


def processor() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    found = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return found or platform.processor() or platform.machine()
