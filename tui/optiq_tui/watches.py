"""What is read from a connected daemon, and when."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from typing import TypeVar

from optiq_client import (
    Adapter,
    AsyncClient,
    AsyncStream,
    ChangeType,
    ConnectionFailed,
    InvalidRequest,
    JobState,
    NotFound,
    OptiqClientError,
    PermissionDenied,
    Route,
    Tenant,
    Unavailable,
)
from optiq_tui.feed import KEPT_LOG_LINES, Feed
from optiq_tui.messages import Look
from optiq_tui.view import AdapterDetail, RouteDetail, Routing

T = TypeVar("T")

BURST_SECONDS = 0.1
JOB_LIST_SECONDS = 5.0
ROUTING_SECONDS = 2.0
TELEMETRY_SECONDS = 1.0
WATCHED_JOBS = 8


class Watches:
    """The streams and readings of one connection.

    Args:
        client: a client that has been answered.
        feed: where everything goes.
    """

    def __init__(self, client: AsyncClient, feed: Feed) -> None:
        self._client = client
        self._feed = feed
        self._look = Look()
        self._jobs_stale = asyncio.Event()
        self._routing_stale = asyncio.Event()
        self._detail_stale = asyncio.Event()
        self._log_stale = asyncio.Event()
        self._curves: dict[str, asyncio.Task[None]] = {}

    async def run(self) -> None:
        """Watch until something fails.

        Raises:
            ExceptionGroup: of OptiqClientErrors.
        """
        try:
            async with asyncio.TaskGroup() as group:
                for watch in (
                    self._status,
                    self._adapters,
                    self._jobs,
                    self._events,
                    self._routing,
                    self._detail,
                    self._log,
                ):
                    group.create_task(watch())
        finally:
            for task in self._curves.values():
                task.cancel()

    def look(self, look: Look) -> None:
        """Something else is looked at."""
        before, self._look = self._look, look
        if look.jobs != before.jobs:
            self._jobs_stale.set()
        if (look.routing, look.route) != (before.routing, before.route):
            self._routing_stale.set()
        if look.adapter != before.adapter:
            self._detail_stale.set()
        if look.log != before.log:
            self._log_stale.set()

    def refresh(self) -> None:
        """Read everything again now."""
        self._jobs_stale.set()
        self._routing_stale.set()
        self._detail_stale.set()

    # Streams

    async def _status(self) -> None:
        async for status in _endless(self._client.runtime.watch(interval=TELEMETRY_SECONDS)):
            self._feed.set_status(status)

    async def _adapters(self) -> None:
        listed: dict[str, Adapter] = {}
        listing = True
        async for change in _endless(self._client.adapters.watch()):
            if change.type is ChangeType.LIST_END:
                listing = False
                self._feed.set_adapters(listed)
            elif change.adapter is None:
                continue
            elif change.type is ChangeType.DELETED:
                self._feed.drop_adapter(change.adapter.name)
            elif listing:
                listed[change.adapter.name] = change.adapter
            else:
                self._feed.put_adapter(change.adapter)
                if change.adapter.name == self._look.adapter:
                    self._detail_stale.set()

    async def _events(self) -> None:
        start = self._feed.last_revision + 1
        try:
            await self._follow_events(start)
        except InvalidRequest:  # that far back is no longer kept
            await self._follow_events(0)

    async def _follow_events(self, start: int) -> None:
        async for event in _endless(self._client.events.watch(from_revision=start)):
            self._feed.put_event(event)
            if event.type.startswith("job."):
                self._jobs_stale.set()
            elif event.type.startswith(("route.", "tenant.")):
                self._routing_stale.set()

    # Jobs

    async def _jobs(self) -> None:
        while True:
            self._jobs_stale.clear()
            self._feed.set_jobs(await self._client.training.list())
            self._follow_curves()
            await _stale_or(self._jobs_stale, JOB_LIST_SECONDS)

    def _follow_curves(self) -> None:
        """Watch the jobs that can still move, and those that are looked at."""
        jobs = self._feed.jobs
        wanted = [name for name, job in jobs.items() if job.state in {JobState.RUNNING, JobState.PAUSED}][:WATCHED_JOBS]
        for name in self._look.jobs:
            if name in jobs and name not in wanted and not (jobs[name].state.ended and self._feed.points(name)):
                wanted.append(name)
        for name, task in list(self._curves.items()):
            if task.done() or name not in wanted:
                task.cancel()
                del self._curves[name]
        for name in wanted:
            if name not in self._curves:
                self._curves[name] = asyncio.create_task(self._follow_curve(name))

    async def _follow_curve(self, name: str) -> None:
        # The other watches notice a lost connection; a deleted job is no error here.
        with suppress(OptiqClientError):
            async with self._client.training.watch(name) as updates:
                async for update in updates:
                    self._feed.put_progress(update.job, update.progress)
            self._jobs_stale.set()

    # The log of the job that is looked at

    async def _log(self) -> None:
        while True:
            self._log_stale.clear()
            name = self._look.log
            self._feed.set_log(name)
            following = asyncio.create_task(self._follow_log(name))
            try:
                await self._log_stale.wait()
            finally:
                following.cancel()

    async def _follow_log(self, name: str) -> None:
        # The other watches notice a lost connection; a deleted job is no error here.
        with suppress(OptiqClientError):
            if name:
                async with self._client.training.log(name, lines=KEPT_LOG_LINES, follow=True) as groups:
                    async for lines in groups:
                        self._feed.put_log(name, lines)

    # Readings that only a screen that looks at them needs

    async def _routing(self) -> None:
        while True:
            self._routing_stale.clear()
            if self._look.routing:
                self._feed.set_routing(await self._read_routing(self._look.route))
            await _stale_or(self._routing_stale, ROUTING_SECONDS if self._look.routing else None)

    async def _read_routing(self, name: str) -> Routing:
        routes: Sequence[Route] = ()
        tenants: Sequence[Tenant] = ()
        detail, error = None, ""
        try:
            routes = await self._client.routes.list()
            tenants = await self._client.tenants.list()
            if any(route.name == name for route in routes):
                decisions = await self._client.routes.decisions(name)
                shadows = await self._client.routes.shadow_answers(name)
                detail = RouteDetail(name, tuple(decisions), tuple(shadows))
        except (PermissionDenied, NotFound) as problem:
            error = problem.message
        return Routing(tuple(routes), tuple(tenants), detail, error)

    async def _detail(self) -> None:
        while True:
            self._detail_stale.clear()
            name = self._look.adapter
            self._feed.set_detail(await self._read_detail(name) if name else None)
            await _stale_or(self._detail_stale, None)

    async def _read_detail(self, name: str) -> AdapterDetail:
        digest = adapter.digest if (adapter := self._feed.adapters.get(name)) else ""
        try:
            versions = await self._client.adapters.history(name)
            modules = await self._client.adapters.modules(name) if digest else []
            return AdapterDetail(name, digest, tuple(versions), {module.path: module.rank for module in modules})
        except Unavailable:
            raise
        except OptiqClientError as problem:  # retired in between, or nothing of it was ever served
            return AdapterDetail(name, digest, error=problem.message)


async def _stale_or(stale: asyncio.Event, seconds: float | None) -> None:
    """Wait until something is stale, or for so long; a burst of reasons is one."""
    with suppress(TimeoutError):
        await asyncio.wait_for(stale.wait(), seconds)
    await asyncio.sleep(BURST_SECONDS)


async def _endless(stream: AsyncStream[T]) -> AsyncIterator[T]:
    """The stream's items; its end is a lost connection, because these watches end only when the daemon stops."""
    async with stream:
        async for item in stream:
            yield item
    raise ConnectionFailed("the daemon closed the connection")
