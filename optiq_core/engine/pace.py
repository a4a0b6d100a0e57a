"""How many prompt tokens fit between two decode steps.

While rows decode, a chunk of prompts may take about as long as `_DECODE_STEPS` decode steps, so that streams slow down
but never stall; the speed of both is measured as they run. An urgent prompt may take about twice as long. While
nothing decodes, chunks have their full size, unless that takes so long that a newcomer would notice.
"""

from __future__ import annotations

_DECODE_STEPS = 2.0
_URGENT_STEPS = 4.0
# What a newcomer waits for at most before its own prompt begins.
_LONGEST_S = 0.3
_SHORTEST_S = 0.05
_SMALLEST = 32
# Weight of a new measurement. One of few tokens is mostly of what a chunk costs whatever its size, and counts less.
_NEW = 0.3
_TELLING = 128


class Pace:
    """Chooses the size of a chunk.

    Args:
        limit: tokens of a chunk at most.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._decode_s = 0.0
        self._tokens_per_second = 0.0

    def chunk(self, *, decoding: bool, urgent: bool = False) -> int:
        """Return the prompt tokens to process before the next decode step."""
        if not self._tokens_per_second:
            return self._limit if not decoding else min(self._limit, _SMALLEST)
        steps = _URGENT_STEPS if urgent else _DECODE_STEPS
        seconds = max(_SHORTEST_S, steps * self._decode_s) if decoding else _LONGEST_S
        return max(min(_SMALLEST, self._limit), min(self._limit, int(seconds * self._tokens_per_second)))

    def observe(self, seconds: float, *, prompt_tokens: int, decoding: bool) -> None:
        """Learn from one step.

        Args:
            seconds: from its begin to its end.
            prompt_tokens: padded tokens of prompts that it processed.
            decoding: whether rows decoded in it.
        """
        if not prompt_tokens:
            self._decode_s = _mean(self._decode_s, seconds, _NEW)
            return
        rest = seconds - self._decode_s if decoding else seconds
        speed = prompt_tokens / max(rest, seconds / 4)
        self._tokens_per_second = _mean(self._tokens_per_second, speed, _NEW * min(1.0, prompt_tokens / _TELLING))


def _mean(old: float, new: float, weight: float) -> float:
    return new if not old else (1 - weight) * old + weight * new
