"""How numbers and comparisons are put into words, the same in every output."""

from collections.abc import Iterable
from typing import Protocol


class WithInterval(Protocol):
    """A mean and the half width of its 95 % interval."""

    @property
    def mean(self) -> float: ...

    @property
    def ci95(self) -> float | None: ...


def interval_text(result: WithInterval | None, sign: bool = False) -> str:
    """``71.6 ± 2.3``, with ``sign`` ``+71.6 ± 2.3``; a dash for what is not there."""
    if result is None:
        return "–"
    number = (f"{result.mean:+.1f}" if sign else f"{result.mean:.1f}").replace("-", "−")  # a minus sign, no hyphen
    return f"{number} ± {result.ci95:.1f}" if result.ci95 is not None else f"{number} ± –"


def verdict(paired: WithInterval) -> str:
    """What the interval of a paired difference allows to say of the first method."""
    if paired.ci95 is None:
        return "one task: nothing can be said"
    if abs(paired.mean) <= paired.ci95:
        return "not told apart"
    return "better" if paired.mean > 0 else "worse"


def pair_label(pair: str, methods: Iterable[str]) -> str:
    """``condensed-eq9-scratch`` as ``condensed-eq9 − scratch``: split where a method's name ends."""
    known = list(methods)
    for first in known:
        second = pair.removeprefix(f"{first}-")
        if second != pair and second in known:
            return f"{first} − {second}"
    return pair
