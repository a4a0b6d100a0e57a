# ruff: noqa: ASYNC109 - `timeout` is the deadline that goes over the wire
"""The asynchronous client: the surface of :mod:`optiq_client.client`, awaited.

::

    async with AsyncClient() as client:
        async for text in client.generate("What is 12 in Roman numerals?", adapter="roman"):
            print(text, end="", flush=True)
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import grpc
import grpc.aio

from optiq_client import calls, channel, states
from optiq_client import generation_events as g
from optiq_client import types as t
from optiq_client.aio_resources import AsyncAdapters, AsyncEvents, AsyncRuntime
from optiq_client.chat import Tool
from optiq_client.credentials import Credentials, Tls
from optiq_client.errors import OptiqClientError
from optiq_client.generation import GenerationState
from optiq_client.paths import resolve_address
from optiq_client.readiness import Readiness
from optiq_client.routes import AsyncRoutes
from optiq_client.status import to_error
from optiq_client.tenants import AsyncTenants
from optiq_client.training import AsyncTraining

T = TypeVar("T")


class AsyncStream(Generic[T]):
    """A running server stream: an async iterator, a context manager that cancels, and ``cancel()``.

    Iterating raises the errors of :mod:`optiq_client.errors`; after ``cancel()`` it just ends.
    """

    def __init__(self, call: Any, convert: Callable[[Any], T], address: str) -> None:
        self._call = call
        self._convert = convert
        self._address = address
        self._cancelled = False

    def __aiter__(self) -> AsyncIterator[T]:
        return self

    async def __anext__(self) -> T:
        try:
            response = await self._call.read()
        except grpc.RpcError as error:
            if self._cancelled:
                raise StopAsyncIteration from None
            raise to_error(error, address=self._address) from error
        except asyncio.CancelledError:
            # grpc raises this for its own cancelled call too; a cancelled task must stay cancelled.
            task = asyncio.current_task()
            if self._cancelled and not (task and task.cancelling()):
                raise StopAsyncIteration from None
            raise
        if response is grpc.aio.EOF:
            raise StopAsyncIteration
        return self._convert(response)

    def cancel(self) -> None:
        """End the call now; the daemon frees what it held."""
        self._cancelled = True
        self._call.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()


class AsyncGeneration(GenerationState):
    """A running generation. Iterating yields pieces of text; ``events()`` yields typed events instead.

    ``started``, ``finished``, ``text`` and ``token_ids`` fill while it is read.
    """

    def __init__(self, stream: AsyncStream[g.GenerationEvent | None]) -> None:
        super().__init__()
        self._stream = stream

    async def events(self) -> AsyncIterator[g.GenerationEvent]:
        """Every event as it arrives: Queued, Started, Chunk, Finished."""
        async for event in self._stream:
            if event is not None:
                self.take(event)
                yield event

    async def __aiter__(self) -> AsyncIterator[str]:
        async for event in self.events():
            if isinstance(event, g.Chunk) and event.text:
                yield event.text

    async def read(self) -> str:
        """Wait for the end; all of the text."""
        async for _ in self.events():
            pass
        return self.text

    def cancel(self) -> None:
        """End it now; its row is freed at the next step."""
        self._stream.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()


class AsyncClient:
    """Talks to one daemon from one event loop. Close it, or use it as a context manager.

    Args:
        address: ``unix:/path`` or ``host:port``; by default ``$OPTIQ_ADDRESS``, else the socket of ``home``.
        home: the daemon's folder; by default ``$OPTIQ_HOME``, else the user's data directory.
        tenant: tenant id that short adapter and job names belong to; by default the token's, else ``default``.
        timeout: seconds for calls with one answer.
        token: the tenant's token; by default ``$OPTIQ_TOKEN``, else the content of ``$OPTIQ_TOKEN_FILE``.
        tls: certificates for a TCP address; by default those of ``$OPTIQ_CA_FILE`` and its two sisters.

    Raises:
        SocketPathError: the home's socket path is longer than a Unix socket allows.
        CredentialsError: a file that cannot be read, or a token that would cross a network in the clear.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        home: str | os.PathLike[str] | None = None,
        tenant: str | None = None,
        timeout: float = channel.DEFAULT_TIMEOUT,
        token: str | None = None,
        tls: Tls | None = None,
    ) -> None:
        self.address = resolve_address(address, home)
        self._credentials = Credentials.resolve(self.address, token, tls)
        self.tenant = tenant or self._credentials.tenant
        self.timeout = timeout
        self._opened: Any = None
        self.adapters = AsyncAdapters(self)
        self.training = AsyncTraining(self)
        self.runtime = AsyncRuntime(self)
        self.events = AsyncEvents(self)
        self.tenants = AsyncTenants(self)
        self.routes = AsyncRoutes(self)

    @property
    def _channel(self) -> Any:
        if self._opened is None:  # on first use, so that a client can be made before its event loop runs
            self._opened = self._credentials.channel(grpc.aio)
        return self._opened

    def generate(
        self,
        prompt: calls.Prompt,
        *,
        adapter: str = "",
        adapters: Mapping[str, float] | None = None,
        adapter_scale: float | None = None,
        raw: bool = False,
        max_tokens: int = 0,
        temperature: float | None = None,
        top_p: float | None = None,
        top_k: int | None = None,
        min_p: float | None = None,
        seed: int | None = None,
        stop: Sequence[str] = (),
        request_id: str = "",
        top_logprobs: int | None = None,
        route: str = "",
        sticky_key: str = "",
        json_schema: str | Mapping[str, Any] = "",
        tools: Sequence[Tool] = (),
        tool_choice: str = "",
        one_tool_call: bool = False,
        timeout: float | None = None,
    ) -> AsyncGeneration:
        """Start a generation; iterate over the result for its text. Arguments as in ``Client.generate``."""
        call = calls.generate(
            self.tenant,
            prompt,
            adapter=adapter,
            adapters=adapters,
            adapter_scale=adapter_scale,
            raw=raw,
            max_tokens=max_tokens,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            min_p=min_p,
            seed=seed,
            stop=stop,
            request_id=request_id,
            top_logprobs=top_logprobs,
            route=route,
            sticky_key=sticky_key,
            json_schema=json_schema,
            tools=tools,
            tool_choice=tool_choice,
            one_tool_call=one_tool_call,
        )
        return AsyncGeneration(self.stream(call, timeout))

    async def health(self, service: str = "", *, timeout: float | None = None) -> states.HealthStatus:
        """The daemon's own health, or one service's."""
        return await self.run(calls.check_health(service), timeout)

    async def wait_ready(self, timeout: float = 120.0) -> t.Status:
        """Wait until the daemon serves; its status then.

        Raises:
            DeadlineExceeded: it did not within ``timeout`` seconds; the message says what was last seen.
            FailedPrecondition: its engine cannot start.
        """
        wait = Readiness(timeout)
        while True:
            try:
                health = await self.health(timeout=wait.remaining)
                status = await self.runtime.status(timeout=wait.remaining)
                if health is states.HealthStatus.SERVING:
                    return status
            except OptiqClientError as error:
                delay = wait.failed(error)
            else:
                delay = wait.not_serving(health, status)
            await asyncio.sleep(delay)

    async def run(self, call: calls.Call[T], timeout: float | None = None) -> T:
        """Run a call with one answer."""
        method = channel.method(self._channel.unary_unary, call.path, call.response)
        try:
            deadline = self.timeout if timeout is None else timeout
            response = await method(call.request, timeout=deadline, metadata=self._credentials.metadata)
        except grpc.RpcError as error:
            raise to_error(error, address=self.address) from error
        return call.convert(response)

    async def upload(self, call: calls.Upload[T], timeout: float | None = None) -> T:
        """Run a call with a stream of requests and one answer; no limit of time unless given."""
        method = channel.method(self._channel.stream_unary, call.path, call.response)
        try:
            response = await method(call.requests(), timeout=timeout, metadata=self._credentials.metadata)
        except grpc.RpcError as error:
            raise to_error(error, address=self.address) from error
        return call.convert(response)

    def stream(self, call: calls.Call[T], timeout: float | None = None) -> AsyncStream[T]:
        """Start a call with a stream of answers."""
        method = channel.method(self._channel.unary_stream, call.path, call.response)
        running = method(call.request, timeout=timeout, metadata=self._credentials.metadata)
        return AsyncStream(running, call.convert, self.address)

    async def close(self) -> None:
        """Close the connection; running streams end."""
        if self._opened is not None:
            await self._opened.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
