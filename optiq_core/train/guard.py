"""Keeps a run below its ceiling: each step is judged by what the ones before it have taken."""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx

# A step of other shapes may take a little more per token than any before it.
_CAUTION = 1.05


class ShortOfMemoryError(Exception):
    """Not even one row fits.

    Attributes:
        needed, room: bytes beyond what the process has now.
    """

    def __init__(self, needed: int, room: int) -> None:
        super().__init__(f"the next step needs {needed / 1e9:.2f} GB more and there are {room / 1e9:.2f} GB")
        self.needed, self.room = needed, room


class MemoryGuard:
    """Says how many rows of a batch to hold at a time.

    Args:
        limit_bytes: array memory that the process may have, 0 for no limit.
        free: bytes that the system has left for it, asked before each step; None where that is not known.
    """

    def __init__(self, limit_bytes: int = 0, free: Callable[[], int] | None = None) -> None:
        self._limit = limit_bytes
        self._free = free
        self._per_token = 0.0
        self._before = 0
        self.peak = 0

    def rows(self, rows: int, tokens: Callable[[int], int]) -> int:
        """The most rows, up to as many as asked, with which the next step stays below the ceiling.

        Args:
            tokens: of the largest part, paddings counted, where parts have so many rows.

        Raises:
            ShortOfMemoryError: there are none.
        """
        if not self._per_token:
            return rows
        room = self._room()
        while (needed := int(self._per_token * tokens(rows) * _CAUTION)) > room:
            if rows == 1:
                raise ShortOfMemoryError(needed, room)
            rows //= 2
        return rows

    def begin(self) -> None:
        """A step begins."""
        self.peak = max(self.peak, mx.get_peak_memory())
        mx.reset_peak_memory()
        self._before = mx.get_active_memory()

    def end(self, tokens: int) -> int:
        """A step whose largest part had so many tokens has ended; returns its peak in bytes."""
        peak = mx.get_peak_memory()
        self.peak = max(self.peak, peak)
        self._per_token = max(self._per_token, (peak - self._before) / tokens)
        return peak

    def _room(self) -> int:
        active = mx.get_active_memory()
        room = self._limit - active if self._limit else 1 << 62
        if self._free is not None:
            # What MLX keeps for reuse is free for the step.
            room = min(room, self._free() + mx.get_cache_memory())
        return room
