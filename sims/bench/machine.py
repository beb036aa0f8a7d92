"""The machine that a benchmark ran on, and its limits: products of matrices, copies, digests."""

import hashlib
import os
import platform
import time
from collections.abc import Callable
from importlib.metadata import version

import torch

from protocol.learngene.images import bfloat16_is_fast
from protocol.learngene.side_by_side import usable_cores
from sims.bench.processor import processor
from sims.bench.rows import Clock, seconds_of

#: Side of the matrices whose product is timed, and bytes that are copied and digested.
_SIDE, _BYTES = 1536, 64 << 20


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
