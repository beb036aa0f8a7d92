"""Attacks from inside: data hidden in the answers of node processes whose programs were taken over, and the gate's
decision.
"""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

from protocol.exchange.audit import ALLOWED, read_crossings
from protocol.transport.frame import Frame
from sims.boundary.acts.expectation import Open
from sims.boundary.attempt import Attack, Escaped, Failed, Found, Refusal
from sims.boundary.command_attacks import paired_sites
from sims.boundary.leaking_program import DELAY, DELAY_SECONDS, PAST_THE_GATE, WITHOUT_GATE
from sims.boundary.leaks.all_leaks import LEAKS
from sims.boundary.leaks.leak import DATA_BYTES, LET_FRAME_OUT, LET_OUT, Leak
from sims.boundary.sites import Site, started

_LEAKING = "sims.boundary.leaking_program"


@contextlib.contextmanager
def leak_attacks(folder: Path, *, unconfined: bool = False) -> Iterator[list[Attack]]:
    """Leaks of both roles; the control is the same program without its gate."""
    sites = paired_sites(folder)
    with contextlib.ExitStack() as stack:
        there = {"collective": sites.collective, "individual": sites.individual}
        for site in there.values():
            stack.enter_context(started(site, module=_LEAKING, unconfined=unconfined))
        own = [_past_the_gate(sites.individual), _times_of_answers(sites.individual)]
        yield [*(_leak_attack(leak, there[leak.role]) for leak in LEAKS), *own]


def _leak_attack(leak: Leak, site: Site) -> Attack:
    data = site.private.read_bytes().ljust(DATA_BYTES, b"\0")

    def answer(**words: str) -> Frame:
        return site.ask(Frame("leak", fields={"name": leak.name, **words}))

    def confined() -> Found:
        before = len(read_crossings(site.node.state / "crossings.jsonl"))
        answered = answer()
        if leak.succeeded(answered, data):
            return Escaped("the data came out")
        return _refusal(answered, site, before)

    return Attack(
        leak.name,
        "messages",
        leak.tries,
        leak.holds,
        lambda: leak.succeeded(answer(gate=WITHOUT_GATE), data),
        confined,
    )


def _refusal(answer: Frame, site: Site, before: int) -> Found:
    """The point at which the gate stopped it: the first refused message in its log, or else the answer itself."""
    if answer.name != "refused":
        return Failed(f"it was answered {answer.name!r}, without the data")
    crossings = read_crossings(site.node.state / "crossings.jsonl")[before:]
    refused = [found for found in crossings if found.decision != ALLOWED]
    if refused:
        return Refusal(LET_OUT, refused[0].decision, f"the {refused[0].kind}")
    return Refusal(LET_FRAME_OUT, answer.fields["code"])


def _past_the_gate(site: Site) -> Attack:
    data = site.private.read_bytes().ljust(DATA_BYTES, b"\0")

    def leaks(**words: str) -> bool:
        return data in site.ask(Frame(PAST_THE_GATE, fields=words)).parts.get("metrics", b"")

    return Attack(
        "written to the courier past the gate",
        "messages",
        "a program that was taken over writes to its courier itself",
        Open("the gate is code of the process that was taken over: it stops mistakes, and who has no code there"),
        lambda: leaks(gate=WITHOUT_GATE),
        lambda: Escaped() if leaks() else Failed("nothing came"),
    )


def _times_of_answers(site: Site) -> Attack:
    bits = f"{site.private.read_bytes()[0]:08b}"[:4]

    def leaks(**words: str) -> bool:
        def seconds(number: int) -> float:
            before = time.monotonic()
            site.ask(Frame(DELAY, fields={"bit": str(number), **words}))
            return time.monotonic() - before

        # The shortest of three: a busy machine makes an answer later, never sooner.
        times = [min(seconds(number) for _ in range(3)) for number in range(len(bits))]
        return bits == "".join(str(int(taken > DELAY_SECONDS / 2)) for taken in times)

    return Attack(
        "data as the time of an answer",
        "messages",
        "a program that was taken over answers sooner or later, as a bit of its data says",
        Open("when a node answers is not held to anything: a bit a command here, more where clocks are better"),
        lambda: leaks(gate=WITHOUT_GATE),
        lambda: Escaped() if leaks() else Failed("the times say nothing"),
    )
