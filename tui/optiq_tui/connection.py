"""Keeps the feed filled: dials, watches, and dials again when the daemon goes away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import TypeVar

from textual.message import Message

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
)
from optiq_tui.feed import Feed
from optiq_tui.messages import Link, LinkChanged

T = TypeVar("T")

REFRESH_SECONDS = 0.1
JOB_LIST_SECONDS = 5.0
TELEMETRY_SECONDS = 1.0
DIAL_TIMEOUT = 3.0
RETRY_DELAYS = (0.5, 1.0, 2.0, 4.0, 5.0)
WATCHED_JOBS = 8


class Connection:
    """One daemon, for as long as the dashboard runs.

    Args:
        address: ``unix:/path`` or ``host:port``.
        tenant: whose adapters and jobs.
        post: takes the messages; called in the event loop.
        retry_delays: seconds before the first, second, … further try; the last one repeats.
    """

    def __init__(
        self,
        address: str,
        tenant: str,
        post: Callable[[Message], object],
        *,
        retry_delays: tuple[float, ...] = RETRY_DELAYS,
    ) -> None:
        self.address = address
        self.tenant = tenant
        self.feed = Feed()
        self._post = post
        self._retry_delays = retry_delays
        self._retry_now = asyncio.Event()
        self._jobs_stale = asyncio.Event()
        self._curve_tasks: dict[str, asyncio.Task[None]] = {}
        self._selected_job = ""
        self._client: AsyncClient | None = None

    async def run(self) -> None:
        """Dial, watch, and dial again, until cancelled."""
        flusher = asyncio.create_task(self._flush())
        failures = 0
        try:
            self._post(LinkChanged(Link.CONNECTING, self.address))
            while True:
                connected, error = await self._session()
                failures = 1 if connected else failures + 1
                delay = self._retry_delays[min(failures, len(self._retry_delays)) - 1]
                self._post(LinkChanged(Link.LOST, self.address, error.message.splitlines()[0], delay))
                self._retry_now.clear()
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._retry_now.wait(), delay)
        finally:
            flusher.cancel()

    def retry(self) -> None:
        """Try now instead of at the end of the delay, or read the lists again if connected."""
        self._retry_now.set()
        self._jobs_stale.set()

    def select_job(self, name: str) -> None:
        """The job whose curve is looked at."""
        if name != self._selected_job:
            self._selected_job = name
            self._jobs_stale.set()

    async def act(self, action: Callable[[AsyncClient], Awaitable[T]]) -> T:
        """Run a call on the open connection.

        Raises:
            OptiqClientError: as the call does; ConnectionFailed if there is no connection.
        """
        if self._client is None:
            raise ConnectionFailed("not connected to the daemon")
        result = await action(self._client)
        self._jobs_stale.set()
        return result

    async def _session(self) -> tuple[bool, OptiqClientError]:
        """One connection from dial to loss; whether it ever came up, and how it ended."""
        client = AsyncClient(self.address, tenant=self.tenant)
        connected = False
        lost: OptiqClientError | None = None
        try:
            await client.runtime.status(timeout=DIAL_TIMEOUT)  # answers at once, or there is nobody
            connected = True
            self._client = client
            self._post(LinkChanged(Link.CONNECTED, self.address))
            async with asyncio.TaskGroup() as group:
                for watch in (self._watch_status, self._watch_adapters, self._watch_jobs, self._watch_events):
                    group.create_task(watch(client))
        except* OptiqClientError as errors:
            lost = _first(errors)
        finally:
            self._client = None
            for task in self._curve_tasks.values():
                task.cancel()
            self._curve_tasks.clear()
            await client.close()
        assert lost is not None, "the watches end only with an error"
        return connected, lost

    async def _watch_status(self, client: AsyncClient) -> None:
        async for status in _endless(client.runtime.watch(interval=TELEMETRY_SECONDS)):
            self.feed.set_status(status)

    async def _watch_adapters(self, client: AsyncClient) -> None:
        listed: dict[str, Adapter] = {}
        listing = True
        async for change in _endless(client.adapters.watch()):
            if change.type is ChangeType.LIST_END:
                listing = False
                self.feed.set_adapters(listed)
            elif change.adapter is None:
                continue
            elif change.type is ChangeType.DELETED:
                self.feed.drop_adapter(change.adapter.name)
            elif listing:
                listed[change.adapter.name] = change.adapter
            else:
                self.feed.put_adapter(change.adapter)

    async def _watch_events(self, client: AsyncClient) -> None:
        start = self.feed.last_revision + 1
        try:
            await self._follow_events(client, start)
        except InvalidRequest:  # that far back is no longer kept
            await self._follow_events(client, 0)

    async def _follow_events(self, client: AsyncClient, start: int) -> None:
        async for event in _endless(client.events.watch(from_revision=start)):
            self.feed.put_event(event)
            if event.type.startswith("job."):
                self._jobs_stale.set()

    async def _watch_jobs(self, client: AsyncClient) -> None:
        while True:
            self._jobs_stale.clear()
            self.feed.set_jobs(await client.training.list())
            self._follow_curves(client)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._jobs_stale.wait(), JOB_LIST_SECONDS)
            await asyncio.sleep(REFRESH_SECONDS)  # a burst of events is one reading

    def _follow_curves(self, client: AsyncClient) -> None:
        """Watch the jobs that can still move, and the one that is looked at."""
        jobs = self.feed.jobs
        wanted = [name for name, job in jobs.items() if job.state in {JobState.RUNNING, JobState.PAUSED}][:WATCHED_JOBS]
        if self._selected_job in jobs and self._selected_job not in wanted:
            seen = len(self.feed.curves.get(self._selected_job, ()))
            if not jobs[self._selected_job].state.ended or not seen:
                wanted.append(self._selected_job)
        for name, task in list(self._curve_tasks.items()):
            if task.done() or name not in wanted:
                task.cancel()
                del self._curve_tasks[name]
        for name in wanted:
            if name not in self._curve_tasks:
                self._curve_tasks[name] = asyncio.create_task(self._follow_curve(client, name))

    async def _follow_curve(self, client: AsyncClient, name: str) -> None:
        # The other watches notice a lost connection; a deleted job is no error here.
        with suppress(NotFound, OptiqClientError):
            async with client.training.watch(name) as updates:
                async for update in updates:
                    self.feed.put_progress(update.job, update.progress)
            self._jobs_stale.set()

    async def _flush(self) -> None:
        while True:
            await self.feed.changed()
            for message in self.feed.take():
                self._post(message)
            await asyncio.sleep(REFRESH_SECONDS)


async def _endless(stream: AsyncStream[T]) -> AsyncIterator[T]:
    """The stream's items; its end is a lost connection, because these watches end only when the daemon stops."""
    async with stream:
        async for item in stream:
            yield item
    raise ConnectionFailed("the daemon closed the connection")


def _first(errors: BaseExceptionGroup[OptiqClientError]) -> OptiqClientError:
    for error in errors.exceptions:
        return _first(error) if isinstance(error, BaseExceptionGroup) else error
    raise AssertionError("an exception group is never empty")
