"""A channel that is closed under a call is a lost engine to the caller, never a silent end."""

from __future__ import annotations

import asyncio
import socket as sockets
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from optiq_daemon.engine_client import EngineClient
from optiq_daemon.engine_link import EngineLink
from optiq_daemon.errors import UnavailableError
from optiq_daemon.interceptor import ErrorInterceptor
from optiq_protos.internal.v1 import engine_pb2, engine_pb2_grpc
from optiq_protos.v1 import runtime_pb2, runtime_pb2_grpc


class SlowEngine(engine_pb2_grpc.EngineServiceServicer):
    """Never answers."""

    async def LoadAdapter(self, request: Any, context: Any) -> engine_pb2.LoadAdapterResponse:
        await asyncio.Event().wait()
        return engine_pb2.LoadAdapterResponse()


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[EngineClient]:
    server = grpc.aio.server()
    engine_pb2_grpc.add_EngineServiceServicer_to_server(SlowEngine(), server)
    socket = tmp_path / "e.sock"
    server.add_insecure_port(f"unix:{socket}")
    await server.start()
    ours, theirs = sockets.socketpair()
    client = EngineClient(socket, await EngineLink.open(ours))
    yield client
    await client.close()
    theirs.close()
    await server.stop(None)


async def test_a_call_whose_channel_closes_ends_as_a_lost_engine(client: EngineClient, tmp_path: Path) -> None:
    task = asyncio.create_task(client.load("d", tmp_path))
    await asyncio.sleep(0.2)
    await client.close()
    with pytest.raises(UnavailableError):
        await asyncio.wait_for(task, 10)


async def test_a_caller_that_is_cancelled_stays_cancelled(client: EngineClient, tmp_path: Path) -> None:
    task = asyncio.create_task(client.load("d", tmp_path))
    await asyncio.sleep(0.2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_handler_whose_awaitable_is_cancelled_still_answers(tmp_path: Path) -> None:
    class Interrupted(runtime_pb2_grpc.RuntimeServiceServicer):
        async def GetStatus(self, request: Any, context: Any) -> runtime_pb2.GetStatusResponse:
            other = asyncio.ensure_future(asyncio.sleep(60))
            asyncio.get_running_loop().call_soon(other.cancel)
            await other
            return runtime_pb2.GetStatusResponse()

    server = grpc.aio.server(interceptors=[ErrorInterceptor()])
    runtime_pb2_grpc.add_RuntimeServiceServicer_to_server(Interrupted(), server)
    server.add_insecure_port(f"unix:{tmp_path}/s.sock")
    await server.start()
    async with grpc.aio.insecure_channel(f"unix:{tmp_path}/s.sock") as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await runtime_pb2_grpc.RuntimeServiceStub(channel).GetStatus(runtime_pb2.GetStatusRequest(), timeout=10)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    await server.stop(None)
