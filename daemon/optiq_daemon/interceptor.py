"""Every RPC goes through here: who calls, decoding, what the caller may name, the error map, and a log line for what
failed."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, Protocol

import grpc
from google.protobuf.message import DecodeError
from google.rpc import code_pb2

from optiq_daemon.errors import DETAILS_KEY, InvalidRequestError, UnavailableError, status_of
from optiq_daemon.identity import OWNER, Caller, set_caller
from optiq_daemon.tasks import was_cancelled

log = logging.getLogger(__name__)

# Methods that carry no prompt and no training data have no need for more; a long conversation fits.
MAX_REQUEST_BYTES = 8 * 1024 * 1024

_CODES = {code.value[0]: code for code in grpc.StatusCode}


class Guard(Protocol):
    """Who calls, and what it may name. Both raise what the caller is told."""

    def caller(self, context: Any, method: str) -> Caller:
        """The caller of a call; runs before its request is decoded."""

    def check(self, caller: Caller, request: Any) -> None:
        """Refuse a decoded request that is not the caller's to make."""


class _Open:
    """Everybody may do everything: the engine's private socket."""

    def caller(self, context: Any, method: str) -> Caller:
        return OWNER

    def check(self, caller: Caller, request: Any) -> None:
        pass


class ErrorInterceptor(grpc.aio.ServerInterceptor):
    """Answers every exception of a handler with a status of :func:`optiq_daemon.errors.status_of`.

    Args:
        guard: asked about every call; without one, every caller is the daemon's owner.
    """

    def __init__(self, guard: Guard | None = None) -> None:
        self._guard = guard or _Open()

    async def intercept_service(self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: Any) -> Any:
        """Wrap every handler but reflection's own, which streams both ways."""
        handler = await continuation(handler_call_details)
        if handler is None or (handler.request_streaming and handler.response_streaming):
            return handler
        call = _Call(handler_call_details.method, handler.request_deserializer, self._guard)
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(
                call.stream(handler.unary_stream), response_serializer=handler.response_serializer
            )
        if handler.request_streaming:
            return grpc.stream_unary_rpc_method_handler(
                call.upload(handler.stream_unary), response_serializer=handler.response_serializer
            )
        return grpc.unary_unary_rpc_method_handler(
            call.unary(handler.unary_unary), response_serializer=handler.response_serializer
        )


class _Call:
    """One method's handlers, wrapped."""

    def __init__(self, method: str, decode: Callable[[bytes], Any], guard: Guard) -> None:
        self._method = method
        self._decode = decode
        self._guard = guard

    def unary(self, handle: Any) -> Any:
        async def unary(raw: bytes, context: Any) -> Any:
            began = time.perf_counter()
            try:
                return await handle(self._request(raw, self._enter(context)), context)
            except (Exception, asyncio.CancelledError) as error:
                await _answer(context, self._method, error, began)

        return unary

    def upload(self, handle: Any) -> Any:
        async def upload(parts: AsyncIterator[bytes], context: Any) -> Any:
            began = time.perf_counter()
            try:
                caller = self._enter(context)
                return await handle((self._request(part, caller) async for part in parts), context)
            except (Exception, asyncio.CancelledError) as error:
                await _answer(context, self._method, error, began)

        return upload

    def stream(self, handle: Any) -> Any:
        # A coroutine that writes, not a generator: when the caller goes away, the handler's own generator is closed
        # here and now, whatever it was doing, and what it holds is released.
        async def stream(raw: bytes, context: Any) -> None:
            began = time.perf_counter()
            try:
                responses = handle(self._request(raw, self._enter(context)), context)
                if not hasattr(responses, "__aiter__"):
                    await responses  # a handler that writes through its context itself, as grpc.health.v1 does
                    return
                async with aclosing(responses):
                    async for response in responses:
                        await context.write(response)
            except Exception as error:
                await _answer(context, self._method, error, began)

        return stream

    def _enter(self, context: Any) -> Caller:
        caller = self._guard.caller(context, self._method)
        set_caller(caller)
        return caller

    def _request(self, raw: bytes, caller: Caller) -> Any:
        request = _decoded(raw, self._decode)
        self._guard.check(caller, request)
        return request


def _decoded(raw: bytes, decode: Callable[[bytes], Any]) -> Any:
    try:
        return decode(raw)
    except DecodeError:
        raise InvalidRequestError.of("request", "the bytes are not a message of this method") from None


async def _answer(context: Any, method: str, error: BaseException, began: float) -> None:
    if isinstance(error, grpc.aio.AbortError):
        raise error
    if context.cancelled():
        raise asyncio.CancelledError
    if isinstance(error, asyncio.CancelledError):
        if was_cancelled():
            raise error
        # Something that the handler waited for was cancelled, not the call: gRPC would leave its client waiting.
        error = UnavailableError("what this call waited for was ended; try again", reason="INTERRUPTED")
    status = status_of(error, method)
    level = logging.ERROR if status.code == code_pb2.INTERNAL else logging.INFO
    milliseconds = (time.perf_counter() - began) * 1000
    log.log(level, "rpc=%s code=%s ms=%.1f", method, code_pb2.Code.Name(status.code), milliseconds)
    await context.abort(
        _CODES[status.code],
        status.message,
        trailing_metadata=((DETAILS_KEY, status.SerializeToString()),),
    )
