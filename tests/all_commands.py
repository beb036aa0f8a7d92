"""Every command of a program, each loaded, by the words that call it."""

from collections.abc import Iterator

import click

from protocol.commands.lazy_group import LazyCommand


def commands(command: click.Command, *words: str) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """All commands beneath one, by the words that call them."""
    if isinstance(command, LazyCommand):
        command = command.loaded
    if not isinstance(command, click.Group):
        yield words, command
        return
    for name, below in command.commands.items():
        yield from commands(below, *words, name)
