"""The command ``learngene boundary``: it sets up both parties on this machine, attacks them, and reports the
outcome.
"""

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Annotated, get_args

import typer

from protocol.errors import InputError, RunFailedError
from protocol.files.user_files import check_free, expanded, write_new
from protocol.node import confine
from protocol.output import print_table, say, table
from protocol.transport.simulation_paths import short_temporary_folder
from sims.boundary.acts.expectation import Expected
from sims.boundary.attempt import Area, Attack, Attempt, make
from sims.boundary.outcome import TITLES, LeftOut, Outcome, tables


def register(app: typer.Typer) -> None:
    """Add the command ``boundary`` to ``app``."""
    app.command("boundary")(boundary)


def boundary(
    json: Annotated[Path | None, typer.Option("--json", help="Write everything to this new file too.")] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(help=f"One area; may be repeated: {', '.join(get_args(Area))}.", show_default="all"),
    ] = None,
    list_only: Annotated[
        bool, typer.Option("--list", help="Set everything up and list the attacks, and make none.")
    ] = False,
) -> None:
    """Attack both parties on this machine, and show what an unprotected control did and what happened here.

    Exit code 0: nothing escaped. What the operating system does not enforce is listed apart, and is not counted as
    stopped. 1: something escaped; or an attempt failed in another way than was expected, or its control failed, so that
    it shows nothing; or this machine lacks what every one of the attacks needs.

    Example:

      learngene boundary --json boundary.json
    """
    areas = _areas(only or [])
    if list_only and json is not None:
        raise InputError("--list makes no attack, and has nothing to write to --json; leave one of them out")
    if json is not None:
        json = expanded(json)
        check_free(json)
    if os.uname().sysname != "Linux":
        raise InputError("the boundary is Linux's (Landlock, seccomp), and so are the attacks; run this on Linux")
    if not confine.offered():
        _tell("This kernel confines no process: what only the operating system could stop is not enforced.")
    if list_only:
        _list(areas)
        return
    outcome = attack(areas, _tell)
    for shown in tables(outcome):
        print_table(shown)
    say(outcome.line)
    if json is not None:
        write_new(json, outcome.json(), mode=0o644)
    if not outcome.held:
        raise RunFailedError(outcome.failure)


def attack(areas: Sequence[Area], tell: Callable[[str], None]) -> Outcome:
    """Make every attack of these areas, each with its control.

    Args:
        tell: gets the progress, line by line.

    Raises:
        RunFailedError: an area could not be set up.
    """
    attempts: list[Attempt] = []
    left_out: list[LeftOut] = []
    for area in areas:
        tell(f"{TITLES[area]}: setting up")
        with attacks(area) as found:
            for number, one in enumerate(found, start=1):
                if one.lacks:
                    left_out.append(LeftOut(one.name, one.area, one.lacks))
                    tell(f"{area} {number}/{len(found)}  {one.name}: left out, {one.lacks}")
                    continue
                made = make(one)
                attempts.append(made)
                tell(f"{area} {number}/{len(found)}  {made.name}: unprotected {made.control}, here {made.confined}")
    return Outcome(tuple(attempts), tuple(left_out))


#: The longest path of a socket below the temporary folder.
_LONGEST_SOCKET = "boundary-12345678/" + "x" * 60


@contextlib.contextmanager
def attacks(area: Area) -> Iterator[list[Attack]]:
    """The attacks of an area, with everything that they need, in a folder of their own, until the ``with`` ends."""
    with (
        tempfile.TemporaryDirectory(
            prefix="boundary-", dir=short_temporary_folder(_LONGEST_SOCKET), ignore_cleanup_errors=True
        ) as folder,
        _source(area, Path(folder).resolve()) as found,
    ):
        yield found


#: Module and function of each area's attacks. They are loaded only when the attacks are made, because torch and Flower
#: take seconds to load.
_SOURCES: Mapping[Area, tuple[str, str]] = {
    "node": ("attacks_from_a_node", "node_attacks"),
    "courier": ("courier_attacks", "courier_attacks"),
    "users": ("user_attacks", "user_attacks"),
    "starts": ("start_attacks", "start_attacks"),
    "runs": ("run_attacks", "run_attacks"),
    "messages": ("message_attacks", "message_attacks"),
    "deployment": ("deployment_attacks", "deployment_attacks"),
    "canaries": ("canaries", "canary_attacks"),
}
#: Areas whose attacks the programs stop: they are made also on a kernel that confines no process.
_UNCONFINED_TOO: tuple[Area, ...] = ("messages", "canaries")


def _source(area: Area, folder: Path) -> contextlib.AbstractContextManager[list[Attack]]:
    module, function = _SOURCES[area]
    make_attacks: Callable[..., contextlib.AbstractContextManager[list[Attack]]] = getattr(
        import_module(f"sims.boundary.{module}"), function
    )
    if area in _UNCONFINED_TOO:
        return make_attacks(folder, unconfined=not confine.offered())
    return make_attacks(folder)


def _areas(words: Sequence[str]) -> list[Area]:
    known: tuple[Area, ...] = get_args(Area)
    for word in words:
        if word not in known:
            raise InputError(f"--only {word}: there is no such area; there are: {', '.join(known)}")
    return [area for area in known if not words or area in words]


def _tell(line: str) -> None:
    say(line, error=True)


def _list(areas: Sequence[Area]) -> None:
    total = 0
    for area in areas:
        _tell(f"{TITLES[area]}: setting up")
        with attacks(area) as found:
            shown = table("attack", "how", "what is to stop it", "lacks", title=TITLES[area])
            for one in found:
                stops = str(one.holds) if isinstance(one.holds, Expected) else "nothing"
                shown.add_row(one.name, one.tries, stops, one.lacks)
        print_table(shown)
        lacking = sum(1 for one in found if one.lacks)
        say(f"{area}: {len(found)} attacks{f', {lacking} of them left out here' if lacking else ''}")
        say()
        total += len(found)
    if len(areas) > 1:
        say(f"all areas: {total} attacks")
