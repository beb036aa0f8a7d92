"""The environment of everything that a run starts: variables from the user's own environment, and those that we set.

No other variable is passed on: one of Ray's, Flower's or Python's, or a proxy, in the user's shell would change who
reaches a run, which code it loads, or where it sends data.
"""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from protocol.confinement import isolated_start
from protocol.visible_text import is_utf8

#: Variables that a run takes over besides those of every isolated process: the folder of matplotlib's list of fonts.
PASSED_ON = isolated_start.PASSED_ON | {"MPLCONFIGDIR"}

#: Folder for everything temporary of a run.
TEMPORARY = "LEARNGENE_RUN_TEMPORARY"
#: Who reaches the run: a word of ``sims.run.reach.Reach``.
REACH = "LEARNGENE_RUN_REACH"
#: The run's folder, and whether the run in it is resumed.
_FOLDER, _RESUME = "LEARNGENE_RUN_FOLDER", "LEARNGENE_RUN_RESUME"


@dataclass(frozen=True)
class HandedOver:
    """The folder, with the settings of a run in it, that ``learngene run`` hands over to the run's app."""

    folder: Path
    resume: bool = False

    def environment(self) -> dict[str, str]:
        """The variables that say it."""
        return {_FOLDER: str(self.folder), **({_RESUME: "1"} if self.resume else {})}


def handed_over(environment: Mapping[str, str] = os.environ) -> HandedOver | None:
    """The folder that was handed over to this process; None in an app that Flower's own command has started."""
    folder = environment.get(_FOLDER)
    return HandedOver(Path(folder), _RESUME in environment) if folder else None


def of_run(flower_home: Path, temporary: Path, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Environment of a run's SuperLink and of the Flower commands that speak with it: this Python's programs first,
    files in the run's own folders, no telemetry."""
    kept = isolated_start.environment(environment)
    kept |= {name: environment[name] for name in PASSED_ON & environment.keys()}
    # Ray writes all that it is given as UTF-8.
    kept = {name: value for name, value in kept.items() if is_utf8(value)}
    return {
        **kept,
        "PATH": os.pathsep.join((str(Path(sys.executable).parent), kept.get("PATH", os.defpath))),
        "HOME": kept["HOME"] if _is_writable(kept.get("HOME", "")) else str(temporary),
        "TMPDIR": str(temporary),
        TEMPORARY: str(temporary),
        "FLWR_HOME": str(flower_home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2",
        "NO_COLOR": "1",
    }


def _is_writable(folder: str) -> bool:
    return os.path.isdir(folder) and os.access(folder, os.W_OK | os.X_OK)
