"""`optiq.v1.RuntimeService`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from optiq_daemon.errors import InvalidRequestError
from optiq_daemon.identity import caller
from optiq_protos.v1 import runtime_pb2, runtime_pb2_grpc

DEFAULT_INTERVAL_MS = 1000


class RuntimeService(runtime_pb2_grpc.RuntimeServiceServicer):
    """Translates between the wire and the daemon's status.

    Args:
        status: takes a status now.
        view: what of it one tenant may see.
    """

    def __init__(
        self,
        status: Callable[[], Awaitable[runtime_pb2.RuntimeStatus]],
        view: Callable[[runtime_pb2.RuntimeStatus, str], runtime_pb2.RuntimeStatus],
    ) -> None:
        self._take = status
        self._view = view

    async def GetStatus(self, request: runtime_pb2.GetStatusRequest, _: Any) -> runtime_pb2.GetStatusResponse:
        """A status now."""
        return runtime_pb2.GetStatusResponse(status=await self._status())

    async def WatchTelemetry(
        self, request: runtime_pb2.WatchTelemetryRequest, _: Any
    ) -> AsyncIterator[runtime_pb2.WatchTelemetryResponse]:
        """A status now, then one every interval."""
        interval = request.interval_ms or DEFAULT_INTERVAL_MS
        if not 100 <= interval <= 60_000:
            raise InvalidRequestError.of("interval_ms", f"must be 0 (for 1000) or 100 to 60000, is {interval}")
        while True:
            yield runtime_pb2.WatchTelemetryResponse(status=await self._status())
            await asyncio.sleep(interval / 1000)

    async def _status(self) -> runtime_pb2.RuntimeStatus:
        who = caller()
        status = await self._take()
        return status if who.admin else self._view(status, who.tenant)
