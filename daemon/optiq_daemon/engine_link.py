"""The daemon's end of the stream of requests and tokens; the engine's is :mod:`optiq_daemon.engine_stream`.

The engine sends one frame a step with the tokens of all rows. A call of its own for every row would cost both
processes a message for every token, on the cores that the model computes on.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import AsyncGenerator

from google.rpc import status_pb2

from optiq_daemon.errors import engine_lost, from_engine_status
from optiq_daemon.frames import FrameReader, frame
from optiq_protos.internal.v1 import engine_pb2
from optiq_protos.v1 import generation_pb2


class EngineLink(asyncio.Protocol):
    """One connection to one engine process.

    Use :meth:`open`.
    """

    def __init__(self) -> None:
        self._frames = FrameReader()
        self._rows: dict[str, _Row] = {}
        self._transport: asyncio.Transport | None = None

    @classmethod
    async def open(cls, connected: socket.socket) -> EngineLink:
        """Take over a connected socket."""
        connected.setblocking(False)
        _, link = await asyncio.get_running_loop().create_unix_connection(cls, sock=connected)
        return link

    def close(self) -> None:
        """End the connection; running requests fail."""
        if self._transport is not None:
            self._transport.abort()
        self.connection_lost(None)

    async def generate(self, request: engine_pb2.GenerateRequest) -> AsyncGenerator[engine_pb2.GenerateResponse, None]:
        """Run a request; close the generator if it is left early, which frees the row.

        Chunks that came while the caller was busy are handed over as one.

        Raises:
            RequestError: the engine's status, translated.
        """
        row = self._rows[request.request_id] = _Row()
        try:
            self._send(engine_pb2.StreamRequest(generate=request))
            while True:
                response = row.take() or await row.next()
                yield response
                if response.WhichOneof("event") == "finished":
                    row.over = True
                    return
        finally:
            del self._rows[request.request_id]
            if not row.over and self._transport is not None:
                self._send(engine_pb2.StreamRequest(cancel=request.request_id))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the loop."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Called by the loop: give every row what is its own."""
        for message in self._frames.push(data):
            for event in engine_pb2.StreamStep.FromString(message).events:
                # A row that was left may have been told something before it knew.
                if (row := self._rows.get(event.request_id)) is not None:
                    row.put(event)

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the loop."""
        self._transport = None
        for row in self._rows.values():
            row.lose()

    def _send(self, message: engine_pb2.StreamRequest) -> None:
        if self._transport is None:
            raise engine_lost()
        self._transport.write(frame(message.SerializeToString()))


class _Row:
    """What has come for one request and was not taken yet."""

    def __init__(self) -> None:
        self._come: deque[engine_pb2.StreamEvent] = deque()
        self._waiting: asyncio.Future[None] | None = None
        self._is_lost = False
        # The engine knows nothing of it any more.
        self.over = False

    def put(self, event: engine_pb2.StreamEvent) -> None:
        self._come.append(event)
        self._wake()

    def lose(self) -> None:
        self._is_lost = True
        self._wake()

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    async def next(self) -> engine_pb2.GenerateResponse:
        """Wait for a response."""
        while (response := self.take()) is None:
            if self._is_lost:
                self.over = True
                raise engine_lost()
            self._waiting = asyncio.get_running_loop().create_future()
            await self._waiting
        return response

    def take(self) -> engine_pb2.GenerateResponse | None:
        """The next response, chunks that wait put together; None if nothing waits."""
        if not self._come:
            return None
        event = self._come.popleft()
        if event.failed_status:
            self.over = True
            raise from_engine_status(status_pb2.Status.FromString(event.failed_status))
        response = event.response
        if self._come and response.HasField("chunk"):
            self._join(response.chunk)
        return response

    def _join(self, chunk: generation_pb2.Chunk) -> None:
        while self._come and self._come[0].response.HasField("chunk"):
            more = self._come.popleft().response.chunk
            text = chunk.text + more.text
            chunk.MergeFrom(more)
            chunk.text = text
