"""The end of every command: an error is one line on stderr, and the exit code says its kind."""

import contextlib
import errno
import logging
import os
import re
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from io import TextIOWrapper
from types import TracebackType
from typing import Annotated, Any, NoReturn

import click
import typer
import typer.core

from protocol.commands.lazy_group import EXTRA_OF, CommandEntry, cure, lazy_group
from protocol.encoding.log_format import traceback_lines
from protocol.errors import InputError, LearngeneError, StoppedError

logger = logging.getLogger(__name__)

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130
#: Errors of the disk, not of the path.
_OF_THE_DISK = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO})

# Our help is plain text; with rich installed, typer would write `\\[default: quick]` into it all the same.
typer.core.HAS_RICH = False


def make_app(help_text: str, commands: Sequence[CommandEntry] = ()) -> typer.Typer:
    """An application with ``--help``, ``--version`` and these commands, which are loaded when they are called.
    ``help_text`` may hold an indented example behind a line with ``\\b``, which keeps its line breaks."""
    app = typer.Typer(
        cls=lazy_group(commands),
        # Click has a version option of its own.
        suggest_commands=False,
        help=help_text,
        no_args_is_help=False,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    )

    @app.callback(invoke_without_command=True)
    def main(
        context: typer.Context,
        show_version: Annotated[
            bool, typer.Option("--version", help="Show the version and exit.", is_eager=True, callback=_show_version)
        ] = False,
    ) -> None:
        if context.invoked_subcommand is None:
            typer.echo(context.get_help())
            raise typer.Exit

    return app


def run_app(app: typer.Typer, arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a command and exit: 0; 2 after wrong input; 1 if a run failed or something was refused; 130 after Ctrl-C, 143
    after a SIGTERM that a command handles. ``arguments``: instead of the process's own.
    """
    sys.excepthook = _show_crash
    # No file of a command or its libraries may be writable by other users, whatever the shell's umask.
    os.umask(os.umask(0o077) | 0o022)
    # Where one of the three was closed, the next file that is opened would take its place, and our lines go into it.
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    # A character that the terminal's encoding lacks is shown by its number, instead of ending the command.
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    sys.exit(exit_code(lambda: typer.main.get_command(app).main(arguments, standalone_mode=False)))


def exit_code(command: Callable[[], Any]) -> int:
    """Run ``command`` and turn its errors into one line each and a code."""
    try:
        result = command()
        if sys.stdout is not None:
            sys.stdout.flush()
    except click.UsageError as error:
        hint = f"see: {error.ctx.command_path} --help" if error.ctx else "see --help"
        return _say(f"{_one_line(error).rstrip('.')}; {hint}", EXIT_USAGE)
    except click.ClickException as error:
        return _say(_one_line(error), EXIT_FAILED)
    except InputError as error:
        return _say(str(error), EXIT_USAGE)
    except StoppedError as error:
        return _say(str(error), error.exit_code, mark="")
    except LearngeneError as error:
        return _say(str(error), EXIT_FAILED)
    except ModuleNotFoundError as error:
        # A part of a command may need an extra that the command itself does not.
        module = (error.name or "").partition(".")[0]
        if module not in EXTRA_OF:
            raise
        return _say(f"this needs the module {module}; install it with: {cure(EXTRA_OF[module])}", EXIT_USAGE)
    except (KeyboardInterrupt, click.Abort):
        result = EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of our output has closed it, as `| head` does.
        sys.stderr.close()
        return EXIT_FAILED
    except OSError as error:
        # A file error without a message of ours: a path from the user is missing, closed, or on a full disk.
        if not isinstance(error.filename, str | bytes):
            if error.errno not in _OF_THE_DISK:
                raise
            _give_up_output()
            reason = f"cannot write the output: {error.strerror or error}"
            return _say(f"{reason}; make room, or send it elsewhere", EXIT_FAILED)
        # The record goes into a node's log; in other commands there is no handler.
        logger.info("ended by an error of the system", exc_info=error)
        reason = f"{os.fsdecode(error.filename)}: {error.strerror or error}"
        if error.errno in _OF_THE_DISK:
            return _say(f"cannot write {reason}; make room, or choose another folder", EXIT_FAILED)
        return _say(f"cannot use {reason}; check the path, and who may read and write it", EXIT_USAGE)
    # Typer turns Ctrl-C into this code, without a message.
    if result == EXIT_INTERRUPTED:
        return _say("interrupted", EXIT_INTERRUPTED, mark="")
    # Not in standalone mode: `typer.Exit(code)` comes back as the code.
    return result if isinstance(result, int) else 0


def _give_up_output() -> None:
    """Keep Python from writing at its end what cannot be written, which would be a second error."""
    with contextlib.suppress(OSError, AttributeError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _one_line(error: click.ClickException) -> str:
    """Click breaks the lines of some messages."""
    return re.sub(r"\s*\n\s*", " ", error.format_message())


def _say(text: str, code: int, mark: str = "error: ") -> int:
    """Print an error's line; every error passes here."""
    # Imported here: the list of commands needs no rich.
    from protocol.output import say

    say(f"{mark}{text}", error=True)
    return code


def _show_crash(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Show a fault of ours as Python does, but safely: its text can hold a name from outside."""
    for line in traceback_lines(kind, error, trace):
        print(line, file=sys.stderr)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"learngene {version('learngene')}")
        raise typer.Exit
