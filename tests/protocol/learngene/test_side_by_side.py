"""Independent work side by side: its results and errors, in the order of the items, and how many run at once."""

import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest
import torch

from protocol.learngene.side_by_side import set_worker_count, side_by_side, usable_cores, worker_count


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    before = worker_count()
    yield
    set_worker_count(before)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_results_are_in_the_order_of_the_items(count: int) -> None:
    set_worker_count(count)

    def slow_first(item: int) -> int:
        time.sleep(0.01 * (5 - item))
        return item * item

    assert side_by_side(slow_first, range(5)) == [0, 1, 4, 9, 16]
    assert side_by_side(slow_first, []) == []


def test_so_many_run_at_once() -> None:
    """Each waits for the other: alone none would ever end."""
    set_worker_count(2)
    together = threading.Barrier(2, timeout=30)
    assert side_by_side(lambda _: together.wait() >= 0, range(2)) == [True, True]


@pytest.mark.parametrize("count", [1, 2])
def test_the_first_error_in_order_is_raised_when_all_have_ended(count: int) -> None:
    set_worker_count(count)
    ended: list[int] = []

    def work(item: int) -> None:
        if item == 1:
            time.sleep(0.05)
            raise KeyError(item)
        if item == 2:
            raise ValueError(item)
        time.sleep(0.1)
        ended.append(item)

    with pytest.raises(KeyError):
        side_by_side(work, [0, 1, 2])
    assert ended == [0]


@pytest.mark.parametrize("count", [1, 2])
def test_a_piece_begins_as_a_new_thread_does(count: int) -> None:
    set_worker_count(count)

    def look(_: int) -> tuple[int, bool, bool]:
        return torch.get_num_threads(), torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with torch.no_grad(), torch.autocast("cpu"):
            assert side_by_side(look, range(2)) == [(1, True, False)] * 2
            assert not torch.is_grad_enabled()
        assert torch.get_num_threads() == 2
        # So has a thread that begins after it: a node's next job, for one.
        later: list[int] = []
        thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        assert later == [2]
    finally:
        torch.set_num_threads(before)


def test_work_within_work_is_done_there() -> None:
    set_worker_count(2)

    def outer(item: int) -> list[str]:
        return side_by_side(lambda _: threading.current_thread().name, range(3))

    for names in side_by_side(outer, range(4)):
        assert len(set(names)) == 1


def test_a_forked_child_starts_threads_of_its_own() -> None:
    set_worker_count(2)
    assert side_by_side(lambda item: item, range(2)) == [0, 1]
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        os._exit(sum(side_by_side(lambda item: item, range(3))))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity here")
def test_cores_are_those_that_the_process_is_bound_to() -> None:
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert usable_cores() == 1
    finally:
        os.sched_setaffinity(0, before)
    assert 1 <= usable_cores() <= len(before)
