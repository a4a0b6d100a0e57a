"""The engine's queue: bounded, first in first out, every waiting request knows its position."""

from __future__ import annotations

from collections import deque

from .row import Row
from .types import Queued, QueueFullError


class Admission:
    """Requests that wait for a place in the batch.

    Args:
        max_queue: requests that may wait beyond those for which there is a place already.
    """

    def __init__(self, max_queue: int) -> None:
        self._max_queue = max_queue
        self._waiting: deque[Row] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, row: Row, free: int) -> None:
        """Put a row at the end.

        Args:
            row: the new row.
            free: places in the batch.

        Raises:
            QueueFullError: ``max_queue`` rows wait already.
        """
        free -= len(self._waiting)
        if free <= 0 and len(self._waiting) >= self._max_queue:
            raise QueueFullError(f"{len(self._waiting)} requests wait already")
        self._waiting.append(row)
        if free <= 0:
            row.sink(Queued(len(self._waiting)))

    def cancel(self, request_id: str) -> None:
        """Mark a waiting request; it ends in the next :meth:`drop_cancelled`."""
        for row in self._waiting:
            if row.request.request_id == request_id:
                row.cancelled = True

    def drop_cancelled(self) -> list[Row]:
        """Take the rows that were cancelled while they waited."""
        gone = [row for row in self._waiting if row.cancelled]
        for row in gone:
            self._waiting.remove(row)
        if gone:
            self._tell_positions()
        return gone

    def take(self, free: int) -> list[Row]:
        """Take up to ``free`` rows from the front."""
        taken = [self._waiting.popleft() for _ in range(min(free, len(self._waiting)))]
        if taken:
            self._tell_positions()
        return taken

    def clear(self) -> list[Row]:
        """Take everything, without a word to anyone."""
        rows = list(self._waiting)
        self._waiting.clear()
        return rows

    def _tell_positions(self) -> None:
        for position, row in enumerate(self._waiting, 1):
            row.sink(Queued(position))
