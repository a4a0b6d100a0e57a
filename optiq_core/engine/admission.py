"""The engine's queue: bounded, first in first out, every waiting request knows its position."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

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

    def check(self, free: int) -> None:
        """Refuse one more row if there is no room to wait.

        Args:
            free: places in the batch.

        Raises:
            QueueFullError: ``max_queue`` rows wait already beyond the free places.
        """
        if len(self._waiting) >= self._max_queue + max(free, 0):
            raise QueueFullError(f"{len(self._waiting)} requests wait already")

    def add(self, row: Row) -> None:
        """Put a row at the end."""
        self._waiting.append(row)

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
        return gone

    def take(self, fits: Callable[[Row], bool]) -> Row | None:
        """Take the first row if it fits; nobody overtakes it if it does not."""
        return self._waiting.popleft() if self._waiting and fits(self._waiting[0]) else None

    def tell_positions(self) -> None:
        """Send every waiting row its position, if it has changed."""
        for position, row in enumerate(self._waiting, 1):
            if row.position != position:
                row.position = position
                row.sink(Queued(position))

    def clear(self) -> list[Row]:
        """Take everything, without a word to anyone."""
        rows = list(self._waiting)
        self._waiting.clear()
        return rows
