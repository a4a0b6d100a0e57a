"""Status and events of the fake daemon."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from google.rpc import code_pb2, error_details_pb2

from optiq_protos.v1 import event_pb2, event_pb2_grpc, runtime_pb2, runtime_pb2_grpc
from tests.tui.fake_parts import Broadcast, fail


class FakeRuntime(runtime_pb2_grpc.RuntimeServiceServicer, event_pb2_grpc.EventServiceServicer):
    """The status and events that a test sets. Setters push to the open watches."""

    def __init__(self) -> None:
        super().__init__()
        self.status = runtime_pb2.RuntimeStatus()
        # Statuses that a new watch gets before the present one: what sparklines are made of.
        self.past: list[runtime_pb2.RuntimeStatus] = []
        self.events: list[event_pb2.Event] = []
        self.fail_next_get_status = 0
        self.refuse_token = False
        # Connections are taken, and nothing is answered.
        self.silent = False
        self._event_feed = Broadcast()
        self._status_feed = Broadcast()

    def put_event(self, event: event_pb2.Event) -> None:
        self.events.append(event)
        self._event_feed.send(event)

    def put_status(self, status: runtime_pb2.RuntimeStatus) -> None:
        self.status = status
        self._status_feed.send(status)

    async def GetStatus(self, request: Any, context: Any) -> Any:
        if self.silent:
            await asyncio.Event().wait()
        if self.refuse_token:
            await fail(context, code_pb2.UNAUTHENTICATED, "the token is not known", "TOKEN_UNKNOWN")
        if self.fail_next_get_status:
            self.fail_next_get_status -= 1
            retry = error_details_pb2.RetryInfo()
            retry.retry_delay.FromMilliseconds(1500)
            await fail(context, code_pb2.UNAVAILABLE, "the engine is restarting", "ENGINE_RESTARTING", retry)
        return runtime_pb2.GetStatusResponse(status=self.status)

    async def WatchTelemetry(self, request: Any, context: Any) -> AsyncIterator[Any]:
        """The status now, then each one that a test sets: no clock, so that snapshots repeat."""
        async for status in self._status_feed.receive([*self.past, self.status]):
            yield runtime_pb2.WatchTelemetryResponse(status=status)

    async def WatchEvents(self, request: Any, context: Any) -> AsyncIterator[Any]:
        oldest = self.events[0].revision if self.events else 1
        if request.from_revision and request.from_revision < oldest:
            await fail(context, code_pb2.OUT_OF_RANGE, f"revisions start at {oldest}", "REVISION_COMPACTED")
        first = [e for e in self.events if request.from_revision and e.revision >= request.from_revision]
        async for event in self._event_feed.receive(first):
            yield event_pb2.WatchEventsResponse(event=event)
