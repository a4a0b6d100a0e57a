"""`optiq.v1.EventService`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from optiq_daemon import convert
from optiq_daemon.events import Event, EventLog
from optiq_daemon.identity import Caller, caller
from optiq_protos.v1 import event_pb2, event_pb2_grpc

_EVERYBODYS = ("daemon.", "engine.")


class EventService(event_pb2_grpc.EventServiceServicer):
    """Translates between the wire and the event log."""

    def __init__(self, events: EventLog) -> None:
        self._events = events

    async def WatchEvents(
        self, request: event_pb2.WatchEventsRequest, _: Any
    ) -> AsyncIterator[event_pb2.WatchEventsResponse]:
        """Replay from a revision, then live."""
        who = caller()
        async for entry in self._events.watch(request.from_revision):
            if _sees(who, entry):
                yield event_pb2.WatchEventsResponse(event=convert.event(entry))


def _sees(who: Caller, entry: Event) -> bool:
    """A tenant sees what is about its own resources, and that the daemon or its engine started and stopped."""
    if who.admin:
        return True
    own = f"tenants/{who.tenant}"
    return entry.resource == own or entry.resource.startswith(f"{own}/") or entry.type.startswith(_EVERYBODYS)
