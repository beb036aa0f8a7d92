"""The commands ``learngene audit``: show what crossed a site's boundary, and verify that the log is whole."""

import os
from pathlib import Path
from typing import Annotated

import typer

from protocol.encoding.calendar import moment
from protocol.errors import InputError
from protocol.exchange.audit import ALLOWED, NO_LINE, broken_log, read_chain, summarise
from protocol.output import add_row, print_table, say, say_json, table
from protocol.visible_text import visible_name

_Log = Annotated[
    Path, typer.Argument(help="Log of crossings, or the state folder of a node that holds one (crossings.jsonl).")
]
_Json = Annotated[bool, typer.Option("--json", help="Machine-readable, to standard output.")]
_NAME = "crossings.jsonl"


def register(app: typer.Typer) -> None:
    """Add the commands to an application."""
    audit = typer.Typer(help="What crossed a site's border: show and verify the log.", no_args_is_help=False)
    audit.command()(show)
    audit.command()(verify)
    app.add_typer(audit, name="audit")


def show(
    log: _Log,
    refused: Annotated[bool, typer.Option("--refused", help="Only what was refused.")] = False,
    json_output: _Json = False,
) -> None:
    """List everything that left or entered: time, direction, kind, bytes, digest, decision.

    \b
    Example:
      learngene audit show individual/state
    """
    chain = read_chain(_path(log))
    crossings = [crossing for crossing in chain.crossings if not refused or crossing.decision != ALLOWED]
    if json_output:
        lines = [crossing.model_dump(by_alias=True) for crossing in crossings]
        say_json({"crossings": lines, "head": chain.head}, indent=2)
        return
    shown = table("number", "time", "from", "to", "kind", "bytes", "sha256", "decision", right=("number", "bytes"))
    for crossing in crossings:
        size = f"{crossing.bytes:,}"
        # The log may come from another site, so its text is made safe to show.
        who, what = (crossing.sender, crossing.receiver, crossing.kind), (crossing.digest[:16], crossing.decision)
        at = moment(crossing.time)
        add_row(shown, str(crossing.number), at, *map(visible_name, who), size, *map(visible_name, what))
    print_table(shown)
    _say_head(len(chain.crossings), sum(crossing.decision != ALLOWED for crossing in chain.crossings), chain.head)


def verify(
    log: _Log,
    head: Annotated[
        str, typer.Option(help="Digest of a line that `show` or `verify` printed earlier: the log must still hold it.")
    ] = "",
    json_output: _Json = False,
) -> None:
    """Verify that no line was changed, put in, moved or taken out.

    \b
    Examples:
      learngene audit verify individual/state
      learngene audit verify individual/state --head 3b5d...

    Lines cut off at the end show only with --head: note the head now and then, outside this machine.
    """
    asked = head.lower() or NO_LINE
    found = summarise(_path(log), asked)
    if not found.holds:
        raise broken_log("the log does not hold the given line any more: its end was cut off, or it is another")
    if json_output:
        say_json({"lines": found.lines, "head": found.head})
        return
    _say_head(found.lines, found.refused, found.head)


def _path(log: Path) -> Path:
    path = log / _NAME if log.is_dir() else log
    if not os.path.lexists(path):
        raise InputError(f"there is no log of crossings {visible_name(path)}")
    return path


def _say_head(lines: int, refused: int, head: str) -> None:
    say(f"{lines} crossings, {refused} of them refused; the chain is whole")
    say(f"head {head}")
