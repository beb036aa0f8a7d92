"""The bar that commands show while they work."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from protocol.events import Observer


@contextmanager
def progress_bar(*, say: bool = True, thread: bool = True) -> Iterator[Observer]:
    """A bar on standard error where that is a terminal; otherwise a line for each kind of work, if ``say``.

    Args:
        thread: draw the bar from a thread of its own; else whenever the observer is told.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        said: set[str] = set()

        def write(done: int, total: int, text: str) -> None:
            if say and text not in said:
                said.add(text)
                print(text, file=sys.stderr)

        yield write
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    with Progress(*columns, console=console, transient=True, auto_refresh=thread) as bar:
        task = bar.add_task("", total=None)

        def show(done: int, total: int, text: str) -> None:
            bar.update(task, completed=done, total=total, description=text, refresh=not thread)

        yield show
