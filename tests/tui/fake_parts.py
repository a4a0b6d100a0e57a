"""What the services of the fake daemon share: failing with details, fan-out, and a note of the calls."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status


async def fail(context: Any, code: int, message: str, reason: str = "", *details: Any) -> None:
    """End the call with a google.rpc.Status that carries details."""
    packed = [any_pb2.Any() for _ in range(len(details) + bool(reason))]
    info = [error_details_pb2.ErrorInfo(reason=reason, domain="optiq", metadata={"fake": "yes"})] if reason else []
    for holder, detail in zip(packed, [*info, *details], strict=True):
        holder.Pack(detail)
    await context.abort_with_status(rpc_status.to_status(status_pb2.Status(code=code, message=message, details=packed)))


class Broadcast:
    """Fan-out of messages to the streams that are open now."""

    def __init__(self) -> None:
        self._queues: set[asyncio.Queue[Any]] = set()

    def send(self, message: Any) -> None:
        for queue in self._queues:
            queue.put_nowait(message)

    async def receive(self, first: Sequence[Any] = ()) -> AsyncIterator[Any]:
        queue: asyncio.Queue[Any] = asyncio.Queue()
        for message in first:
            queue.put_nowait(message)
        self._queues.add(queue)
        try:
            while True:
                yield await queue.get()
        finally:
            self._queues.discard(queue)


class Noted:
    """Requests that change something, in the order that they came in."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Any] = []
