"""One attempt on the boundary: the attack, its control without protection, and what came of both."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from sims.boundary.acts.expectation import Expected, Holds, Open

#: What the attack is made on: the node's process, the courier's, a process of another user, a node's next start,
#: a run of a simulation, what crosses, a whole Flower deployment, or all that leaves a process.
Area = Literal["node", "courier", "users", "starts", "runs", "messages", "deployment", "canaries"]
#: Of the control: the same attack where nothing protects. One that fails shows that the attack is worthless.
Control = Literal["succeeded", "failed"]
#: Of the attack: stopped as it was expected to be; not stopped; not stoppable on this kernel (which is said and never
#: counted as stopped); or it failed in another way than was expected, which shows nothing of the boundary.
Confined = Literal["blocked", "escaped", "not enforced", "not shown"]


@dataclass(frozen=True)
class Refusal:
    """What was refused: the call, and the name of its error or a code of the protocol; ``detail`` says it in words."""

    call: str
    error: str
    detail: str = ""


@dataclass(frozen=True)
class Escaped:
    """The attack reached what it wanted; ``detail`` says what came out."""

    detail: str = "it went through"


@dataclass(frozen=True)
class NotEnforced:
    """This kernel lacks what would stop it."""

    why: str


@dataclass(frozen=True)
class Failed:
    """It neither reached anything nor was it refused."""

    detail: str


#: What came of an attack on the real thing.
Found = Refusal | Escaped | NotEnforced | Failed


@dataclass(frozen=True)
class Attack:
    """An attack that can be made.

    Attributes:
        name: short and unique: ``read the other party's images``.
        area: what it is made on.
        tries: what is tried, in a sentence for a reader of the table.
        holds: the refusal that is expected; or that nothing stops it, and why: going through then counts as not
            enforced.
        control: makes it where nothing protects; whether it succeeded.
        confined: makes it on the real thing.
        lacks: what this machine lacks for its control; the attack is then left out, and said to be.
    """

    name: str
    area: Area
    tries: str
    holds: Holds
    control: Callable[[], bool]
    confined: Callable[[], Found]
    lacks: str = ""


@dataclass(frozen=True)
class Attempt:
    """An attack that was made, and what came of it; ``detail`` says how it was stopped, or what came out.

    Attributes:
        expected: the refusal that was expected, None if nothing stops it.
        refusal: what was refused, None if nothing was.
    """

    name: str
    area: Area
    tries: str
    control: Control
    confined: Confined
    detail: str = ""
    expected: Expected | None = None
    refusal: Refusal | None = None

    @property
    def holds(self) -> bool:
        """Whether the boundary held and the control shows that the attack is worth something."""
        return self.control == "succeeded" and self.confined == "blocked"


def make(attack: Attack) -> Attempt:
    """Make an attack, its control first. What goes wrong in the attack itself is not shown, and never stopped."""
    control: Control = "failed"
    try:
        control = "succeeded" if attack.control() else "failed"
        reason = "" if control == "succeeded" else "the control reached nothing"
    except Exception as error:
        reason = f"the control: {type(error).__name__}: {error}"
    try:
        found = attack.confined()
    except Exception as error:
        found = Failed(f"the attack itself went wrong: {type(error).__name__}: {error}")
    confined, detail = judge(attack.holds, found)
    expected = attack.holds if isinstance(attack.holds, Expected) else None
    refusal = found if isinstance(found, Refusal) else None
    text = "; ".join(text for text in (detail, reason) if text)
    return Attempt(attack.name, attack.area, attack.tries, control, confined, text, expected, refusal)


def judge(holds: Holds, found: Found) -> tuple[Confined, str]:
    """The verdict, and what there is to say of it."""
    match found:
        case Escaped(detail):
            return ("not enforced", holds.why) if isinstance(holds, Open) else ("escaped", detail)
        case NotEnforced(why):
            return "not enforced", why
        case Refusal(call, error, detail):
            if isinstance(holds, Expected) and call == holds.call and error in holds.errors:
                return "blocked", f"{call}: {error}"
            came = f"{call or 'something'} failed with {error}{f' ({detail})' if detail else ''}"
        case Failed(detail):
            came = detail
    wanted = str(holds) if isinstance(holds, Expected) else "nothing to stop it"
    return "not shown", f"expected: {wanted}; came: {came}"
