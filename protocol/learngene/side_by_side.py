"""Independent work side by side, each piece on one core: the coarse way to use several cores.

Small convolutions gain little from a second thread inside an operation, and on a busy machine such threads wait for
each other. So what is independent (groups of target tasks, parts of a batch) runs side by side, and each operation of
it in one thread. How many pieces run at once changes no result.
"""

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def usable_cores() -> int:
    """Cores that this process may use: those that it is bound to, and no more than its control group's quota. Where the
    system knows no binding, all of the machine."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(bound, _quota()))


def _quota() -> int:
    """Cores that the control group grants (cgroup v2, cpu.max); where none are said, more than any machine has."""
    try:
        with open("/sys/fs/cgroup/cpu.max", encoding="ascii") as file:
            granted, period = file.read(100).split()
        return int(granted) // int(period)
    except (OSError, ValueError):
        return 1 << 16


class _Workers:
    """The threads of this process. ``inside``: whether the thread that asks is one of them."""

    def __init__(self) -> None:
        self._count: int | None = None
        self.inside = threading.local()
        self._pool: ThreadPoolExecutor | None = None
        # A forked child has none of the threads, and would wait for them forever.
        os.register_at_fork(after_in_child=self._forget)

    @property
    def count(self) -> int:
        if self._count is None:
            self._count = usable_cores()
        return self._count

    def resize(self, count: int) -> None:
        if self._pool is not None:
            self._pool.shutdown()
        self._count, self._pool = count, None

    def _forget(self) -> None:
        self.inside, self._pool = threading.local(), None

    @property
    def pool(self) -> ThreadPoolExecutor:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self.count, "side-by-side", initializer=self._begin)
        return self._pool

    def _begin(self) -> None:
        self.inside.yes = True
        torch.set_num_threads(1)


_workers = _Workers()


def worker_count() -> int:
    """How many pieces of work run at once."""
    return _workers.count


def set_worker_count(count: int) -> None:
    """Let so many pieces of work run at once, from now on; at first it is as many as there are usable cores."""
    _workers.resize(count)


def side_by_side(work: Callable[[_Item], _Result], items: Iterable[_Item]) -> list[_Result]:
    """Do ``work`` on each item; the results are in the order of the items, and the same however many run at once.

    A piece of work begins as a new thread does: gradients are recorded, and no autocast is on. Work that is asked for
    from within another piece is done there. All pieces have ended when an error of one is raised: the first in their
    order.
    """
    listed = list(items)
    with _threads_as_before():
        if _workers.count == 1 or len(listed) == 1 or getattr(_workers.inside, "yes", False):
            torch.set_num_threads(1)
            with torch.enable_grad(), torch.autocast("cpu", enabled=False):
                return [work(item) for item in listed]
        futures = [_workers.pool.submit(work, item) for item in listed]
        errors = [future.exception() for future in futures]
    for error in errors:
        if error is not None:
            raise error
    return [future.result() for future in futures]


@contextmanager
def _threads_as_before() -> Iterator[None]:
    """Give the calling thread, and those that begin later, the number of threads that it had inside an operation.

    A number that a worker sets for itself would be the one that threads begin with from then on.
    """
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)
