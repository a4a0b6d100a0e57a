"""Every RPC goes through here: decoding, the error map, and a log line for what failed."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from google.rpc import code_pb2

from optiq_daemon.errors import DETAILS_KEY, InvalidRequestError, UnavailableError, status_of
from optiq_daemon.tasks import was_cancelled

log = logging.getLogger(__name__)

# Methods that carry no prompt and no training data have no need for more; a long conversation fits.
MAX_REQUEST_BYTES = 8 * 1024 * 1024

_CODES = {code.value[0]: code for code in grpc.StatusCode}


class ErrorInterceptor(grpc.aio.ServerInterceptor):
    """Answers every exception of a handler with a status of :func:`optiq_daemon.errors.status_of`."""

    async def intercept_service(self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: Any) -> Any:
        """Wrap unary and server-streaming handlers; reflection's own streams pass as they are."""
        handler = await continuation(handler_call_details)
        if handler is None or handler.request_streaming:
            return handler
        method = handler_call_details.method
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(
                _wrap_stream(method, handler.unary_stream, handler.request_deserializer),
                response_serializer=handler.response_serializer,
            )
        return grpc.unary_unary_rpc_method_handler(
            _wrap_unary(method, handler.unary_unary, handler.request_deserializer),
            response_serializer=handler.response_serializer,
        )


def _wrap_unary(method: str, call: Any, decode: Callable[[bytes], Any]) -> Any:
    async def unary(raw: bytes, context: Any) -> Any:
        began = time.perf_counter()
        try:
            return await call(_decoded(raw, decode), context)
        except (Exception, asyncio.CancelledError) as error:
            await _answer(context, method, error, began)

    return unary


def _wrap_stream(method: str, call: Any, decode: Callable[[bytes], Any]) -> Any:
    # A coroutine that writes, not a generator: when the caller goes away, the handler's own generator is closed
    # here and now, whatever it was doing, and what it holds is released.
    async def stream(raw: bytes, context: Any) -> None:
        began = time.perf_counter()
        try:
            responses = call(_decoded(raw, decode), context)
            if not hasattr(responses, "__aiter__"):
                await responses  # a handler that writes through its context itself, as grpc.health.v1 does
                return
            async with aclosing(responses):
                async for response in responses:
                    await context.write(response)
        except Exception as error:
            await _answer(context, method, error, began)

    return stream


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
