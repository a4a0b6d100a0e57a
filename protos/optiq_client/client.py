"""The synchronous client.

::

    from optiq_client import Client

    with Client() as client:
        for text in client.generate("What is 12 in Roman numerals?", adapter="roman"):
            print(text, end="", flush=True)
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import grpc

from optiq_client import calls, channel, states
from optiq_client import generation_events as g
from optiq_client import types as t
from optiq_client.chat import Tool
from optiq_client.credentials import Credentials, Tls
from optiq_client.errors import OptiqClientError
from optiq_client.generation import GenerationState
from optiq_client.paths import resolve_address
from optiq_client.readiness import Readiness
from optiq_client.resources import Adapters, Events, Runtime
from optiq_client.routes import Routes
from optiq_client.status import to_error
from optiq_client.tenants import Tenants
from optiq_client.training import Training

T = TypeVar("T")


class Stream(Generic[T]):
    """A running server stream: an iterator, a context manager that cancels, and ``cancel()`` from any thread.

    Iterating raises the errors of :mod:`optiq_client.errors`; after ``cancel()`` it just ends.
    """

    def __init__(self, call: Any, convert: Callable[[Any], T], address: str) -> None:
        self._call = call
        self._convert = convert
        self._address = address
        self._cancelled = False

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        try:
            return self._convert(next(self._call))
        except grpc.RpcError as error:
            if self._cancelled:
                raise StopIteration from None
            raise to_error(error, address=self._address) from error

    def cancel(self) -> None:
        """End the call now; the daemon frees what it held."""
        self._cancelled = True
        self._call.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()


class Generation(GenerationState):
    """A running generation. Iterating yields pieces of text; ``events()`` yields typed events instead.

    ``started``, ``finished``, ``text`` and ``token_ids`` fill while it is read.
    """

    def __init__(self, stream: Stream[g.GenerationEvent | None]) -> None:
        super().__init__()
        self._stream = stream

    def events(self) -> Iterator[g.GenerationEvent]:
        """Every event as it arrives: Queued, Started, Chunk, Finished."""
        for event in self._stream:
            if event is not None:
                self.take(event)
                yield event

    def __iter__(self) -> Iterator[str]:
        return (e.text for e in self.events() if isinstance(e, g.Chunk) and e.text)

    def read(self) -> str:
        """Wait for the end; all of the text."""
        for _ in self.events():
            pass
        return self.text

    def cancel(self) -> None:
        """End it now; its row is freed at the next step."""
        self._stream.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()


class Client:
    """Talks to one daemon. Thread-safe; close it, or use it as a context manager.

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
        self._channel = self._credentials.channel(grpc)
        self.adapters = Adapters(self)
        self.training = Training(self)
        self.runtime = Runtime(self)
        self.events = Events(self)
        self.tenants = Tenants(self)
        self.routes = Routes(self)

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
    ) -> Generation:
        """Start a generation; iterate over the result for its text.

        Args:
            prompt: one user turn, a conversation (``Message`` or ``{"role", "content"}``), or token ids.
            adapter: id, ``id@digest``, or full name; empty for the bare base.
            adapters: a blend instead of one adapter: names to weights, ``{"polite": 0.7, "pirate": 0.3}``.
            adapter_scale: factor on what all of them add; 1 if None.
            raw: give a text prompt to the model without the chat template.
            max_tokens: 0 for the daemon's default.
            temperature: greedy if None or 0; ``top_p``, ``top_k``, ``min_p`` narrow the draw.
            seed: same seed, prompt and adapter: same draw.
            stop: generation ends before the first of these.
            request_id: to find the request in the dashboard.
            top_logprobs: tell every token's log-probability, and so many of the most likely ones', at most 20.
            route: a route, in place of ``adapter``; an adapter's id also goes through the route of that id.
            sticky_key: requests with the same key go to the same target of a sticky route.
            json_schema: the answer keeps to it, as long as ``max_tokens`` lets it end.
            tools: what the model may call, where the base's chat template knows tools.
            tool_choice: ``auto``, ``none``, ``required``, or the name of the tool that must be called.
            one_tool_call: the turn ends after the first call.
            timeout: seconds for the whole generation; no limit if None.
        """
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
        return Generation(self.stream(call, timeout))

    def health(self, service: str = "", *, timeout: float | None = None) -> states.HealthStatus:
        """The daemon's own health, or one service's (for example ``optiq.v1.GenerationService``)."""
        return self.run(calls.check_health(service), timeout)

    def wait_ready(self, timeout: float = 120.0) -> t.Status:
        """Wait until the daemon serves; its status then.

        Raises:
            DeadlineExceeded: it did not within ``timeout`` seconds; the message says what was last seen.
            FailedPrecondition: its engine cannot start.
        """
        wait = Readiness(timeout)
        while True:
            try:
                health = self.health(timeout=wait.remaining)
                status = self.runtime.status(timeout=wait.remaining)
                if health is states.HealthStatus.SERVING:
                    return status
            except OptiqClientError as error:
                delay = wait.failed(error)
            else:
                delay = wait.not_serving(health, status)
            time.sleep(delay)

    def run(self, call: calls.Call[T], timeout: float | None = None) -> T:
        """Run a call with one answer."""
        method = channel.method(self._channel.unary_unary, call.path, call.response)
        try:
            deadline = self.timeout if timeout is None else timeout
            return call.convert(method(call.request, timeout=deadline, metadata=self._credentials.metadata))
        except grpc.RpcError as error:
            raise to_error(error, address=self.address) from error

    def upload(self, call: calls.Upload[T], timeout: float | None = None) -> T:
        """Run a call with a stream of requests and one answer; no limit of time unless given."""
        method = channel.method(self._channel.stream_unary, call.path, call.response)
        try:
            return call.convert(method(call.requests(), timeout=timeout, metadata=self._credentials.metadata))
        except grpc.RpcError as error:
            raise to_error(error, address=self.address) from error

    def stream(self, call: calls.Call[T], timeout: float | None = None) -> Stream[T]:
        """Start a call with a stream of answers."""
        method = channel.method(self._channel.unary_stream, call.path, call.response)
        running = method(call.request, timeout=timeout, metadata=self._credentials.metadata)
        return Stream(running, call.convert, self.address)

    def close(self) -> None:
        """Close the connection; running streams end."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
