"""Keeps the feed filled: dials, watches, and dials again when the daemon goes away."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import datetime
from typing import TypeVar

from optiq_client import AsyncClient, ConnectionFailed, OptiqClientError, PermissionDenied
from optiq_tui.feed import Feed
from optiq_tui.messages import Look, PlanWanted, PlayWanted, ViewChanged
from optiq_tui.plans import Plans
from optiq_tui.player import Player
from optiq_tui.view import Link, LinkState
from optiq_tui.watches import Watches

T = TypeVar("T")

REFRESH_SECONDS = 0.1
# How long to wait more, for each second that the loop was late, and at most.
LATE_FACTOR = 2.0
MOST_SECONDS = 0.3
DIAL_TIMEOUT = 3.0
RETRY_DELAYS = (0.5, 1.0, 2.0, 4.0, 5.0)


class Connection:
    """One daemon, for as long as the dashboard runs.

    Args:
        address: ``unix:/path`` or ``host:port``.
        tenant: whose adapters and jobs.
        post: takes the messages; called in the event loop.
        now: the clock.
        retry_delays: seconds before the first, second, … further try; the last one repeats.
    """

    def __init__(
        self,
        address: str,
        tenant: str,
        post: Callable[[ViewChanged], object],
        *,
        now: Callable[[], datetime],
        retry_delays: tuple[float, ...] = RETRY_DELAYS,
    ) -> None:
        self.address = address
        self.tenant = tenant
        self.feed = Feed(now)
        self._post = post
        self._retry_delays = retry_delays
        self._retry_now = asyncio.Event()
        self._client: AsyncClient | None = None
        self._look = Look()
        self._watches: Watches | None = None
        self.plans = Plans(self.feed, self._connected)
        self.player = Player(self.feed, self._connected)

    async def run(self) -> None:
        """Dial, watch, and dial again, until cancelled."""
        flusher = asyncio.create_task(self._flush())
        failures = 0
        try:
            self.feed.set_link(LinkState(Link.CONNECTING, self.address))
            while True:
                connected, error = await self._session()
                failures = 1 if connected else failures + 1
                delay = self._retry_delays[min(failures, len(self._retry_delays)) - 1]
                link = Link.REFUSED if isinstance(error, PermissionDenied) else Link.LOST
                self.feed.set_link(LinkState(link, self.address, error.message.splitlines()[0], delay))
                self._retry_now.clear()
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._retry_now.wait(), delay)
        finally:
            flusher.cancel()
            self.plans.stop()
            self.player.stop()

    def retry(self) -> None:
        """Try now instead of at the end of the delay, or read the lists again if connected."""
        self._retry_now.set()
        if self._watches is not None:
            self._watches.refresh()

    def look(self, look: Look) -> None:
        """Read what this look needs from now on."""
        self._look = look
        if self._watches is not None:
            self._watches.look(look)

    def plan(self, wanted: PlanWanted) -> None:
        """Plan this job once it has not changed for a moment."""
        self.plans.want(wanted.config)

    def play(self, wanted: PlayWanted) -> None:
        """Ask for these answers, in place of those that run."""
        self.player.play(wanted)

    async def act(self, action: Callable[[AsyncClient], Awaitable[T]]) -> T:
        """Run a call on the open connection.

        Raises:
            OptiqClientError: as the call does; ConnectionFailed if there is no connection.
        """
        result = await action(self._connected())
        if self._watches is not None:
            self._watches.refresh()
        return result

    def _connected(self) -> AsyncClient:
        if self._client is None:
            raise ConnectionFailed("not connected to the daemon")
        return self._client

    async def _session(self) -> tuple[bool, OptiqClientError]:
        """One connection from dial to loss; whether it ever came up, and how it ended."""
        client = AsyncClient(self.address, tenant=self.tenant)
        connected = False
        lost: OptiqClientError | None = None
        try:
            await client.runtime.status(timeout=DIAL_TIMEOUT)  # answers at once, or there is nobody
            connected = True
            self._client = client
            self._watches = Watches(client, self.feed)
            self._watches.look(self._look)
            self.feed.set_link(LinkState(Link.CONNECTED, self.address))
            await self._watches.run()
        except* OptiqClientError as errors:
            lost = _first(errors)
        finally:
            self._client = self._watches = None
            await client.close()
        assert lost is not None, "the watches end only with an error"
        return connected, lost

    async def _flush(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self.feed.changed()
            view, parts = self.feed.take()
            self._post(ViewChanged(view, parts))
            began = loop.time()
            await asyncio.sleep(REFRESH_SECONDS)
            # Where drawing takes the loop that long, keys come before news.
            await asyncio.sleep(min(MOST_SECONDS, LATE_FACTOR * (loop.time() - began - REFRESH_SECONDS)))


def _first(errors: BaseExceptionGroup[OptiqClientError]) -> OptiqClientError:
    for error in errors.exceptions:
        return _first(error) if isinstance(error, BaseExceptionGroup) else error
    raise AssertionError("an exception group is never empty")
