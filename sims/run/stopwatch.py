"""Wall-clock seconds of steps that follow one another."""

import time
from collections.abc import Callable


class Stopwatch:
    """Measures each step from the end of the one before.

    Attributes:
        seconds: wall-clock seconds by the step's name.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last = clock()
        self.seconds: dict[str, float] = {}

    def lap(self, name: str) -> None:
        """End a step."""
        now = self._clock()
        self.seconds[name] = round(now - self._last, 3)
        self._last = now
