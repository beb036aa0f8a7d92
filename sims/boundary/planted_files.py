"""Links and pipes in a node's state, in place of the files that its next start opens."""

import os
import shutil
import subprocess
import threading
from dataclasses import dataclass
from pathlib import Path

from protocol.errors import InputError, RunFailedError
from protocol.transport.frame import Frame
from protocol.transport.local_socket import DisconnectedError
from sims.boundary.attempt import Escaped, Failed, Found, Refusal
from sims.boundary.sites import Site, started

#: What stood in the file that a link leads to.
_BEFORE = b"as it was"
# Seconds: a pipe that a start still waits at holds it; a whole start.
_HELD, _WHOLE = 0.5, 60.0
_DEEP = 2000

#: Ways in which a start does not follow it.
REPLACED, LEFT, REFUSED = "replaced", "not followed", "start refused"


@dataclass(frozen=True)
class Planted:
    """A link or a pipe with this name in the state folder.

    Attributes:
        name: of the file; what a start does with it otherwise is in ``tries``.
        kind: ``link`` leads to a file outside; ``folder`` is a link to a folder outside; ``pipe`` makes its reader
            wait; ``deep`` is a folder in a folder, some thousand times.
        ends: the outcomes that are allowed.
    """

    name: str
    kind: str
    ends: tuple[str, ...]

    def plant(self, state: Path, outside: Path) -> None:
        """Put it there; ``outside``: an own folder for its target."""
        state.mkdir(mode=0o700, exist_ok=True)
        outside.mkdir(mode=0o700, parents=True)
        path, target = state / self.name, outside / "target"
        if self.kind == "deep":
            _dig(path)
            return
        path.unlink(missing_ok=True)
        if self.kind == "pipe":
            os.mkfifo(path, 0o600)
        elif self.kind == "link":
            target.write_bytes(_BEFORE)
            target.chmod(0o640)
            path.symlink_to(target)
        else:
            target.mkdir(mode=0o750)
            (target / "kept").write_bytes(_BEFORE)
            path.symlink_to(target)

    def followed(self, outside: Path) -> bool:
        """Whether its target has changed."""
        target = outside / "target"
        if self.kind == "link":
            return target.read_bytes() != _BEFORE or target.stat().st_mode & 0o777 != 0o640
        if self.kind == "folder":
            return [path.name for path in target.iterdir()] != ["kept"] or target.stat().st_mode & 0o777 != 0o750
        return False

    def naively(self, state: Path) -> None:
        """Act as a start that does not check."""
        path = state / self.name
        if self.kind == "deep":
            shutil.rmtree(path)
        elif self.kind == "folder":
            path.mkdir(exist_ok=True)
            (path / "file").write_bytes(b"x")
        else:
            with path.open("ab") as file:
                file.write(b"x")


# The log and the two folders are opened before the node is confined; where a link among the others leads is
# beyond Landlock's paths.
PLANTED = (
    Planted("node.log", "link", (REFUSED,)),
    *(Planted(name, "folder", (REPLACED,)) for name in ("temporary", "cache")),
    Planted("node.log", "pipe", (REFUSED,)),
    *(Planted(name, "link", (REFUSED, LEFT)) for name in ("ledger.db", "ledger.db.lock", "crossings.jsonl")),
    Planted("learngenes", "folder", (REFUSED, LEFT)),
    *(Planted(name, "pipe", (REFUSED, LEFT)) for name in ("ledger.db", "ledger.db.lock", "crossings.jsonl")),
    *(Planted(name, "deep", (REFUSED,)) for name in ("temporary", "cache")),
)


def _dig(folder: Path) -> None:
    """Deeper than a function that calls itself gets."""
    folder.mkdir(mode=0o700)
    here = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    for _ in range(_DEEP):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY | os.O_DIRECTORY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)


def _fill_in(folder: Path) -> None:
    subprocess.run(["rm", "-rf", str(folder)], check=False)


def goes_through_unprotected(planted: Planted, folder: Path) -> bool:
    """Whether a start that does not look follows the link, or waits at the pipe. ``folder``: of its own, new."""
    state, outside = folder / "state", folder / "outside"
    folder.mkdir(parents=True)
    planted.plant(state, outside)
    if planted.kind == "deep":
        try:
            planted.naively(state)
        except RecursionError:
            return True
        finally:
            _fill_in(state / planted.name)
        return False
    thread = threading.Thread(target=planted.naively, args=(state,), daemon=True)
    thread.start()
    thread.join(_HELD)
    held = thread.is_alive()
    if planted.kind == "pipe":
        with (state / planted.name).open("rb") as reader:
            reader.read(1)
        thread.join()
        return held
    return planted.followed(outside)


def start_on(site: Site, planted: Planted, outside: Path, *, unconfined: bool) -> Found:
    """The outcome of a real start of a site with it."""
    planted.plant(site.node.state, outside)
    path = site.node.state / planted.name
    try:
        return _started_on(site, planted, outside, path, unconfined)
    finally:
        if planted.kind == "deep":
            _fill_in(path)


def _started_on(site: Site, planted: Planted, outside: Path, path: Path, unconfined: bool) -> Found:
    try:
        with started(site, unconfined=unconfined):
            answer = site.ask(Frame("request", fields={"form": "condensed"}), patience=_WHOLE)
    except (InputError, RunFailedError, DisconnectedError) as error:
        # The file is named; refused for another reason, it shows nothing.
        named = planted.name in str(error)
        end: Found = Refusal("start", REFUSED, str(error)) if named else Failed(f"the start failed: {error}")
    else:
        if path.is_symlink() or path.is_fifo():
            end = Refusal("start", LEFT, f"a request is answered {answer.name!r}")
        else:
            end = Refusal("start", REPLACED)
    if planted.followed(outside):
        return Escaped("what it leads to was changed")
    return end
