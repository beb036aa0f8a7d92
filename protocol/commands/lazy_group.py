"""A group of commands whose modules are loaded when they are called: listing them costs no import."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import click
import typer.core
import typer.main

from protocol.errors import InputError

#: The extra that brings each module that a plain installation lacks.
EXTRA_OF: Mapping[str, str] = {
    **dict.fromkeys(("ray", "scipy", "matplotlib", "jinja2"), "sim"),
    **dict.fromkeys(("onnx", "onnxscript", "onnxruntime"), "onnx"),
    **dict.fromkeys(("opacus", "dp_accounting"), "privacy"),
    "sklearn": "annotate",
}


def cure(extra: str) -> str:
    """What to type where an extra is missing."""
    return f"pip install 'learngene[{extra}]'"


@dataclass(frozen=True)
class CommandEntry:
    """One command of a lazy group.

    Attributes:
        name: as a user types it.
        source: ``module:function`` that adds it, and perhaps others, to an application.
        summary: its line in the list of commands; the command's own help says more.
        arguments: further arguments of the function, besides the application.
        needs: modules of an extra that it needs.
        extra: the extra's name.
    """

    name: str
    source: str
    summary: str
    arguments: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    extra: str = ""

    @property
    def missing(self) -> str | None:
        """The first module that it needs and this installation lacks."""
        return next((module for module in self.needs if not _is_there(module)), None)


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False


class LazyCommand(click.Command):
    """Placeholder for a command that is loaded when it, or its help, is called."""

    def __init__(self, entry: CommandEntry) -> None:
        super().__init__(entry.name, short_help=entry.summary)
        self.entry = entry

    def get_short_help_str(self, limit: int = 45) -> str:
        """Its line in the list of commands; only this looks for the extra."""
        return (
            super().get_short_help_str(limit)
            if self.entry.missing is None
            else f"Not installed: {cure(self.entry.extra)}"
        )

    @cached_property
    def loaded(self) -> click.Command:
        """The command itself.

        Raises:
            InputError: this installation lacks an extra that it needs.
        """
        entry = self.entry
        if (module := entry.missing) is not None:
            raise InputError(f"{entry.name} needs the module {module}; install it with: {cure(entry.extra)}")
        module, function = entry.source.split(":")
        app = typer.Typer(rich_markup_mode=None)
        # With a callback, an application of one command is a group too.
        app.callback()(lambda: None)
        getattr(import_module(module), function)(app, *entry.arguments)
        group = typer.main.get_command(app)
        assert isinstance(group, click.Group)
        command = group.commands[entry.name]
        _refuse_empty_paths(command)
        return command

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,  # noqa: ANN401 - Click's own signature
    ) -> click.Context:
        """The loaded command's own."""
        return self.loaded.make_context(info_name, args, parent, **extra)


class _GivenPath(click.ParamType):  # type: ignore[type-arg]
    """A path that is not empty. An empty one, a shell's variable without a value, would mean the working folder."""

    def __init__(self, kind: "click.ParamType[Any]") -> None:
        self.kind, self.name = kind, kind.name

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:  # noqa: ANN401
        if value == "":
            self.fail("it is empty; give a path", param, ctx)
        return self.kind.convert(value, param, ctx)


def _refuse_empty_paths(command: click.Command) -> None:
    for param in command.params:
        if isinstance(param.type, click.Path):
            param.type = _GivenPath(param.type)
    if isinstance(command, click.Group):
        for below in command.commands.values():
            _refuse_empty_paths(below)


def lazy_group(entries: Sequence[CommandEntry]) -> type[typer.core.TyperGroup]:
    """The class of a group that holds these commands in their order, before those that are added in other ways. Of two
    commands with one name the first counts. A command that lacks an extra is listed with what to install, and says
    the same if it is called.
    """

    class Group(typer.core.TyperGroup):
        def __init__(self, **attributes: Any) -> None:  # noqa: ANN401
            super().__init__(**attributes)
            lazy: dict[str, click.Command] = {}
            for entry in entries:
                lazy.setdefault(entry.name, LazyCommand(entry))
            self.commands = lazy | dict(self.commands)

    return Group
