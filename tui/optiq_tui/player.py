"""Several answers to one prompt, asked for at once so that they share forward passes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

from optiq_client import AsyncClient, AsyncGeneration, Chunk, Finished, OptiqClientError, Queued, Started, humanize
from optiq_tui.feed import Feed
from optiq_tui.messages import LaneWanted, PlayWanted
from optiq_tui.view import Lane, LanePhase


class Player:
    """Fills the feed's lanes, one answer each.

    Args:
        feed: where the answers go.
        client: the connected client; raises ConnectionFailed if there is none.
    """

    def __init__(self, feed: Feed, client: Callable[[], AsyncClient]) -> None:
        self._feed = feed
        self._client = client
        self._tasks: list[asyncio.Task[None]] = []

    def play(self, wanted: PlayWanted) -> None:
        """Ask for these answers; those that run are stopped, and stay as they are if no lanes are given."""
        self.stop()
        if not wanted.lanes:
            return
        lanes = [Lane(lane.title) for lane in wanted.lanes]
        self._feed.set_lanes(lanes)
        self._tasks = [
            asyncio.create_task(self._answer(index, lane, wanted)) for index, lane in enumerate(wanted.lanes)
        ]

    def stop(self) -> None:
        """Stop the answers that run; the daemon frees their rows."""
        for task in self._tasks:
            task.cancel()
        self._tasks = []

    async def _answer(self, index: int, wanted: LaneWanted, play: PlayWanted) -> None:
        lane = Lane(wanted.title)
        try:
            async with self._generate(wanted, play) as generation:
                async for event in generation.events():
                    lane = _after(lane, event)
                    self._feed.put_lane(index, lane)
        except OptiqClientError as error:
            self._feed.put_lane(index, replace(lane, phase=LanePhase.FAILED, note=error.message))
        except asyncio.CancelledError:
            self._feed.put_lane(index, replace(lane, phase=LanePhase.STOPPED, note="stopped"))
            raise

    def _generate(self, wanted: LaneWanted, play: PlayWanted) -> AsyncGeneration:
        single = wanted.adapters.keys() if list(wanted.adapters.values()) == [1.0] else ()
        return self._client().generate(
            play.prompt,
            adapter=next(iter(single), ""),
            adapters=None if single or not wanted.adapters else wanted.adapters,
            max_tokens=play.max_tokens,
            temperature=play.temperature,
        )


def _after(lane: Lane, event: Queued | Started | Chunk | Finished) -> Lane:
    """The lane after one event of its stream."""
    match event:
        case Queued():
            return replace(lane, note=f"place {event.position} in the queue")
        case Started():
            served = humanize.short_digest(event.adapter_digest)[:8] if event.adapter_digest else ""
            return replace(lane, phase=LanePhase.RUNNING, served=event.route_why or served, note="")
        case Chunk():
            return replace(lane, text=lane.text + event.text, tokens=lane.tokens + len(event.token_ids))
        case Finished():
            return replace(
                lane,
                phase=LanePhase.DONE,
                ttft_ms=event.timings.time_to_first_token_ms,
                tokens_per_second=event.timings.tokens_per_second,
                tokens=event.usage.completion_tokens,
                rows=event.batch.max_rows,
                adapters=event.batch.max_adapters,
                note=event.reason.lower().replace("_", " "),
            )
