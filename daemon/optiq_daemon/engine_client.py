"""The daemon's side of the private socket to one engine process."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from typing import Any

import grpc

from optiq_daemon.engine_link import EngineLink
from optiq_daemon.errors import engine_lost, from_engine
from optiq_daemon.interceptor import MAX_REQUEST_BYTES
from optiq_daemon.tasks import was_cancelled
from optiq_protos.internal.v1 import engine_pb2, engine_pb2_grpc

LOAD_TIMEOUT_S = 120.0
STATUS_TIMEOUT_S = 2.0

# The list of modules of a large base, and a long conversation, are larger than gRPC's default of 4 MiB.
_OPTIONS = (
    ("grpc.max_receive_message_length", 8 * MAX_REQUEST_BYTES),
    ("grpc.max_send_message_length", 8 * MAX_REQUEST_BYTES),
    # A new process has the same path: do not inherit the old connection's back-off.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 500),
)


class EngineClient:
    """Calls one engine process; statuses become the daemon's errors.

    Args:
        socket: where it serves its calls.
        link: carries requests and their tokens.
    """

    def __init__(self, socket: Path, link: EngineLink) -> None:
        self._link = link
        self._channel = grpc.aio.insecure_channel(f"unix:{socket}", options=_OPTIONS)
        self._stub = engine_pb2_grpc.EngineServiceStub(self._channel)  # type: ignore[no-untyped-call]

    async def close(self) -> None:
        """End the connection and every call on it."""
        self._link.close()
        await self._channel.close()

    async def base(self) -> engine_pb2.GetBaseResponse:
        """Wait until the base is loaded.

        Raises:
            RefusedError: it cannot be loaded; the message says why.
            UnavailableError: the process ended.
        """
        return await self._unary(self._stub.GetBase(engine_pb2.GetBaseRequest(), wait_for_ready=True))

    async def load(self, digest: str, path: Path) -> int:
        """Put a version into the engine; returns its bytes there."""
        request = engine_pb2.LoadAdapterRequest(digest=digest, path=str(path))
        response = await self._unary(self._stub.LoadAdapter(request, timeout=LOAD_TIMEOUT_S))
        return int(response.resident_bytes)

    async def unload(self, digest: str) -> None:
        """Take a version out.

        Raises:
            RefusedError: rows use it.
        """
        request = engine_pb2.UnloadAdapterRequest(digest=digest)
        await self._unary(self._stub.UnloadAdapter(request, timeout=LOAD_TIMEOUT_S))

    async def probe(self, digests: list[str]) -> dict[str, float]:
        """Largest difference of each loaded version's logits to the base's; NaN where they are not finite."""
        request = engine_pb2.ProbeAdaptersRequest(digests=digests)
        response = await self._unary(self._stub.ProbeAdapters(request, timeout=LOAD_TIMEOUT_S))
        return dict(response.differences)

    async def merge(self, parts: list[tuple[Path, float]], target: Path) -> None:
        """Write the weighted sum of adapter folders, DoRA ones among them, as a new folder.

        Raises:
            RefusedError: they have no such sum.
        """
        folders = [engine_pb2.MergedFolder(path=str(path), weight=weight) for path, weight in parts]
        request = engine_pb2.MergeAdaptersRequest(parts=folders, target_path=str(target))
        await self._unary(self._stub.MergeAdapters(request, timeout=LOAD_TIMEOUT_S))

    async def status(self) -> engine_pb2.GetStatusResponse:
        """Counters and memory now."""
        return await self._unary(self._stub.GetStatus(engine_pb2.GetStatusRequest(), timeout=STATUS_TIMEOUT_S))

    def generate(self, request: engine_pb2.GenerateRequest) -> AsyncGenerator[engine_pb2.GenerateResponse, None]:
        """Run a request; as :meth:`optiq_daemon.engine_link.EngineLink.generate`."""
        return self._link.generate(request)

    async def _unary(self, call: Any) -> Any:
        try:
            with _closing_is_loss():
                return await call
        except grpc.aio.AioRpcError as error:
            raise from_engine(error) from None


@contextlib.contextmanager
def _closing_is_loss() -> Iterator[None]:
    """Tell a channel that was closed under a call from a caller that was cancelled.

    gRPC raises CancelledError for both. Passed on, the first would end a handler without any answer to its client.
    """
    try:
        yield
    except asyncio.CancelledError:
        if was_cancelled():
            raise
        raise engine_lost() from None
