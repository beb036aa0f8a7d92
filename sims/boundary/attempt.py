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
class Finding:
    """What came of an attack; ``detail`` says how it was stopped, or what came out."""

    confined: Confined
    detail: str = ""


@dataclass(frozen=True)
class Attack:
    """An attack that can be made.

    Attributes:
        name: short and unique: ``read the other party's images``.
        area: what it is made on.
        tries: what is tried, in a sentence for a reader of the table.
        control: makes it where nothing protects; whether it succeeded.
        confined: makes it on the real thing.
        unstoppable: why nothing stops it, where that is known; going through then counts as not enforced.
        lacks: what this machine lacks for its control; the attack is then left out, and said to be.
    """

    name: str
    area: Area
    tries: str
    control: Callable[[], bool]
    confined: Callable[[], Confined | Finding]
    unstoppable: str = ""
    lacks: str = ""


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
    control: Control = "failed"
    try:
        control = "succeeded" if attack.control() else "failed"
        reason = "" if control == "succeeded" else "the control reached nothing"
    except Exception as error:
        reason = f"the control: {type(error).__name__}: {error}"
    try:
        made = attack.confined()
        found = Finding(made) if isinstance(made, str) else made
    except Exception as error:
        found = Finding("escaped", f"the attack itself went wrong: {type(error).__name__}: {error}")
    else:
        if found.confined == "escaped" and attack.unstoppable:
            found = Finding("not enforced", attack.unstoppable)
    detail = "; ".join(text for text in (found.detail, reason) if text)
    return Attempt(attack.name, attack.area, attack.tries, control, found.confined, detail)
