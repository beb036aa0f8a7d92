"""What ``doctor`` prints, for a node and for a machine."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from protocol.commands.terminal import EXIT_FAILED
from protocol.output import add_row, print_table, say, say_json, table

if TYPE_CHECKING:
    from protocol.commands.doctor import Finding

GpuOption = Annotated[bool, typer.Option("--gpu", help="Compute on the GPU, under confinement.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def register(app: typer.Typer) -> None:
    """Add the command ``doctor`` for a machine without a node yet."""
    app.command()(doctor)


def doctor(gpu: GpuOption = False, as_json: JsonOption = False) -> None:
    """Say what this machine's operating system enforces for nodes and couriers; 0: a node would start here."""
    # It loads numpy, of which the commands beside it, and a node that starts, stay free.
    from protocol.commands.doctor import examine_machine

    show(examine_machine(gpu=gpu), as_json=as_json)


def show(findings: "Sequence[Finding]", *, as_json: bool) -> None:
    """Print findings, and exit with 1 where a node would not start."""
    from protocol.commands.doctor import starts

    would_start = starts(findings)
    if as_json:
        say_json({"starts": would_start, "findings": [asdict(finding) for finding in findings]}, indent=2)
    else:
        shown = table("what", "verdict", "found", "what to do")
        for finding in findings:
            add_row(shown, finding.subject, finding.verdict, finding.found, finding.advice)
        print_table(shown)
        say("a node would start" if would_start else "a node would not start")
    if not would_start:
        raise typer.Exit(EXIT_FAILED)
