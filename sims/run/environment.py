"""The environment of everything that a run starts: what it takes over from the user's own, and what we set.

Nothing else gets through: a variable of Ray's, Flower's or Python's, or a proxy, that happens to be set in the user's
shell would change who reaches a run, which code it loads, or where it sends what.
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

#: Variables that are taken over where they are set.
PASSED = frozenset(
    {
        # Who the user is, and where programs and the user's own files lie.
        *("PATH", "HOME", "USER", "LOGNAME"),
        # Language and time.
        *("LANG", "LANGUAGE", "TZ"),
        # Which libraries and devices there are, and how many threads work.
        *("LD_LIBRARY_PATH", "OMP_NUM_THREADS", "MKL_NUM_THREADS"),
        *("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "NVIDIA_VISIBLE_DEVICES", "CUBLAS_WORKSPACE_CONFIG"),
        "PYTORCH_CUDA_ALLOC_CONF",
        # Where matplotlib keeps its list of fonts.
        "MPLCONFIGDIR",
    }
)
#: So are all variables that begin like this: the parts of the locale.
PASSED_PREFIX = "LC_"

#: Folder for everything temporary of a run.
TEMPORARY = "LEARNGENE_RUN_TEMPORARY"
#: Who reaches the run: a word of ``sims.run.enclosure.Reach``.
REACH = "LEARNGENE_RUN_REACH"


def passed(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables of ``environment`` that a run takes over."""
    return {name: value for name, value in environment.items() if name in PASSED or name.startswith(PASSED_PREFIX)}


def of_run(flower_home: Path, temporary: Path, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Environment of a run's SuperLink and of the Flower commands that speak with it: this Python's programs first,
    files in the run's own folders, no telemetry."""
    kept = passed(environment)
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
