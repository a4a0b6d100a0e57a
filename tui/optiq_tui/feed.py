"""The newest picture of the daemon, and which parts of it the screen has not seen yet.

Streams write here as fast as they like; :meth:`Feed.take` hands out at most one message for each part, so a flood of
updates costs one refresh.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from textual.message import Message

from optiq_client import Adapter, Event, Job, Progress, Status
from optiq_tui.messages import AdaptersArrived, EventsArrived, JobsArrived, StatusArrived

KEPT_EVENTS = 500
KEPT_POINTS = 5000


class Feed:
    """What is known now. Survives the connection, so that a lost daemon's last picture stays."""

    def __init__(self) -> None:
        self.status: Status | None = None
        self.adapters: dict[str, Adapter] = {}
        self.jobs: dict[str, Job] = {}
        self.curves: dict[str, dict[int, Progress]] = {}
        self.events: deque[Event] = deque(maxlen=KEPT_EVENTS)
        self._changed: dict[str, None] = {}
        self._dirty = asyncio.Event()
        self._make: dict[str, Callable[[], Message]] = {
            "status": self._status,
            "adapters": lambda: AdaptersArrived(tuple(self.adapters[n] for n in sorted(self.adapters))),
            "jobs": self._jobs,
            "events": lambda: EventsArrived(tuple(self.events)),
        }

    @property
    def last_revision(self) -> int:
        """Revision of the newest event; 0 if there is none."""
        return self.events[-1].revision if self.events else 0

    def set_status(self, status: Status) -> None:
        """A new status."""
        self.status = status
        self._mark("status")

    def set_adapters(self, adapters: dict[str, Adapter]) -> None:
        """The whole list, by name."""
        self.adapters = adapters
        self._mark("adapters")

    def put_adapter(self, adapter: Adapter) -> None:
        """One adapter is new or changed."""
        self.adapters[adapter.name] = adapter
        self._mark("adapters")

    def drop_adapter(self, name: str) -> None:
        """One adapter is gone."""
        self.adapters.pop(name, None)
        self._mark("adapters")

    def set_jobs(self, jobs: list[Job]) -> None:
        """The whole list, newest first."""
        self.jobs = {job.name: job for job in jobs}
        self.curves = {name: points for name, points in self.curves.items() if name in self.jobs}
        self._mark("jobs")

    def put_progress(self, job: Job, progress: Progress | None) -> None:
        """One job changed; ``progress`` is a point of its curve. A resumed job's points replace the old ones."""
        if job.name in self.jobs:
            self.jobs[job.name] = job
        if progress is not None:
            points = self.curves.setdefault(job.name, {})
            points[progress.step] = progress
            if len(points) > KEPT_POINTS:
                del points[min(points)]
        self._mark("jobs")

    def put_event(self, event: Event) -> None:
        """One more event; one that is already here is dropped."""
        if event.revision > self.last_revision:
            self.events.append(event)
            self._mark("events")

    async def changed(self) -> None:
        """Wait until there is something to take."""
        await self._dirty.wait()

    def take(self) -> list[Message]:
        """One message for each part that changed since the last call."""
        parts, self._changed = list(self._changed), {}
        self._dirty.clear()
        return [self._make[part]() for part in parts]

    def _mark(self, part: str) -> None:
        self._changed[part] = None
        self._dirty.set()

    def _status(self) -> Message:
        assert self.status is not None
        return StatusArrived(self.status)

    def _jobs(self) -> Message:
        curves = {name: tuple(points[s] for s in sorted(points)) for name, points in self.curves.items()}
        return JobsArrived(tuple(self.jobs.values()), curves)
