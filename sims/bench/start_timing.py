"""Times what a user waits for before any work is done: the help of every command, and the images of a folder."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import click
import numpy as np
import typer
from PIL import Image

import collective_node.cli
import individual_node.cli
import protocol.commands.learngene
from protocol.commands.lazy_group import LazyCommand
from protocol.errors import RunFailedError
from protocol.node.events import Observer
from protocol.pictures.reader import PictureReader
from sims.bench.rows import Clock, Comparison, Row, compare, seconds_of
from sims.data.folder_tree import read_images
from sims.data.picture_cache import keep, kept, listing_digest

PROGRAMS: dict[str, tuple[str, Callable[[], typer.Typer]]] = {
    "learngene": ("protocol.commands.learngene", protocol.commands.learngene.make),
    "collective-node": ("collective_node", lambda: collective_node.cli.app),
    "individual-node": ("individual_node", lambda: individual_node.cli.app),
}
_SIZE = 32


def measure(repeats: int, clock: Clock, observe: Observer, pictures: int = 4000) -> list[Row]:
    """The rows of ``learngene bench start``: of each program, the command whose help takes longest; and a folder tree.

    Args:
        repeats: of everything, each side in turn.
        observe: progress.
        pictures: in the folder.
    """
    nothing = partial(_run, ["-c", "pass"], clock)
    helps = [
        Comparison(
            " ".join((program, *words, "--help, beside python -c pass")),
            partial(_run, ["-m", module, *words, "--help"], clock),
            nothing,
            "s",
            "at most 15",
        )
        for program, (module, make) in PROGRAMS.items()
        for words in _commands(typer.main.get_command(make()))
    ]
    rows = compare(helps, repeats, observe)
    slowest = [
        max((row for row in rows if row.name.split()[0] == program), key=lambda row: row.ratio.median)
        for program in PROGRAMS
    ]
    with tempfile.TemporaryDirectory(prefix="learngene-bench-") as folder:
        files = _pictures(Path(folder), pictures)
        cache = Path(folder) / "decoded"
        reading = Comparison(
            f"{pictures:,} pictures of a folder for the second time, beside the first",
            lambda: seconds_of(lambda: _again(Path(folder), files, cache), clock),
            lambda: seconds_of(lambda: _first(Path(folder), files, cache), clock),
            "s",
            "at most 0.1",
        )
        _first(Path(folder), files, cache)
        return [*slowest, *compare([reading], repeats, observe)]


def _commands(command: click.Command, *words: str) -> Iterator[tuple[str, ...]]:
    """The words of every command beneath one, and its own."""
    yield words
    if isinstance(command, LazyCommand):
        command = command.loaded
    if isinstance(command, click.Group):
        for name, below in command.commands.items():
            yield from _commands(below, *words, name)


def _run(arguments: list[str], clock: Clock) -> float:
    """Seconds of a Python process with these arguments.

    Raises:
        RunFailedError: it failed.
    """
    command = [sys.executable, *arguments]
    started = clock()
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    taken = clock() - started
    if done.returncode != 0:
        raise RunFailedError(f"{' '.join(arguments)} ended with code {done.returncode}: {done.stderr.strip()[-200:]}")
    return taken


def _pictures(folder: Path, count: int) -> list[str]:
    rng = np.random.default_rng(0)
    files = []
    for number in range(count):
        path = folder / "train" / f"{number % 100:02d}" / f"{number:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (_SIZE, _SIZE, 3), dtype=np.uint8)).save(path)
        files.append(os.fspath(path))
    return files


def _first(root: Path, files: list[str], cache: Path) -> None:
    digest = listing_digest(root, files, _SIZE)
    with PictureReader() as reader:
        images = read_images(files, _SIZE, reader)
    keep(cache, digest, images)


def _again(root: Path, files: list[str], cache: Path) -> None:
    if kept(cache, listing_digest(root, files, _SIZE), len(files), _SIZE) is None:
        raise RunFailedError(f"the images were not kept in {cache}")
