"""One attempt on the boundary: the attack, its control without protection, and what came of both."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

#: What the attack is made on: the node's process, the courier's, what crosses, or a whole Flower deployment.
Area = Literal["node", "courier", "messages", "deployment", "canaries"]
#: Of the control: the same attack where nothing protects. One that fails shows that the attack is worthless.
Control = Literal["succeeded", "failed"]
#: Of the attack: stopped, not stopped, or not stoppable on this kernel (which is said and never counted as stopped).
Confined = Literal["blocked", "escaped", "not enforced"]


@dataclass(frozen=True)
class Attack:
    """An attack that can be made.

    Attributes:
        name: short and unique: ``read the other party's images``.
        area: what it is made on.
        tries: what is tried, in a sentence for a reader of the table.
        control: makes it where nothing protects; whether it succeeded.
        confined: makes it on the real thing.
    """

    name: str
    area: Area
    tries: str
    control: Callable[[], bool]
    confined: Callable[[], Confined]


@dataclass(frozen=True)
class Attempt:
    """An attack that was made, and what came of it; ``detail`` says how it was stopped, or what came out."""

    name: str
    area: Area
    tries: str
    control: Control
    confined: Confined
    detail: str = ""

    @property
    def holds(self) -> bool:
        """Whether the boundary held and the control shows that the attack is worth something."""
        return self.control == "succeeded" and self.confined == "blocked"


def make(attack: Attack) -> Attempt:
    """Make an attack, its control first. What goes wrong in the attack itself counts as an escape, never as stopped."""
    control: Control = "succeeded" if attack.control() else "failed"
    try:
        confined, detail = attack.confined(), ""
    except Exception as error:
        confined, detail = "escaped", f"{type(error).__name__}: {error}"
    return Attempt(attack.name, attack.area, attack.tries, control, confined, detail)
