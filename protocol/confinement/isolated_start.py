"""Start of a process of this project: with an isolated interpreter, a chosen environment, and an empty folder.

Python looks for modules in the working folder, in ``PYTHONPATH`` and in the user's own packages before it runs a line
of ours. A node that was taken over can write where some of these lie; so ``-I`` excludes them all.
"""

import importlib.util
import os
import site
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from protocol.errors import InputError

#: Working folder of our processes: they may not write in it, and its name reveals nothing.
WORKING_FOLDER = Path("/")

#: Environment variables that a process gets: programs, language, time, processors, GPUs and libraries.
PASSED_ON = frozenset(
    (
        *("PATH", "HOME", "USER", "LOGNAME", "LANG", "LANGUAGE", "TZ", "TERM", "NO_COLOR", "PYTHONUTF8"),
        *("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "NVIDIA_VISIBLE_DEVICES", "NVIDIA_DRIVER_CAPABILITIES"),
        *("CUBLAS_WORKSPACE_CONFIG", "LD_LIBRARY_PATH", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"),
        *("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE", "DNNL_MAX_CPU_ISA", "ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY"),
    )
)
_PASSED_ON_PREFIXES = ("LC_",)
#: Packages that every process of ours needs.
_NEEDED = ("protocol", "torch", "numpy", "cryptography")


def environment(given: Mapping[str, str]) -> dict[str, str]:
    """The part of an environment that an isolated process gets."""
    kept = {name: value for name, value in given.items() if name in PASSED_ON or name.startswith(_PASSED_ON_PREFIXES)}
    return {**kept, "PYTHONDONTWRITEBYTECODE": "1"}


def command(module: str, arguments: Sequence[str]) -> list[str]:
    """The command line that runs a module of an installed package, isolated.

    Raises:
        InputError: an isolated interpreter does not find the package.
    """
    check_installation()
    return [sys.executable, "-I", "-m", module, *arguments]


def become_isolated(module: str, arguments: Sequence[str]) -> None:
    """Become an isolated process that runs ``module``, unless this process already is one; its working folder is
    ``WORKING_FOLDER``.

    Args:
        arguments: of the command line; paths in them must be absolute.

    Raises:
        InputError: as :func:`command`.
    """
    os.chdir(WORKING_FOLDER)
    if not sys.flags.isolated:
        _execute(command(module, arguments))


def _execute(words: list[str]) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(words[0], words, environment(os.environ))


def check_installation() -> None:
    """Refuse an installation that an isolated interpreter does not find.

    Raises:
        InputError: a package lies among the user's own (``pip install --user``).
    """
    if sys.flags.no_user_site or not site.ENABLE_USER_SITE:
        return
    own = Path(site.getusersitepackages()).resolve()
    for name in _NEEDED:
        found = importlib.util.find_spec(name)
        finder = getattr(found and found.loader, "__module__", "")
        places = [found.origin] if found and found.origin else []
        places += [getattr(sys.modules.get(finder), "__file__", None) or ""]
        if any(Path(place).resolve().is_relative_to(own) for place in places if place):
            raise InputError(
                f"{name} is installed for this user alone ({own}), where an isolated process does not look; install "
                "the project in a virtual environment: python3 -m venv .venv"
            )
