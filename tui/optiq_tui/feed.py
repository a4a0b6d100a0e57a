"""The one place where the daemon's streams become a view.

Streams write here as fast as they like; :meth:`Feed.take` makes at most one view of all that changed since the last, so
that a flood of updates costs one refresh.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from types import MappingProxyType

from optiq_client import Adapter, Event, Job, Progress, Status
from optiq_tui.view import (
    SAMPLES,
    AdapterDetail,
    JobLog,
    Lane,
    LinkState,
    Part,
    PlanState,
    Routing,
    Trends,
    View,
)

KEPT_EVENTS = 1000
KEPT_POINTS = 5000
KEPT_LOG_LINES = 200


class Feed:
    """What is known now. Survives the connection, so that a lost daemon's last picture stays.

    Args:
        now: the clock.
    """

    def __init__(self, now: Callable[[], datetime]) -> None:
        self.view = View()
        self.adapters: dict[str, Adapter] = {}
        self.jobs: dict[str, Job] = {}
        self._now = now
        self._curves: dict[str, dict[int, Progress]] = {}
        self._events: deque[Event] = deque(maxlen=KEPT_EVENTS)
        self._lanes: list[Lane] = []
        self._log = ""
        self._log_lines: deque[str] = deque(maxlen=KEPT_LOG_LINES)
        self._changed: set[Part] = set()
        self._dirty = asyncio.Event()

    @property
    def last_revision(self) -> int:
        """Revision of the newest event; 0 if there is none."""
        return self._events[-1].revision if self._events else 0

    def points(self, job: str) -> int:
        """How much of a job's curve is known."""
        return len(self._curves.get(job, ()))

    # Setters

    def set_link(self, link: LinkState) -> None:
        """The connection came up, or went away."""
        self._set(Part.LINK, link=link)

    def set_status(self, status: Status) -> None:
        """A new status; its figures are one more sample."""
        trends, engine = self.view.trends, status.engine
        self._set(
            Part.STATUS,
            status=status,
            seen=self._now(),
            trends=Trends(
                _more(trends.tokens_per_second, engine.tokens_per_second),
                _more(trends.queued, engine.queued_requests),
                _more(trends.rows, engine.active_rows),
            ),
        )

    def set_adapters(self, adapters: dict[str, Adapter]) -> None:
        """The whole list, by name."""
        self.adapters = adapters
        self._mark(Part.ADAPTERS)

    def put_adapter(self, adapter: Adapter) -> None:
        """One adapter is new or changed."""
        self.adapters[adapter.name] = adapter
        self._mark(Part.ADAPTERS)

    def drop_adapter(self, name: str) -> None:
        """One adapter is gone."""
        self.adapters.pop(name, None)
        self._mark(Part.ADAPTERS)

    def set_jobs(self, jobs: Sequence[Job]) -> None:
        """The whole list, newest first."""
        self.jobs = {job.name: job for job in jobs}
        self._curves = {name: points for name, points in self._curves.items() if name in self.jobs}
        self._mark(Part.JOBS)

    def put_progress(self, job: Job, progress: Progress | None) -> None:
        """One job changed; ``progress`` is a point of its curve. A resumed job's points replace the old ones."""
        if job.name in self.jobs:
            self.jobs[job.name] = job
        if progress is not None:
            points = self._curves.setdefault(job.name, {})
            points[progress.step] = progress
            if len(points) > KEPT_POINTS:
                del points[min(points)]
        self._mark(Part.JOBS)

    def put_event(self, event: Event) -> None:
        """One more event; one that is already here is dropped."""
        if event.revision > self.last_revision:
            self._events.append(event)
            self._mark(Part.EVENTS)

    def set_routing(self, routing: Routing) -> None:
        """Routes and tenants were read again."""
        if routing != self.view.routing:
            self._set(Part.ROUTING, routing=routing)

    def set_detail(self, detail: AdapterDetail | None) -> None:
        """Another adapter is looked at, or its versions were read."""
        if detail != self.view.detail:
            self._set(Part.DETAIL, detail=detail)

    def set_plan(self, plan: PlanState) -> None:
        """The plan of the submit form moved on."""
        self._set(Part.PLAN, plan=plan)

    def set_log(self, name: str) -> None:
        """The log of another job is looked at."""
        self._log = name
        self._log_lines.clear()
        self._mark(Part.LOG)

    def put_log(self, name: str, lines: Sequence[str]) -> None:
        """The trainer of a job wrote more."""
        if name == self._log:
            self._log_lines += lines
            self._mark(Part.LOG)

    def set_lanes(self, lanes: Sequence[Lane]) -> None:
        """New answers were asked for."""
        self._lanes = list(lanes)
        self._mark(Part.PLAY)

    def put_lane(self, index: int, lane: Lane) -> None:
        """One answer moved on."""
        self._lanes[index] = lane
        self._mark(Part.PLAY)

    # Taking

    async def changed(self) -> None:
        """Wait until there is something to take."""
        await self._dirty.wait()

    def take(self) -> tuple[View, frozenset[Part]]:
        """The newest view, and which parts of it are new since the last call."""
        changed, self._changed = frozenset(self._changed), set()
        self._dirty.clear()
        view = self.view
        if Part.ADAPTERS in changed:
            view = replace(view, adapters=tuple(self.adapters[name] for name in sorted(self.adapters)))
        if Part.JOBS in changed:
            curves = {name: tuple(points[s] for s in sorted(points)) for name, points in self._curves.items()}
            view = replace(view, jobs=tuple(self.jobs.values()), curves=MappingProxyType(curves))
        if Part.EVENTS in changed:
            view = replace(view, events=tuple(self._events))
        if Part.PLAY in changed:
            view = replace(view, lanes=tuple(self._lanes))
        if Part.LOG in changed:
            view = replace(view, log=JobLog(self._log, tuple(self._log_lines)))
        self.view = view
        return view, changed

    def _set(self, part: Part, **values: object) -> None:
        self.view = replace(self.view, **values)  # type: ignore[arg-type]
        self._mark(part)

    def _mark(self, part: Part) -> None:
        self._changed.add(part)
        self._dirty.set()


def _more(samples: tuple[float, ...], value: float) -> tuple[float, ...]:
    return (*samples, float(value))[-SAMPLES:]
