"""The outcome of all attempts: a table for a reader, the same as JSON, and whether the boundary held."""

import platform
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

from pydantic import BaseModel, ConfigDict
from rich.text import Text

from protocol.confinement import guards
from protocol.node import confine
from protocol.output import PlainTable, lines, table
from sims.boundary.acts.expectation import Guard
from sims.boundary.attempt import Area, Attempt, Confined, Control

#: Heading of each area's table.
TITLES: dict[Area, str] = {
    "node": "Node: its program is the attacker's",
    "courier": "Courier: in place of Flower's SuperNode runs the attacker's program",
    "users": "Users: a process of another user of this machine, which nothing confines",
    "starts": "Starts: what a node that was taken over leaves in its state for its next start",
    "runs": "Runs: Flower's SuperLink and Ray of a simulation, while it goes on",
    "messages": "Messages: what crosses, and what a node is asked for",
    "deployment": "Deployment: a whole one of Flower's, with a hostile app or relay",
    "canaries": "Canaries: marked images, searched for in everything that leaves a process",
}
_STYLES: dict[Control | Confined, str] = {
    "succeeded": "",
    "failed": "bold red",
    "blocked": "green",
    "escaped": "bold red",
    "not enforced": "yellow",
    "not shown": "bold magenta",
}


@dataclass(frozen=True)
class LeftOut:
    """An attack that was not made, because this machine lacks what its control needs."""

    name: str
    area: Area
    lacks: str


@dataclass(frozen=True)
class Outcome:
    """All attempts in their order, and the attacks that were left out."""

    attempts: tuple[Attempt, ...]
    left_out: tuple[LeftOut, ...] = ()

    def count(self, confined: Confined) -> int:
        """Attempts with that outcome."""
        return sum(attempt.confined == confined for attempt in self.attempts)

    @property
    def worthless(self) -> tuple[Attempt, ...]:
        """Attempts whose control did not succeed: they prove nothing."""
        return tuple(attempt for attempt in self.attempts if attempt.control == "failed")

    @property
    def held(self) -> bool:
        """Whether nothing escaped, every attempt proved something, and every control succeeded. Attacks that are not
        enforced are reported, but are no failure.
        """
        failed = self.count("escaped") or self.count("not shown") or self.worthless
        return bool(self.attempts) and not failed

    @property
    def failure(self) -> str:
        """The reason why it did not hold, in a few words."""
        if self.count("escaped"):
            return "the boundary did not hold"
        if not self.attempts:
            return "nothing was tried: this machine lacks what every attack of these areas needs"
        return "a control failed" if self.worthless else "an attempt failed in another way than was expected"

    @property
    def line(self) -> str:
        """The result in a line."""
        counts = ", ".join(f"{self.count(word)} {word}" for word in get_args(Confined))
        controls = "every control succeeded"
        if self.worthless:
            controls = f"{len(self.worthless)} controls failed, so that these attempts show nothing"
        return f"{len(self.attempts)} attempts: {counts}; {controls}"

    def json(self) -> bytes:
        """The whole as a JSON document; see ``docs/boundary.md``."""
        found = guards.not_confined()
        document = _Document(
            machine=_Machine(
                kernel=platform.release(),
                architecture=platform.machine(),
                landlock_abi=found.landlock_abi,
                confines=confine.offered(),
            ),
            summary=dict(Counter({word: self.count(word) for word in get_args(Confined)})),
            held=self.held,
            attempts=[_written(one) for one in self.attempts],
            left_out=[_LeftOut(name=one.name, area=one.area, lacks=one.lacks) for one in self.left_out],
        )
        return document.model_dump_json(indent=1).encode() + b"\n"


def tables(outcome: Outcome) -> list[PlainTable]:
    """A table for each area that was attacked; behind them what is not enforced, with its reason, and what was left
    out."""
    made = [_of_area(area, outcome.attempts) for area in get_args(Area)]
    return [*(one for one in made if one.row_count), *_reasons(outcome), *_left_out(outcome)]


def _of_area(area: Area, attempts: Sequence[Attempt]) -> PlainTable:
    made = table("what was tried", "how", "unprotected", "here", title=TITLES[area])
    for one in attempts:
        if one.area == area:
            words = (Text(word, _STYLES[word]) for word in (one.control, one.confined))
            made.add_row(one.name, one.tries, *words)
    return made


def _reasons(outcome: Outcome) -> list[PlainTable]:
    made = []
    for title, chosen in (
        ("Escaped", [one for one in outcome.attempts if one.confined == "escaped"]),
        (
            "Not shown: it failed in another way than was expected",
            [one for one in outcome.attempts if one.confined == "not shown"],
        ),
        ("Worthless: the control did not succeed", list(outcome.worthless)),
        ("Not enforced", [one for one in outcome.attempts if one.confined == "not enforced"]),
    ):
        reasons: dict[str, list[str]] = {}
        for one in chosen:
            reasons.setdefault(one.detail or "no reason is known", []).append(one.name)
        shown = table("what was tried", "what is known of it", title=title)
        for reason, names in reasons.items():
            shown.add_row(lines("\n".join(names)), reason)
        if reasons:
            made.append(shown)
    return made


def _left_out(outcome: Outcome) -> list[PlainTable]:
    shown = table("what was left out", "what this machine lacks for it", title="Left out")
    for one in outcome.left_out:
        shown.add_row(one.name, one.lacks)
    return [shown] if outcome.left_out else []


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class _Machine(_Strict):
    kernel: str
    architecture: str
    landlock_abi: int
    confines: bool


class _Expected(_Strict):
    call: str
    errors: list[str]
    guard: Guard


class _Refusal(_Strict):
    call: str
    errno: str


class _Attempt(_Strict):
    name: str
    area: Area
    tries: str
    control: Control
    confined: Confined
    expected: _Expected | None
    refusal: _Refusal | None
    detail: str


def _written(one: Attempt) -> _Attempt:
    expected, refusal = one.expected, one.refusal
    return _Attempt(
        name=one.name,
        area=one.area,
        tries=one.tries,
        control=one.control,
        confined=one.confined,
        expected=_Expected(call=expected.call, errors=list(expected.errors), guard=expected.guard)
        if expected
        else None,
        refusal=_Refusal(call=refusal.call, errno=refusal.error) if refusal else None,
        detail=one.detail,
    )


class _LeftOut(_Strict):
    name: str
    area: Area
    lacks: str


class _Document(_Strict):
    version: int = 2
    machine: _Machine
    summary: dict[str, int]
    held: bool
    attempts: list[_Attempt]
    left_out: list[_LeftOut]
