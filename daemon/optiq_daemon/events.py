"""What happened, in order, kept across restarts and watchable from any kept revision.

Watchers hold a cursor, not a queue: the daemon never waits for one, and one that falls behind what is kept is told so.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping

import msgspec

from optiq_daemon.errors import InvalidRequestError, OutOfRangeError
from optiq_daemon.signals import Changed
from optiq_daemon.store import Store

KEEP = 10_000
BATCH = 256

log = logging.getLogger(__name__)


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """One entry; `time` is in seconds since the epoch."""

    revision: int
    time: float
    type: str
    resource: str
    message: str
    fields: dict[str, str]


class EventLog:
    """Appends to the store and wakes watchers.

    Args:
        keep: entries kept; older ones are compacted away.
    """

    def __init__(self, store: Store, keep: int = KEEP) -> None:
        self._store = store
        self._keep = keep
        self._changed = Changed()
        rows = store.rows("SELECT * FROM events ORDER BY revision DESC LIMIT ?", (keep,))
        self._recent: deque[Event] = deque((_event(row) for row in reversed(rows)), maxlen=keep)
        sequence = store.row("SELECT seq FROM sqlite_sequence WHERE name = 'events'")
        self.last_revision: int = sequence["seq"] if sequence else 0

    @property
    def first_revision(self) -> int:
        """The oldest that is kept; one past the last if none is."""
        return self._recent[0].revision if self._recent else self.last_revision + 1

    def append(
        self, type_: str, resource: str = "", message: str = "", fields: Mapping[str, str] | None = None
    ) -> Event:
        """Record that something happened. Never put prompt text or secrets into it."""
        now = time.time()
        held = dict(fields or {})
        cursor = self._store.execute(
            "INSERT INTO events (time, type, resource, message, fields) VALUES (?, ?, ?, ?, ?)",
            (now, type_, resource, message, msgspec.json.encode(held).decode()),
        )
        event = Event(
            revision=cursor.lastrowid or 0, time=now, type=type_, resource=resource, message=message, fields=held
        )
        self._recent.append(event)
        self.last_revision = event.revision
        if event.revision % max(1, self._keep // 10) == 0:
            self._store.execute("DELETE FROM events WHERE revision <= ?", (event.revision - self._keep,))
        log.info("event=%s resource=%s %s", type_, resource or "-", message)
        self._changed.notify()
        return event

    async def watch(self, from_revision: int = 0) -> AsyncIterator[Event]:
        """Replay from `from_revision` (0: nothing), then live, without end.

        Raises:
            InvalidRequestError: the revision is negative.
            OutOfRangeError: the revision has been compacted away, or is not reached yet.
        """
        if from_revision < 0:
            raise InvalidRequestError.of("from_revision", f"must be 0 or more, is {from_revision}")
        cursor = from_revision or self.last_revision + 1
        if cursor > self.last_revision + 1:
            raise self._out_of_range(cursor, "has not happened yet")
        while True:
            ticket = self._changed.ticket()
            while cursor <= self.last_revision:
                for event in self._read(cursor):
                    yield event
                    cursor = event.revision + 1
            await ticket.wait()

    def _read(self, cursor: int) -> list[Event]:
        if cursor < self.first_revision:
            raise self._out_of_range(cursor, "is no longer kept")
        # Revisions have no gaps inside what is kept: one writer, and failed inserts do not advance the sequence.
        start = cursor - self.first_revision
        return [self._recent[index] for index in range(start, min(start + BATCH, len(self._recent)))]

    def _out_of_range(self, cursor: int, why: str) -> OutOfRangeError:
        return OutOfRangeError(
            f"revision {cursor} {why}; kept are {self.first_revision} to {self.last_revision}",
            reason="REVISION_OUT_OF_RANGE",
            metadata={"first_revision": str(self.first_revision), "last_revision": str(self.last_revision)},
        )


def _event(row: sqlite3.Row) -> Event:
    return msgspec.convert({**dict(row), "fields": msgspec.json.decode(str(row["fields"]))}, Event)
