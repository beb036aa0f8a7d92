"""Which division of a dataset's classes is used: its own, or the tuning division, on which settings are chosen."""

import hashlib
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from protocol.errors import InputError
from sims.data.division import Division

DivisionName = Literal["own", "tuning"]

#: Pseudo-novel classes that the tuning division has at least: tasks of five classes need as many.
FEWEST_NOVEL = 5
#: Of so many base classes, so many become pseudo-novel ones and so many open-world ones; of others as large a share.
_OF, _NOVEL, _OPEN_WORLD = 64, 10, 6


class DivisionChoice(BaseModel):
    """The chosen division.

    Attributes:
        name: ``own``: the dataset's own division; ``tuning``: its base classes alone, divided again.
        seed: of the tuning division; 0 with the dataset's own.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: DivisionName = "own"
    seed: int = Field(default=0, ge=0)

    @property
    def is_tuning(self) -> bool:
        """Whether the dataset's own open-world and novel classes are left out."""
        return self.name == "tuning"

    def apply(self, own: Division) -> Division:
        """The chosen division of a dataset whose own is ``own``.

        Raises:
            InputError: the base classes are too few for the tuning division.
        """
        return tuning_division(own, self.seed) if self.is_tuning else own

    def dataset_name(self, name: str) -> str:
        """The name of a dataset under this division: titles, tables and comparisons tell the divisions apart by it."""
        return f"{name} tuning division {self.seed}" if self.is_tuning else name

    @property
    def notice(self) -> str:
        """The sentence that every output carries; empty for the dataset's own division."""
        if not self.is_tuning:
            return ""
        return (
            f"TUNING DIVISION (seed {self.seed}): all classes are base classes of the dataset, divided again so that "
            "settings can be chosen on them."
        )


#: The dataset's own division.
OWN = DivisionChoice()


def tuning_division(own: Division, seed: int) -> Division:
    """Divide the base classes of a division again; its open-world and novel classes are in none of the roles.

    Of 64 base classes, 48 stay base, 6 become open-world and 10 pseudo-novel; of others as large a share, rounded. A
    class's role depends on the seed and on the base classes' names, not on their order; the order in a role is that of
    ``own``.

    Raises:
        InputError: fewer than five pseudo-novel classes would come of it.
    """
    count = len(own.base)
    novel, open_world = _share(count, _NOVEL), max(1, _share(count, _OPEN_WORLD))
    if novel < FEWEST_NOVEL:
        needed = next(number for number in range(count, _OF) if _share(number, _NOVEL) >= FEWEST_NOVEL)
        raise InputError(
            f"the tuning division needs {FEWEST_NOVEL} pseudo-novel classes, so {needed} base classes to take them "
            f"from; there are {count}"
        )
    drawn = sorted(own.base, key=lambda name: hashlib.sha256(f"tuning division {seed}: {name}".encode()).digest())
    pseudo_novel, unknown = set(drawn[:novel]), set(drawn[novel : novel + open_world])
    return Division(
        base=tuple(name for name in own.base if name not in pseudo_novel | unknown),
        open_world=tuple(name for name in own.base if name in unknown),
        novel=tuple(name for name in own.base if name in pseudo_novel),
    )


def _share(count: int, of_64: int) -> int:
    """``count`` times ``of_64`` over 64, rounded half up."""
    return (count * of_64 + _OF // 2) // _OF
