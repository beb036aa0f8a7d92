"""The environment of everything that a run starts: variables from the user's own environment, and those that we set.

No other variable is passed on: one of Ray's, Flower's or Python's, or a proxy, in the user's shell would change who
reaches a run, which code it loads, or where it sends data.
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from protocol.confinement import isolated_start

#: Variables that a run takes over besides those of every isolated process: the folder of matplotlib's list of fonts.
PASSED_ON = isolated_start.PASSED_ON | {"MPLCONFIGDIR"}

#: Folder for everything temporary of a run.
TEMPORARY = "LEARNGENE_RUN_TEMPORARY"
#: Who reaches the run: a word of ``sims.run.reach.Reach``.
REACH = "LEARNGENE_RUN_REACH"


def of_run(flower_home: Path, temporary: Path, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Environment of a run's SuperLink and of the Flower commands that speak with it: this Python's programs first,
    files in the run's own folders, no telemetry."""
    kept = isolated_start.environment(environment)
    kept |= {name: environment[name] for name in PASSED_ON & environment.keys()}
    return {
        **kept,
        "PATH": os.pathsep.join((str(Path(sys.executable).parent), kept.get("PATH", os.defpath))),
        "TMPDIR": str(temporary),
        TEMPORARY: str(temporary),
        "FLWR_HOME": str(flower_home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2",
        "NO_COLOR": "1",
    }
