"""A daemon of N adapters that reports M events a second and hundreds of live requests; run in a process of its own."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from typing import Any

import grpc.aio
from google.protobuf.timestamp_pb2 import Timestamp

from optiq_protos.v1 import (
    adapter_pb2,
    adapter_pb2_grpc,
    event_pb2,
    event_pb2_grpc,
    route_pb2,
    route_pb2_grpc,
    runtime_pb2,
    runtime_pb2_grpc,
    tenant_pb2,
    tenant_pb2_grpc,
    training_pb2,
    training_pb2_grpc,
)

TICK_SECONDS = 0.02
ROUTES = 50
DECISIONS = 50
_CHANGE = adapter_pb2.WatchAdaptersResponse


def adapter(number: int, leases: int = 0) -> adapter_pb2.Adapter:
    """One adapter; every fourth is resident."""
    resident = number % 4 == 0
    return adapter_pb2.Adapter(
        name=f"tenants/default/adapters/agent-{number:06d}",
        digest=f"{number:064x}",
        state=adapter_pb2.ADAPTER_STATE_RESIDENT if resident else adapter_pb2.ADAPTER_STATE_AVAILABLE,
        format="optiq",
        kind="lora",
        module_count=60,
        min_rank=8,
        max_rank=16,
        parameter_count=460_800,
        targets=["q_proj", "v_proj"],
        disk_bytes=1_844_400,
        resident_bytes=1_843_200 if resident else 0,
        active_leases=leases,
        version=1,
    )


def route(number: int) -> route_pb2.Route:
    """One route: an adapter, and a tenth for the base."""
    targets = [route_pb2.RouteTarget(target=f"agent-{number:06d}", weight=9)]
    targets.append(route_pb2.RouteTarget(target="base", weight=1))
    return route_pb2.Route(name=f"tenants/default/routes/route-{number:06d}", targets=targets, generation=1)


class LoadedDaemon(
    adapter_pb2_grpc.AdapterServiceServicer,
    event_pb2_grpc.EventServiceServicer,
    route_pb2_grpc.RouteServiceServicer,
    runtime_pb2_grpc.RuntimeServiceServicer,
    tenant_pb2_grpc.TenantServiceServicer,
    training_pb2_grpc.TrainingServiceServicer,
):
    """The streams that the dashboard watches; half of the events also change an adapter.

    Args:
        adapters: how many there are.
        events_per_second: how many happen.
        requests: live ones in every status.
    """

    def __init__(self, adapters: int, events_per_second: float, requests: int) -> None:
        self._adapters = adapters
        self._rate = events_per_second
        self._requests = requests

    async def ListTrainingJobs(self, request: Any, context: Any) -> training_pb2.ListTrainingJobsResponse:  # noqa: N802
        """There are none."""
        return training_pb2.ListTrainingJobsResponse()

    async def ListRoutes(self, request: Any, context: Any) -> route_pb2.ListRoutesResponse:  # noqa: N802
        """A canary for each of the first adapters."""
        return route_pb2.ListRoutesResponse(routes=[route(number) for number in range(min(self._adapters, ROUTES))])

    async def ListRouteDecisions(  # noqa: N802
        self, request: Any, context: Any
    ) -> route_pb2.ListRouteDecisionsResponse:
        """The last of them: each another request."""
        at = Timestamp()
        at.GetCurrentTime()
        decisions = [
            route_pb2.RouteDecision(time=at, request_id=f"req-{n}", target="base", why="by weight", generation=1)
            for n in range(DECISIONS)
        ]
        return route_pb2.ListRouteDecisionsResponse(decisions=decisions)

    async def ListShadowAnswers(  # noqa: N802
        self, request: Any, context: Any
    ) -> route_pb2.ListShadowAnswersResponse:
        """There are none."""
        return route_pb2.ListShadowAnswersResponse()

    async def ListTenants(self, request: Any, context: Any) -> tenant_pb2.ListTenantsResponse:  # noqa: N802
        """The one whose requests there are."""
        return tenant_pb2.ListTenantsResponse(tenants=[tenant_pb2.Tenant(name="tenants/default", weight=1.0)])

    async def GetStatus(self, request: Any, context: Any) -> runtime_pb2.GetStatusResponse:  # noqa: N802
        """The status now."""
        return runtime_pb2.GetStatusResponse(status=self._status(0))

    async def WatchTelemetry(  # noqa: N802
        self, request: Any, context: Any
    ) -> AsyncIterator[runtime_pb2.WatchTelemetryResponse]:
        """Another set of requests in every status."""
        number = 0
        while True:
            yield runtime_pb2.WatchTelemetryResponse(status=self._status(number))
            number += 1
            await asyncio.sleep((request.interval_ms or 1000) / 1000)

    async def WatchAdapters(self, request: Any, context: Any) -> AsyncIterator[adapter_pb2.WatchAdaptersResponse]:  # noqa: N802
        """All of them, then changes."""
        for number in range(self._adapters):
            yield _CHANGE(type=_CHANGE.CHANGE_TYPE_LISTED, adapter=adapter(number))
        yield _CHANGE(type=_CHANGE.CHANGE_TYPE_LIST_END)
        async for number in self._happenings(self._rate / 2):
            changed = adapter(number * 7919 % self._adapters, leases=number % 5)
            yield _CHANGE(type=_CHANGE.CHANGE_TYPE_CHANGED, adapter=changed)

    async def ListAdapterVersions(  # noqa: N802
        self, request: Any, context: Any
    ) -> adapter_pb2.ListAdapterVersionsResponse:
        """One of each."""
        at = Timestamp()
        at.GetCurrentTime()
        only = adapter_pb2.AdapterVersion(number=1, digest=f"{1:064x}", current=True, publish_time=at, origin="folder")
        return adapter_pb2.ListAdapterVersionsResponse(versions=[only])

    async def ListAdapterModules(  # noqa: N802
        self, request: Any, context: Any
    ) -> adapter_pb2.ListAdapterModulesResponse:
        """q and v of thirty layers, ranks that differ from adapter to adapter."""
        first = int(request.parent[-6:]) % 8
        modules = [
            adapter_pb2.AdapterModule(path=f"model.layers.{n}.self_attn.{name}", rank=8 + (n + first) % 8, scale=20)
            for n in range(30)
            for name in ("q_proj", "v_proj")
        ]
        return adapter_pb2.ListAdapterModulesResponse(modules=modules)

    async def WatchEvents(self, request: Any, context: Any) -> AsyncIterator[event_pb2.WatchEventsResponse]:  # noqa: N802
        """So many a second."""
        async for number in self._happenings(self._rate):
            at = Timestamp()
            at.GetCurrentTime()
            name = f"tenants/default/adapters/agent-{number % self._adapters:06d}"
            event = event_pb2.Event(
                revision=number + 1, time=at, type="adapter.resident", resource=name, message=f"event {number}"
            )
            yield event_pb2.WatchEventsResponse(event=event)

    async def _happenings(self, rate: float) -> AsyncIterator[int]:
        loop = asyncio.get_running_loop()
        began, number = loop.time(), 0
        while True:
            while number < (loop.time() - began) * rate:
                yield number
                number += 1
            await asyncio.sleep(TICK_SECONDS)

    def _status(self, number: int) -> runtime_pb2.RuntimeStatus:
        engine = runtime_pb2.EngineStatus(
            state=runtime_pb2.ENGINE_STATE_SERVING, active_rows=64, tokens_per_second=900.0 + number % 50
        )
        status = runtime_pb2.RuntimeStatus(version="bench", engine=engine, adapter_count=self._adapters)
        for place in range(self._requests):
            status.requests.add(
                request_id=f"req-{number * self._requests + place}",
                tenant="tenants/default",
                requested_adapter=f"agent-{place:06d}",
                phase="decode" if place < 64 else "queued",
                completion_tokens=place,
                tokens_per_second=14.0,
            )
        return status


async def serve(address: str, adapters: int, events_per_second: float, requests: int) -> None:
    """Serve until the process is ended; says ``ready`` on stdout."""
    server = grpc.aio.server()
    daemon = LoadedDaemon(adapters, events_per_second, requests)
    adapter_pb2_grpc.add_AdapterServiceServicer_to_server(daemon, server)  # type: ignore[no-untyped-call]
    event_pb2_grpc.add_EventServiceServicer_to_server(daemon, server)  # type: ignore[no-untyped-call]
    route_pb2_grpc.add_RouteServiceServicer_to_server(daemon, server)  # type: ignore[no-untyped-call]
    tenant_pb2_grpc.add_TenantServiceServicer_to_server(daemon, server)  # type: ignore[no-untyped-call]
    runtime_pb2_grpc.add_RuntimeServiceServicer_to_server(daemon, server)  # type: ignore[no-untyped-call]
    training_pb2_grpc.add_TrainingServiceServicer_to_server(daemon, server)  # type: ignore[no-untyped-call]
    server.add_insecure_port(address)
    await server.start()
    print("ready", flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])))
