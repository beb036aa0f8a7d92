"""The bar that commands show while they work."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, Progress, TextColumn

from protocol.node.events import Observer
from protocol.output import console, redraws, say
from protocol.visible_text import visible_line


@contextmanager
def progress_bar(*, plain: bool = True, thread: bool = True) -> Iterator[Observer]:
    """A bar on standard error if that is a terminal; otherwise a line for each kind of work, if ``plain``.

    Args:
        thread: draw the bar from a thread of its own; otherwise at each call of the observer.
    """
    shown_on = console(error=True)
    if not redraws(shown_on):
        said: set[str] = set()

        def write(done: int, total: int, text: str) -> None:
            if plain and text not in said:
                said.add(text)
                say(text, error=True)

        yield write
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}", markup=False),
    )
    with Progress(*columns, console=shown_on, transient=True, auto_refresh=thread) as bar:
        task = bar.add_task("", total=None)

        def show(done: int, total: int, text: str) -> None:
            bar.update(task, completed=done, total=total, description=visible_line(text), refresh=not thread)

        yield show
