"""`optiq.v1.EventService`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from optiq_daemon import convert
from optiq_daemon.events import EventLog
from optiq_protos.v1 import event_pb2, event_pb2_grpc


class EventService(event_pb2_grpc.EventServiceServicer):
    """Translates between the wire and the event log."""

    def __init__(self, events: EventLog) -> None:
        self._events = events

    async def WatchEvents(
        self, request: event_pb2.WatchEventsRequest, _: Any
    ) -> AsyncIterator[event_pb2.WatchEventsResponse]:
        """Replay from a revision, then live."""
        async for entry in self._events.watch(request.from_revision):
            yield event_pb2.WatchEventsResponse(event=convert.event(entry))
