"""One attempt on the boundary: the attack, its control without protection, and the outcome of both."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from sims.boundary.acts.expectation import Expected, Holds, Open

#: Target of the attack: the node's process, the courier's, a process of another user, a node's next start,
#: a run of a simulation, the messages, a whole Flower deployment, or everything that leaves a process.
Area = Literal["node", "courier", "users", "starts", "runs", "messages", "deployment", "canaries"]
#: Outcome of the control, which is the same attack without protection. If it fails, the attack proves nothing.
Control = Literal["succeeded", "failed"]
#: Outcome of the attack: stopped as expected; not stopped; not stoppable on this kernel (which is reported and never
#: counted as stopped); or it failed in an unexpected way, which proves nothing about the boundary.
Confined = Literal["blocked", "escaped", "not enforced", "not shown"]


@dataclass(frozen=True)
class Refusal:
    """A refusal: the call, and the name of its error or a code of the protocol; ``detail`` describes it."""

    call: str
    error: str
    detail: str = ""


@dataclass(frozen=True)
class Escaped:
    """The attack succeeded; ``detail`` says what came out."""

    detail: str = "it went through"


@dataclass(frozen=True)
class NotEnforced:
    """This kernel lacks the guard that would stop the attack."""

    why: str


@dataclass(frozen=True)
class Failed:
    """The attack neither succeeded nor was it refused."""

    detail: str


#: Outcome of an attack on the protected process.
Found = Refusal | Escaped | NotEnforced | Failed


@dataclass(frozen=True)
class Attack:
    """An attack that can be made.

    Attributes:
        name: short and unique: ``read the other party's images``.
        area: its target.
        tries: what is tried, in a sentence for a reader of the table.
        holds: the expected refusal; or the reason why nothing stops it: success then counts as not enforced.
        control: makes it without protection; returns whether it succeeded.
        confined: makes it on the protected process.
        lacks: what this machine lacks for its control; the attack is then left out, and reported as left out.
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
    """An attack that was made, and its outcome; ``detail`` says how it was stopped, or what came out.

    Attributes:
        expected: the expected refusal, None if nothing stops it.
        refusal: the actual refusal, None if there was none.
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
        """Whether the boundary held and the control shows that the attack works."""
        return self.control == "succeeded" and self.confined == "blocked"


def make(attack: Attack) -> Attempt:
    """Make an attack, its control first. An error in the attack itself counts as not shown, never as stopped."""
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
    """The verdict, and its reason."""
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
