"""The command ``doctor``, for a machine and for a node, and how its findings are printed."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from protocol.commands.doctor_findings import Finding, starts
from protocol.commands.doctor_machine import examine_machine
from protocol.commands.doctor_node import examine_node
from protocol.commands.terminal import EXIT_FAILED
from protocol.encoding.calendar import unix_seconds
from protocol.output import add_row, print_table, say, say_json, table
from protocol.trust.role import Role

_Gpu = Annotated[bool, typer.Option("--gpu", help="Compute on the GPU, under confinement.")]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def register(app: typer.Typer) -> None:
    """Add the command for a machine that has no node yet."""

    @app.command()
    def doctor(gpu: _Gpu = False, as_json: _Json = False) -> None:
        """Say what this machine's operating system enforces for nodes and couriers; 0: a node would start here."""
        _show(examine_machine(gpu=gpu), as_json=as_json)


def register_node(app: typer.Typer, role: Role, model: str) -> None:
    """Add the command to the application of one kind of node; ``model``: as in :func:`examine_node`."""

    @app.command()
    def doctor(
        config: Annotated[Path, typer.Option(help="Configuration file of the node.")],
        gpu: _Gpu = False,
        as_json: _Json = False,
    ) -> None:
        """Say what holds for this node on this kernel, and what is wrong with its files; 0: it would start."""
        _show(examine_node(config, role, model, gpu=gpu, now=unix_seconds()), as_json=as_json)


def _show(findings: Sequence[Finding], *, as_json: bool) -> None:
    """Print findings, and exit with 1 if a node would not start."""
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
