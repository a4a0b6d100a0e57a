"""How many prompt tokens fit between two decode steps.

While rows decode, a chunk of prompts may take about as long as `_DECODE_STEPS` decode steps, so that streams slow down
but never stall; an urgent prompt's may take twice as long. What a chunk takes is measured as they run: something
whatever its size (the weights are read), something for each token, and something for each token and each one before
it (attention), so that chunks become smaller the further a long prompt gets. While nothing decodes, chunks have their
full size, unless that takes so long that a newcomer would notice.
"""

from __future__ import annotations

import numpy as np

_DECODE_STEPS = 3.0
_URGENT_STEPS = 6.0
# What a newcomer waits for at most before its own prompt begins.
_LONGEST_S = 0.3
_SHORTEST_S = 0.05
# Before anything is known.
_FIRST = 32
# A prompt moves on, whatever the chunks cost: so many tokens cost less than twice what one does.
_SMALLEST = 16
# Weight of a new measurement.
_NEW = 0.3
# What older chunks still count, per chunk.
_REMEMBERED = 0.95
# Of what tokens and pairs cost, as if measured before: it keeps the fit from following noise.
_PRIOR = 1e-3


class Pace:
    """Chooses the size of a chunk.

    Args:
        limit: tokens of a chunk at most.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._decode_s = 0.0
        self._cost = ChunkCost()

    def chunk(self, context: int = 0, urgent: bool = False, *, decoding: bool) -> int:
        """Return the prompt tokens, at least one, to process before the next decode step.

        Args:
            context: tokens before them.
            urgent: of urgent prompts.
            decoding: whether rows decode.
        """
        if not self._cost.known:
            return self._limit if not decoding else min(self._limit, _FIRST)
        steps = _URGENT_STEPS if urgent else _DECODE_STEPS
        seconds = max(_SHORTEST_S, steps * self._decode_s) if decoding else _LONGEST_S
        least = min(_SMALLEST if decoding else _FIRST, self._limit)
        return max(least, min(self._limit, self._cost.tokens(seconds, context)))

    def observe(self, seconds: float, *, prompt_tokens: int, decoding: bool, context: int = 0) -> None:
        """Learn from one step.

        Args:
            seconds: from its begin to its end.
            prompt_tokens: padded tokens of prompts that it processed.
            decoding: whether rows decoded in it.
            context: tokens before these.
        """
        if not prompt_tokens:
            self._decode_s = _mean(self._decode_s, seconds, _NEW)
            return
        rest = seconds - self._decode_s if decoding else seconds
        self._cost.observe(max(rest, seconds / 4), prompt_tokens, context)


class ChunkCost:
    """Seconds of a chunk: ``a + b * tokens + c * tokens * context``, none of them negative, fitted to the last ones."""

    def __init__(self) -> None:
        self.known = False
        self._products = np.zeros((3, 3))
        self._seconds = np.zeros(3)
        self._fit = np.zeros(3)

    def observe(self, seconds: float, tokens: int, context: int) -> None:
        """Learn from a chunk: its relative error counts, so that small ones do as much as large ones."""
        row = np.array([1.0, tokens, tokens * context]) / seconds
        self._products = _REMEMBERED * self._products + np.outer(row, row)
        self._seconds = _REMEMBERED * self._seconds + row
        self._fit = _least_squares(self._products, self._seconds)
        self.known = True

    def tokens(self, seconds: float, context: int) -> int:
        """Return how many tokens behind so many others take no longer than that."""
        constant, token, pair = self._fit
        each = token + pair * context
        return int((seconds - constant) / each) if each > 0 else 1 << 30


def _least_squares(products: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Solve the normal equations; what would be negative is left out, the constant part first."""
    used = [0, 1, 2]
    scale = np.sqrt(np.diagonal(products)) + 1e-30
    while True:
        inner = (products / np.outer(scale, scale))[np.ix_(used, used)]
        solved = np.linalg.solve(inner + _PRIOR * np.eye(len(used)), (targets / scale)[used])
        negative = [i for i, value in zip(used, solved, strict=True) if value < 0]
        if not negative:
            fit = np.zeros(3)
            fit[used] = solved / scale[used]
            return fit
        used.remove(negative[0])


def _mean(old: float, new: float, weight: float) -> float:
    return new if not old else (1 - weight) * old + weight * new
