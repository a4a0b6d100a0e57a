"""Counts generated tokens and their rate over the last seconds."""

from __future__ import annotations

import time
from collections import deque

_WINDOW_S = 5.0
# Below this a rate is noise.
_SHORTEST_SPAN_S = 0.2


class TokenMeter:
    """Written by one thread, read by any."""

    def __init__(self) -> None:
        self.total = 0
        self._recent: deque[tuple[float, int]] = deque()

    def count(self, now: float, tokens: int) -> None:
        """Add the tokens of a step that ended now."""
        self.total += tokens
        self._recent.append((now, tokens))
        while self._recent and self._recent[0][0] < now - _WINDOW_S:
            self._recent.popleft()

    @property
    def tokens_per_second(self) -> float:
        """Rate over the last seconds; 0 while there is too little to tell."""
        now = time.perf_counter()
        recent = [(at, n) for at, n in list(self._recent) if at >= now - _WINDOW_S]
        span = now - recent[0][0] if recent else 0.0
        return sum(n for _, n in recent) / span if span > _SHORTEST_SPAN_S else 0.0
