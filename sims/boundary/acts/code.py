"""Code that data brings along."""

import os
import re
import warnings
from pathlib import Path

from .act import Aims, StoppedError, act, read
from .expectation import files
from .seen import PRIVATE

#: Matches torch's message about a file that did not open.
_WHY = re.compile(r"unable to open file .*\((\d+)\)")


@act(
    "code in a checkpoint",
    "torch.load runs it; it opens an image of the other's",
    PRIVATE,
    files("open"),
)
def load_pickle(aims: Aims) -> bytes:
    """A checkpoint that runs code when it is loaded without ``weights_only``."""
    import torch

    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return read, (aims["private"],)

    path = Path(aims["own"]) / "evil.pt"
    torch.save(Evil(), path)
    try:
        found = torch.load(path, weights_only=False)
    finally:
        path.unlink()
    assert isinstance(found, bytes)
    return found


@act(
    "code in a TorchScript archive",
    "torch.jit.load; it opens an image of the other's",
    PRIVATE,
    files("open"),
)
def load_script(aims: Aims) -> bytes:
    """A TorchScript archive that opens a file when it is called: TorchScript knows ``from_file``."""
    import torch

    path = Path(aims["own"]) / "evil.ts"
    code = (
        "def forward(self, name: str, size: int) -> Tensor:\n"
        "    return torch.from_file(name, False, size, dtype=torch.uint8)\n"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = torch.jit.ScriptModule()
        module.define(code)
        module.save(str(path))
        loaded = torch.jit.load(str(path))
    try:
        found = loaded(aims["private"], os.stat(aims["private"]).st_size)
    except RuntimeError as error:
        if why := _WHY.search(str(error)):
            raise StoppedError("open", int(why[1])) from None
        raise
    finally:
        path.unlink()
    return bytes(found.tolist())
