"""The command ``clock`` of both kinds of node: show the latest time that a node's checks have used, and make the node
forget it.
"""

from pathlib import Path
from typing import Annotated

import typer

from protocol.encoding.calendar import moment, unix_seconds
from protocol.exchange.collective_ledger import CollectiveLedger
from protocol.exchange.individual_ledger import IndividualLedger
from protocol.files import state_files
from protocol.messages.payloads import SKEW
from protocol.node.endpoints import check_ledger, node_of
from protocol.output import say
from protocol.trust.role import Role

_Config = Annotated[Path, typer.Option(help="Configuration file of the node.")]
_Forget = Annotated[
    bool, typer.Option("--forget", help="Forget it, and count from this machine's clock: that one is right now.")
]


def register(app: typer.Typer, role: Role) -> None:
    """Add the command to the application of one kind of node."""

    @app.command(help=_HELP.format(node=f"{role}-node", role=role))
    def clock(config: _Config, forget: _Forget = False) -> None:
        show(config, role, now=unix_seconds(), forget=forget)


_HELP = """Show this machine's clock and the latest time that the node has decided by; --forget: forget the latter.

    \b
    Examples:
      {node} clock --config ~/{role}/config.toml
      {node} clock --config ~/{role}/config.toml --forget

    What has expired once stays so, also where the clock is set back. Where the clock was once wrong and far ahead, all
    that comes counts as expired: set the clock right, end the node, and let it forget.
    """


def show(config: Path, role: Role, *, now: int, forget: bool) -> None:
    """Show both times, and forget the remembered one if asked to. ``now``: unix seconds.

    Raises:
        InputError: the configuration is wrong, or the node has never run.
        RunFailedError: the node must forget its time, but is running. StorageFailedError: its ledger cannot be opened
            or written.
    """
    node = node_of(config, role)
    check_ledger(node)
    kind = CollectiveLedger if role == "collective" else IndividualLedger

    def tell() -> None:
        ledger = kind(node.state)
        try:
            latest = ledger.latest_time()
            say(f"clock       {moment(now)}")
            say(f"remembered  {'nothing yet' if latest is None else moment(latest)}")
            behind = latest is not None and latest - now > SKEW
            if forget:
                ledger.set_time(now)
                say("forgotten: the node counts from the clock")
            elif behind:
                say("The clock stands behind it: that time counts, and what has expired by it stays so. Set the clock")
                say(f"right; where it was wrong before, end the node: {role}-node clock --config {config} --forget")
        finally:
            ledger.close()

    if forget:
        # A running node would go on with the time in its memory.
        with state_files.held(node.state):
            tell()
    else:
        tell()
