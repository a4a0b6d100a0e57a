"""Work beside the engine's thread rests between its parts while rows run, or it would take a core from them."""

from __future__ import annotations

import time
from collections.abc import Callable

# Rests are so many times as long as what went before them: a third of a core at most.
_RESTS = 2.0
_LONGEST_S = 0.05


class GiveWay:
    """Called between two parts of the work, on its thread.

    Args:
        busy: whether rows run.
        clock, sleep: of seconds.
    """

    def __init__(
        self,
        busy: Callable[[], bool],
        *,
        clock: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._busy, self._clock, self._sleep = busy, clock, sleep
        self._began = clock()

    def __call__(self) -> None:
        """Rest."""
        if self._busy():
            self._sleep(min(_RESTS * (self._clock() - self._began), _LONGEST_S))
        self._began = self._clock()
