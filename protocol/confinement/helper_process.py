"""Open file descriptors of a process: closing all but some."""

import os
import sys
from collections.abc import Iterable


def close_all_but(keep: Iterable[int]) -> None:
    """Close every other descriptor, and let no program inherit these."""
    kept = sorted(set(keep))
    for number in kept:
        os.set_inheritable(number, False)
    start = 0
    for number in [*kept, sys.maxsize]:
        os.closerange(start, min(number, 1 << 20))
        start = number + 1
