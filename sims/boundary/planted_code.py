"""Code that a node leaves in its state, in every place where a careless next start would look for code."""

import importlib.util
import marshal
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_PATIENCE = 30.0
_BASE = os.path.realpath(sys.executable)
_VERSION = f"python{sys.version_info.major}.{sys.version_info.minor}"


@dataclass(frozen=True)
class Plant:
    """One place for planted code.

    Attributes:
        name: of the attack.
        tries: a sentence for a reader.
        path: in the state folder.
        careless: variables of a start that would look there, with ``{state}`` in them.
        arguments: of an interpreter that would, started in the state folder.
        compiled: of this module, as ``.pyc``.
        interpreter: a virtual environment's own leaves the user's packages out.
    """

    name: str
    tries: str
    path: str
    careless: Mapping[str, str]
    arguments: tuple[str, ...] = ("-c", "pass")
    compiled: str = ""
    interpreter: str = sys.executable


_RUN = ("-m", "collective_node", "--help")
PLANTS = (
    Plant(
        "a package of its own name",
        "collective_node/__init__.py in its state, which is found where it is started there",
        "collective_node/__init__.py",
        {},
        _RUN,
    ),
    Plant(
        "a package in the way of the project's",
        "protocol/__init__.py in its state, which an exported PYTHONPATH puts first",
        "protocol/__init__.py",
        {"PYTHONPATH": "{state}"},
        ("-c", "import protocol"),
    ),
    Plant(
        "a package in the way of torch",
        "torch/__init__.py in its state, imported when the node learns",
        "torch/__init__.py",
        {},
        ("-c", "import torch"),
    ),
    Plant(
        "a module in the way of the interpreter's",
        "statistics.py in its state",
        "statistics.py",
        {},
        ("-c", "import statistics"),
    ),
    Plant(
        "code that runs with every interpreter",
        "sitecustomize.py in its state",
        "sitecustomize.py",
        {"PYTHONPATH": "{state}"},
    ),
    Plant(
        "code that runs with every interpreter of this user's",
        "usercustomize.py in its state, as the user's own packages",
        f"lib/{_VERSION}/site-packages/usercustomize.py",
        {"PYTHONUSERBASE": "{state}"},
        interpreter=_BASE,
    ),
    Plant(
        "a line that runs with every interpreter of this user's",
        "a .pth file in its state, as the user's own packages",
        f"lib/{_VERSION}/site-packages/evil.pth",
        {"PYTHONUSERBASE": "{state}"},
        interpreter=_BASE,
    ),
    Plant(
        "compiled code in the way of the project's",
        "a .pyc in its state, where an exported PYTHONPYCACHEPREFIX has compiled code looked for",
        "",
        {"PYTHONPYCACHEPREFIX": "{state}"},
        ("-c", "import protocol.errors"),
        compiled="protocol.errors",
    ),
)


def content(plant: Plant, mark: Path) -> tuple[str, bytes]:
    """Path in the state and content of what is planted: if it runs, it makes the mark and ends the process."""
    code = f"import os; os.close(os.open({str(mark)!r}, os.O_CREAT | os.O_WRONLY, 0o600)); os._exit(0)\n"
    if not plant.compiled:
        return plant.path, code.encode()
    found = importlib.util.find_spec(plant.compiled)
    assert found is not None
    assert found.origin is not None
    status = os.stat(found.origin)
    head = importlib.util.MAGIC_NUMBER + (0).to_bytes(4, "little")
    head += int(status.st_mtime).to_bytes(4, "little") + (status.st_size & 0xFFFFFFFF).to_bytes(4, "little")
    cached = importlib.util.cache_from_source(found.origin)
    name = Path(found.origin).parent.joinpath(Path(cached).name)
    return str(name).lstrip("/"), head + marshal.dumps(compile(code, found.origin, "exec"))


def runs_unprotected(plant: Plant, state: Path, mark: Path) -> bool:
    """Whether it runs in a careless start.

    Args:
        state: a folder of its own, made.
        mark: the file that it makes if it runs.
    """
    path, data = content(plant, mark)
    (state / path).parent.mkdir(parents=True, exist_ok=True)
    (state / path).write_bytes(data)
    careless = {name: value.format(state=state) for name, value in plant.careless.items()}
    subprocess.run(
        [plant.interpreter, *plant.arguments],
        cwd=state,
        env={**os.environ, **careless},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        timeout=_PATIENCE,
        check=False,
    )
    return mark.exists()


def careless_environment(state: Path) -> dict[str, str]:
    """All variables together that would lead a start into a state folder."""
    return {name: value.format(state=state) for plant in PLANTS for name, value in plant.careless.items()}
