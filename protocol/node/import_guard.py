"""A guard on imports at run time: a party's process never imports the other party's package, nor the simulations.

It finds mistakes, as the import linter does, and also those that no linter sees (names made at run time, foreign
packages). It is no boundary: code in a process could take it away. The boundary is :mod:`protocol.confinement`.
"""

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

#: Packages of which a process holds at most one.
APART = ("collective_node", "individual_node", "sims")


class _Guard:
    """The first finder in ``sys.meta_path``: it finds no module, and refuses those of the other packages."""

    def __init__(self, own: str) -> None:
        self.own = own

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package = name.partition(".")[0]
        if package in APART and package != self.own:
            raise ImportError(_refusal(self.own, package), name=name)
        return None


def install(own: str) -> None:
    """Make every import of another party's package raise ImportError. A second call changes nothing.

    Args:
        own: the package whose process this is.

    Raises:
        ImportError: this process already holds such a package, or the guard of another party.
    """
    present = {name.partition(".")[0] for name in sys.modules}
    for package in APART:
        if package in present and package != own:
            raise ImportError(_refusal(own, package), name=package)
    for finder in sys.meta_path:
        if isinstance(finder, _Guard):
            if finder.own != own:
                raise ImportError(f"this is a process of {finder.own}, and cannot become one of {own}", name=own)
            return
    sys.meta_path.insert(0, _Guard(own))


def _refusal(own: str, package: str) -> str:
    return f"a process of {own} must not import {package}: the parties' code stays apart; start it in its own process"
