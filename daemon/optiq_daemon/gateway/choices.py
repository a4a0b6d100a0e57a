"""Runs the choices of one HTTP request, each a generation of its own, and merges their streams."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

from optiq_daemon.observers import Serve
from optiq_protos.v1 import generation_pb2 as pb

Update = tuple[int, pb.GenerateResponse]


@dataclass
class Choice:
    """What one generation has told so far."""

    text: list[str] = field(default_factory=list)
    logprobs: list[pb.TokenLogprob] = field(default_factory=list)
    calls: list[pb.ToolCall] = field(default_factory=list)
    started: pb.Started | None = None
    finished: pb.Finished | None = None

    def take(self, response: pb.GenerateResponse) -> None:
        """Note one response."""
        kind = response.WhichOneof("event")
        if kind == "chunk":
            self.text.append(response.chunk.text)
            self.logprobs.extend(response.chunk.logprobs)
            self.calls.extend(response.chunk.tool_calls)
        elif kind == "started":
            self.started = response.started
        elif kind == "finished":
            self.finished = response.finished


async def run(serve_one: Serve, requests: Sequence[pb.GenerateRequest]) -> AsyncGenerator[Update, None]:
    """Serve all requests at once; yields index and response as they come. The first error ends all of them."""
    if len(requests) == 1:
        async with aclosing(serve_one(requests[0])) as responses:
            async for response in responses:
                yield 0, response
        return
    updates: asyncio.Queue[Update | None] = asyncio.Queue()

    async def serve(index: int, request: pb.GenerateRequest) -> None:
        async with aclosing(serve_one(request)) as responses:
            async for response in responses:
                updates.put_nowait((index, response))

    async def serve_all() -> None:
        try:
            async with asyncio.TaskGroup() as group:
                for index, request in enumerate(requests):
                    group.create_task(serve(index, request))
        finally:
            updates.put_nowait(None)

    running = asyncio.create_task(serve_all(), name="choices")
    try:
        while (update := await updates.get()) is not None:
            yield update
        await _unwrapped(running)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def _unwrapped(running: asyncio.Task[None]) -> None:
    """Raise the first error itself, not the group of errors that it is in."""
    try:
        await running
    except ExceptionGroup as group:
        error: Exception = group
        while isinstance(error, ExceptionGroup):
            error = error.exceptions[0]
        raise error from None


async def once_started(updates: AsyncIterator[Update]) -> list[Update]:
    """The first updates, up to the one that says that a choice runs: until then a request may still be refused."""
    first: list[Update] = []
    async for update in updates:
        first.append(update)
        if update[1].WhichOneof("event") != "queued":
            break
    return first
