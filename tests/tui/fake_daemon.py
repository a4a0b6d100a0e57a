"""An optiq.v1 server with no engine behind it: it answers from what a test puts into it, and only that.

Everything runs in one event loop; :class:`FakeDaemonThread` gives it a loop of its own for synchronous callers.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import TypeVar

import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from optiq_protos.v1 import (
    adapter_pb2_grpc,
    event_pb2_grpc,
    generation_pb2_grpc,
    route_pb2_grpc,
    runtime_pb2_grpc,
    tenant_pb2_grpc,
    training_pb2_grpc,
)
from tests.tui.fake_generation import FakeGeneration
from tests.tui.fake_routing import FakeRoutes, FakeTenants
from tests.tui.fake_runtime import FakeRuntime
from tests.tui.fake_training import FakeTraining

T = TypeVar("T")


class FakeDaemon(FakeGeneration, FakeTraining, FakeRuntime):
    """All services over plain dictionaries. Setters push to the open watches."""

    def __init__(self) -> None:
        super().__init__()
        self.routing = FakeRoutes()
        self.tenancy = FakeTenants()
        self._server: grpc.aio.Server | None = None

    async def start(self, address: str) -> None:
        """Serve on ``unix:/path`` or ``host:port``."""
        server = grpc.aio.server()
        adapter_pb2_grpc.add_AdapterServiceServicer_to_server(self, server)
        training_pb2_grpc.add_TrainingServiceServicer_to_server(self, server)
        runtime_pb2_grpc.add_RuntimeServiceServicer_to_server(self, server)
        event_pb2_grpc.add_EventServiceServicer_to_server(self, server)
        generation_pb2_grpc.add_GenerationServiceServicer_to_server(self, server)
        route_pb2_grpc.add_RouteServiceServicer_to_server(self.routing, server)
        tenant_pb2_grpc.add_TenantServiceServicer_to_server(self.tenancy, server)
        self.health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self.health, server)
        await self.health.set("", health_pb2.HealthCheckResponse.SERVING)
        server.add_insecure_port(address)
        await server.start()
        self._server = server

    async def stop(self) -> None:
        """Go away at once, as a killed daemon does."""
        if self._server is not None:
            await self._server.stop(None)
            self._server = None


class FakeDaemonThread:
    """A FakeDaemon in a thread with its own event loop."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.daemon = FakeDaemon()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def do(self, action: Callable[[], T]) -> T:
        """Run a setter inside the daemon's loop."""

        async def run() -> T:
            return action()

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result(10)

    def start(self) -> None:
        asyncio.run_coroutine_threadsafe(self.daemon.start(self.address), self._loop).result(10)

    def stop(self) -> None:
        asyncio.run_coroutine_threadsafe(self.daemon.stop(), self._loop).result(10)

    def __enter__(self) -> FakeDaemonThread:
        self._thread.start()
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()
